"""Samples no two of which are equal, and their nearest neighbours: what estimators that take logarithms of distances need.

Used for the estimators of arXiv 2401.08865.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError
from netloupe.core.neighbours import BLOCK, as_float, nearest_rows
from netloupe.core.rows import as_rows
from netloupe.lenses.geometry.code_kernels import group_rows

Duplicates = Literal["remove", "jitter", "refuse"]


class Separate(NamedTuple):
    """``distances`` float64 ``(anchor, k)`` to the nearest others, all above 0, among ``n`` different samples of ``n_units`` that vary.

    ``values`` are these samples; ``n_duplicates`` were left out, or moved, because they equal another.
    """

    distances: Float[np.ndarray, "anchor k"]
    indices: np.ndarray
    values: Float[np.ndarray, "sample unit"]
    n_duplicates: int

    @property
    def n(self) -> int:
        """Different samples."""
        return len(self.values)

    @property
    def n_units(self) -> int:
        """Units that vary."""
        return self.values.shape[1]


def separate(
    features: Any,
    k: int,
    anchors: Any = None,
    block: int = BLOCK,
    duplicates: Duplicates = "remove",
    *,
    min_samples: int | None = None,
    limit: int | None = None,
    most_anchors: int | None = None,
    random_state: int = 0,
) -> Separate:
    """Nearest neighbours of samples that differ.

    ``remove`` keeps the first of equal samples, ``jitter`` moves the others by 1e-6 of the spread, ``refuse`` raises. Equal are
    also samples that differ by rounding alone, nearer than ``4 eps max|x| sqrt(d)`` with the epsilon of their number type (of float32
    for less than that): such distances say nothing. Constant units take no part in a distance.

    Args:
        k: neighbours; fewer where ``min_samples`` is given and fewer samples are left. most_anchors: drawn where there are more
            samples and no anchors. The others are those of ``nearest``.

    Raises InputError where too few samples are left.
    """
    if duplicates not in ("remove", "jitter", "refuse"):
        raise InputError(f"duplicates is '{duplicates}', expected remove, jitter or refuse")
    values = as_float(as_rows(features, ndim=(2,)).array(limit, "an intrinsic dimension"))
    n_given, needed = len(values), min_samples or k + 1
    tolerance = 4 * float(np.finfo(values.dtype).eps) * float(np.abs(values).max()) * values.shape[1] ** 0.5
    varying = (values != values[0]).any(0)
    values = values if varying.all() else np.ascontiguousarray(values[:, varying])
    if not values.shape[1]:
        raise InputError(f"all {n_given} samples are equal, so there are no distances; give samples that vary")
    values, n_equal = _without_equal(values, duplicates, random_state)
    while True:
        if len(values) < needed:
            raise InputError(
                f"{len(values)} different samples are left of {n_given}, but {needed} are needed; give more samples"
            )
        chosen = most_anchors if anchors is None and most_anchors and len(values) > most_anchors else anchors
        found = nearest_rows(values, min(k, len(values) - 1), chosen, block, random_state)
        near = found.distances <= tolerance
        if duplicates == "jitter" or not near.any():
            return Separate(found.distances, found.indices, values, n_equal)
        if duplicates == "refuse":
            raise InputError("samples equal another up to rounding, so that distances say nothing; remove duplicates")
        pairs = np.stack([np.broadcast_to(found.anchors[:, None], near.shape)[near], found.indices[near]])
        kept = np.ones(len(values), bool)
        kept[pairs.max(0)] = False  # of two that are equal the first stays
        n_equal += int((~kept).sum())
        values = np.ascontiguousarray(values[kept])
        if anchors is not None and not isinstance(anchors, (int, np.integer)):
            anchors = (np.cumsum(kept) - 1)[found.anchors[kept[found.anchors]]]


def _without_equal(values: np.ndarray, duplicates: Duplicates, random_state: int) -> tuple[np.ndarray, int]:
    groups = _equal_rows(values)
    n_equal = len(values) - int(groups.max()) - 1
    if not n_equal:
        return values, 0
    if duplicates == "refuse":
        raise InputError(f"{n_equal} samples equal another, so that distances are zero; remove or jitter duplicates")
    first = np.unique(groups, return_index=True)[1]
    if duplicates == "remove":
        return np.ascontiguousarray(values[np.sort(first)]), n_equal
    moved = np.setdiff1d(np.arange(len(values)), first)
    values = values.astype(np.float64)
    values[moved] += (
        1e-6 * values.std() * np.random.default_rng(random_state).standard_normal((len(moved), values.shape[1]))
    )
    return values, n_equal


def _equal_rows(values: np.ndarray) -> np.ndarray:
    """A number for each row, the same for equal rows; where a few units tell all rows apart, the others are not looked at."""

    def grouped(part: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(part.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 and 0.0 are one value
        groups = np.empty(len(part), np.int64)
        group_rows(words, np.full(1 << (2 * len(part)).bit_length(), -1, np.int64), groups)
        return groups

    few = grouped(values[:, :: max(1, values.shape[1] // 8)])
    return few if int(few.max()) + 1 == len(values) else grouped(values)
