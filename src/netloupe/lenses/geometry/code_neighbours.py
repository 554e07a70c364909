"""The nearest codes and what they vote for (arXiv 2101.05490)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.lenses.geometry.code_kernels import nearest_votes
from netloupe.lenses.geometry.packed_codes import PackedCodes, same_bits


def classes_of(labels: Any) -> tuple[np.ndarray, Int[np.ndarray, " sample"]]:
    """Sorted different labels, and each sample's place among them."""
    values = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise InputError(f"labels have shape {values.shape} and dtype {values.dtype}, expected whole numbers (sample,)")
    classes, y = np.unique(values, return_inverse=True)
    return classes, y.astype(np.int64)


def knn_votes(
    codes: PackedCodes,
    y: Int[np.ndarray, " sample"],
    n_classes: int,
    queries: PackedCodes,
    k: int,
    own: Int[np.ndarray, " query"] | None = None,
) -> Float[np.ndarray, "query class"]:
    """Votes of the k nearest codes in Hamming distance; codes tied for the last places share these equally.

    That is the mean over all ways to break the ties, so the order of samples does not matter.

    Args:
        codes, y: codes with their classes ``0..n_classes-1``, ``(sample,)``.
        queries: codes that are voted on. own: which of ``codes`` each query is itself, not to vote for it.

    Cost: n m U / 64 counts of bits. Raises InputError for more neighbours than codes and for different units.
    """
    same_bits(codes, queries)
    available = len(codes) - (own is not None)
    if not 1 <= k <= available:
        raise InputError(f"k is {k}, but there are {available} other codes; fewer neighbours are needed")
    if len(y) != len(codes):
        raise InputError(f"{len(y)} labels were given for {len(codes)} codes; one for each is needed")
    selves = np.full(len(queries), -1, np.int64) if own is None else np.ascontiguousarray(own, np.int64)
    votes = np.zeros((len(queries), n_classes))
    nearest_votes(
        queries.words, selves, np.ascontiguousarray(codes.words.T), y, k, np.empty(len(codes), np.int32),
        np.empty(k, np.int32), np.empty(n_classes, np.int64), votes,
    )  # fmt: skip
    return votes
