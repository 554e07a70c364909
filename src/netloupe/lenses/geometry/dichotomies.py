"""Divisions of conditions into two sides, and subsets of conditions to fit a classifier on.

Source: Alleman, Lindsey and Fusi, arXiv 2401.13558, and Bernardi et al., doi 10.1016/j.cell.2020.09.031.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb

import numpy as np
from jaxtyping import Bool

from netloupe.core.errors import InputError

MOST = 200_000


def dichotomies(n_conditions: int, balanced: bool = True) -> Bool[np.ndarray, "dichotomy condition"]:
    """Every division of the conditions into two sides, each once; condition 0 is always on the True side.

    Args:
        n_conditions: P. balanced: sides of ``P / 2`` conditions, ``C(P, P/2) / 2`` of them; else all ``2^(P-1) - 1`` divisions.

    Raises InputError for an odd P with ``balanced``, fewer than two conditions, and more than 200,000 divisions.
    """
    if n_conditions < 2 or (balanced and n_conditions % 2):
        raise InputError(
            f"n_conditions is {n_conditions}; at least 2, and for balanced dichotomies an even number, are needed"
        )
    half = n_conditions // 2
    total = comb(n_conditions, half) // 2 if balanced else 2 ** (n_conditions - 1) - 1
    if total > MOST:
        raise InputError(
            f"{n_conditions} conditions have {total} dichotomies, at most {MOST} are listed; give some of your own"
        )
    sizes = [half - 1] if balanced else range(n_conditions - 1)
    sides = [chosen for size in sizes for chosen in combinations(range(1, n_conditions), size)]
    table = np.zeros((total, n_conditions), dtype=bool)
    table[:, 0] = True
    for row, chosen in zip(table, sides, strict=True):
        row[list(chosen)] = True
    return table


def near_balanced(n_conditions: int, most: int, random_state: int = 0) -> np.ndarray:
    """Balanced dichotomies as int8 ``(dichotomy, condition)``: +1, -1, and 0 for the one left out in turn where P is odd.

    All of them, or ``most`` drawn without repetition.
    """
    odd, rng = n_conditions % 2, np.random.default_rng(random_state)
    even = n_conditions - odd
    total = comb(even, even // 2) // 2 * (n_conditions if odd else 1)
    if total <= max(most, 1000):
        half = np.where(dichotomies(even), 1, -1).astype(np.int8) if even >= 2 else np.zeros((0, even), np.int8)
        table = [np.insert(half, out, 0, axis=1) for out in range(n_conditions)] if odd else [half]
        found = np.concatenate(table)
        return found if len(found) <= most else found[np.sort(rng.permutation(len(found))[:most])]
    drawn: dict[bytes, np.ndarray] = {}
    while len(drawn) < most:
        row = np.zeros(n_conditions, np.int8)
        order = rng.permutation(n_conditions)
        row[order[: even // 2]], row[order[even // 2 : even]] = 1, -1
        row *= row[np.flatnonzero(row)[0]]
        drawn[row.tobytes()] = row
    return np.stack(list(drawn.values()))


def training_sets(
    positive: np.ndarray, negative: np.ndarray, most: int | None, official: bool, random_state: int = 0
) -> list[np.ndarray]:
    """Subsets with ``P // 4`` conditions of each side; ``official``: the first half of them only."""
    k = (len(positive) + len(negative)) // 4
    total = comb(len(positive), k) * comb(len(negative), k)
    limit = total // 2 if official else total

    def every() -> Iterator[np.ndarray]:
        return (np.array([*p, *n]) for p in combinations(positive, k) for n in combinations(negative, k))

    if most is None or limit <= most:
        if limit > MOST:
            raise InputError(
                f"there are {limit} subsets of conditions to fit on, at most {MOST} are tried; set max_subsets"
            )
        return list(islice(every(), limit))
    rng = np.random.default_rng(random_state)
    return [np.concatenate([rng.choice(side, k, replace=False) for side in (positive, negative)]) for _ in range(most)]
