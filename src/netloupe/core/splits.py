"""Splits that keep what is judged apart from what was fitted: by sample, by class, by group.

Thin, seeded faces on scikit-learn's splitters, which return index tensors; leakage is the commonest fault of
published probes, so a split by groups (subjects, recordings, files) is one argument away everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    ShuffleSplit,
    StratifiedKFold,
    StratifiedShuffleSplit,
)
from torch import Tensor

from netloupe.core.errors import InputError

Pair = tuple[Int[Tensor, " fitted"], Int[Tensor, " judged"]]


def holdout(n_samples: int, share: float = 0.2, labels: Any = None, groups: Any = None, random_state: int = 0) -> Pair:
    """Indices to fit on and indices to judge on, disjoint and together all samples.

    ``labels`` keeps the class shares equal on both sides; ``groups`` (one value a sample) puts each group wholly on one side
    (then the class shares are as they fall). Raises InputError for shares outside (0, 1), too few samples, or lengths that differ.
    """
    if not 0 < share < 1 or n_samples < 2:
        raise InputError(f"share is {share} of {n_samples} samples; a share between 0 and 1 of at least 2 is needed")
    labels, groups = _column(labels, n_samples, "labels"), _column(groups, n_samples, "groups")
    if groups is not None:
        splitter: Any = GroupShuffleSplit(1, test_size=share, random_state=random_state)
    else:
        kind = StratifiedShuffleSplit if labels is not None else ShuffleSplit
        splitter = kind(1, test_size=share, random_state=random_state)
    return next(_pairs(splitter, n_samples, labels, groups))


def folds(
    n_samples: int, n_splits: int = 5, labels: Any = None, groups: Any = None, random_state: int = 0
) -> Iterator[Pair]:
    """``n_splits`` pairs as in :func:`holdout`; every sample is judged exactly once."""
    if not 2 <= n_splits <= n_samples:
        raise InputError(f"n_splits is {n_splits} for {n_samples} samples; 2 to the number of samples are possible")
    labels, groups = _column(labels, n_samples, "labels"), _column(groups, n_samples, "groups")
    if groups is not None:
        splitter: Any = GroupKFold(n_splits, shuffle=True, random_state=random_state)
    else:
        kind = StratifiedKFold if labels is not None else KFold
        splitter = kind(n_splits, shuffle=True, random_state=random_state)
    yield from _pairs(splitter, n_samples, labels, groups)


def bootstrap(
    n_samples: int, n_draws: int, groups: Any = None, random_state: int = 0
) -> Iterator[Int[Tensor, " drawn"]]:
    """Indices drawn with replacement, ``n_draws`` times; with ``groups`` whole groups are drawn (their sizes add up)."""
    if n_samples < 1 or n_draws < 1:
        raise InputError(f"{n_draws} draws from {n_samples} samples were asked for; at least 1 of each is needed")
    generator = np.random.default_rng(random_state)
    column = _column(groups, n_samples, "groups")
    members = None if column is None else [np.flatnonzero(column == value) for value in np.unique(column)]
    for _ in range(n_draws):
        if members is None:
            yield torch.from_numpy(generator.integers(0, n_samples, n_samples))
        else:
            drawn = generator.integers(0, len(members), len(members))
            yield torch.from_numpy(np.concatenate([members[index] for index in drawn]))


def _column(values: Any, n_samples: int, word: str) -> np.ndarray | None:
    if values is None:
        return None
    column = np.asarray(values)
    if column.shape != (n_samples,):
        raise InputError(f"{word} have shape {column.shape}, expected one value for each of {n_samples} samples")
    return column


def _pairs(splitter: Any, n_samples: int, labels: np.ndarray | None, groups: np.ndarray | None) -> Iterator[Pair]:
    try:
        for fitted, judged in splitter.split(np.zeros((n_samples, 1)), labels, groups):
            yield torch.from_numpy(np.sort(fitted)), torch.from_numpy(np.sort(judged))
    except ValueError as error:
        raise InputError(f"the samples cannot be split so: {str(error).splitlines()[0]}") from None
