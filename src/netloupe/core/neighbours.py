"""The nearest samples of every sample, in blocks: what intrinsic dimensions and K-NN stand on.

Candidates come from products of blocks in float32, of which only the best are kept; their distances are then taken again from
differences in float64. A row whose candidates rounding could have mixed up is looked up again by products in float64, and from
differences alone where even these are too coarse. The answer is that of an exhaustive search, in half the time or less.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows
from netloupe.core.statistics.kernels import compiled

BLOCK = 1024
SPARE = 6  # candidates beyond k, so that rounding seldom matters
_ROUNDING = 8.0  # of a squared distance, in units of the type's epsilon times the squared lengths


class Neighbours(NamedTuple):
    """Of each anchor the k nearest others, nearest first: ``distances`` float64 and ``indices`` int64, ``(anchor, k)``.

    ``anchors`` int64 ``(anchor,)``: which samples they are.
    """

    distances: Float[np.ndarray, "anchor k"]
    indices: Int[np.ndarray, "anchor k"]
    anchors: Int[np.ndarray, " anchor"]


def nearest(
    features: Float[Tensor, "sample unit"] | Any,
    k: int,
    anchors: int | Int[Any, " anchor"] | None = None,
    block: int = BLOCK,
    random_state: int = 0,
) -> Neighbours:
    """Euclidean nearest neighbours of the anchors among all other samples; a sample is no neighbour of itself.

    Args:
        features: ``(sample, unit)``: tensor, array or store; held in memory.
        k: how many.
        anchors: None, all samples; a number, so many drawn at random; or their indices.
        block: most samples compared at a time; ``block**2`` numbers are held.
        random_state: of the draw.

    Cost: n^2 d / 2 multiplications for all samples, a n d for a anchors; memory n (d + k). Raises InputError for ``k`` that is
    not between 1 and n - 1, anchors that are not there, and what :func:`netloupe.core.rows.as_rows` refuses.
    """
    return nearest_rows(as_float(as_rows(features, ndim=(2,)).array()), k, anchors, block, random_state)


def as_float(values: Tensor) -> Float[np.ndarray, "sample unit"]:
    """Rows as contiguous float32 or float64; half precision and integers become float64."""
    x = values.detach().cpu()
    return np.ascontiguousarray((x if x.dtype in (torch.float32, torch.float64) else x.double()).numpy())


def nearest_rows(
    values: Float[np.ndarray, "sample unit"], k: int, anchors: Any = None, block: int = BLOCK, random_state: int = 0
) -> Neighbours:
    """:func:`nearest` of rows that were checked and are contiguous float32 or float64."""
    n = len(values)
    if not 1 <= k < n:
        raise InputError(f"k is {k} for {n} samples, but 1 to {n - 1} other samples can be neighbours; change k")
    if block < 1:
        raise InputError(f"block is {block}, at least one sample at a time is needed")
    chosen = _anchors(anchors, n, random_state)
    largest = float(np.abs(values).max())
    if not 1e-100 < largest < 1e100 and largest > 0:  # squares would overflow or vanish
        found = nearest_rows(values.astype(np.float64) / largest, k, chosen, block)
        return Neighbours(found.distances * largest, found.indices, chosen)
    # small enough that a pair of blocks below the diagonal can be left out also of few samples
    found = _Search(values, chosen, min(n - 1, k + SPARE), min(block, max(256, n // 8))).run()
    distances, indices = _settle(values, chosen, found, k)
    return Neighbours(distances, indices, chosen)


def _anchors(anchors: Any, n: int, random_state: int) -> np.ndarray:
    if anchors is None:
        return np.arange(n)
    if isinstance(anchors, (int, np.integer)):
        if anchors < 1:
            raise InputError(f"{anchors} anchors were asked for, at least one is needed")
        if anchors >= n:
            return np.arange(n)
        return np.sort(np.random.default_rng(random_state).choice(n, int(anchors), replace=False))
    chosen = np.asarray(anchors)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= n:
        raise InputError(f"anchors must be indices of the {n} samples, given as one axis of whole numbers")
    return chosen.astype(np.int64)


class _Search:
    """Candidates: the ``width`` smallest squared distances of every anchor, by float32 products of centred samples."""

    def __init__(self, values: np.ndarray, anchors: np.ndarray, width: int, block: int) -> None:
        centred = values - values.mean(0, dtype=np.float64)
        self.scale = float(np.abs(centred).max()) or 1.0
        self.x = torch.from_numpy((centred / self.scale).astype(np.float32))
        self.squares = (self.x.double() ** 2).sum(1).float().numpy()
        self.anchors, self.width, self.block = anchors, width, block
        self.best = np.full((len(anchors), width), np.inf, np.float32)
        self.index = np.full((len(anchors), width), -1, np.int64)
        self.whole = len(anchors) == len(values) and bool((anchors == np.arange(len(values))).all())

    def run(self) -> _Search:
        n = len(self.x)
        for i in range(0, len(self.anchors), self.block):
            rows = self.anchors[i : i + self.block]
            part = self.x[i : i + self.block] if self.whole else self.x[rows]
            for j in range(i if self.whole else 0, n, self.block):
                product = (part @ self.x[j : j + self.block].T).numpy()
                both = self.whole and j > i  # every pair is computed once and offered to both
                offer(product, self.squares, rows, i, j, self.best, self.index, both)
        return self


@compiled
def offer(product, squares, rows, first, start, best, index, both):
    """Keeps what a block of inner products adds to the smallest squared distances of its rows (and of its columns)."""
    n_rows, n_columns = product.shape
    last = best.shape[1] - 1
    two = np.float32(2.0)
    for r in range(n_rows):
        own, square = rows[r], squares[rows[r]]
        place = first + r
        worst = best[place, last]
        for c in range(n_columns):
            value = square + squares[start + c] - two * product[r, c]
            if value < worst and start + c != own:
                at = last
                while at > 0 and best[place, at - 1] > value:
                    best[place, at] = best[place, at - 1]
                    index[place, at] = index[place, at - 1]
                    at -= 1
                best[place, at] = value
                index[place, at] = start + c
                worst = best[place, last]
            if both and value < best[start + c, last]:
                other = start + c
                at = last
                while at > 0 and best[other, at - 1] > value:
                    best[other, at] = best[other, at - 1]
                    index[other, at] = index[other, at - 1]
                    at -= 1
                best[other, at] = value
                index[other, at] = own


@compiled
def exact_squares(values, anchors, index, out):
    """Squared distances of anchors to their candidates from differences, in float64."""
    units = values.shape[1]
    whole = units // 4 * 4
    for a in range(len(anchors)):
        own = anchors[a]
        for j in range(index.shape[1]):
            other = index[a, j]
            s0 = s1 = s2 = s3 = 0.0
            for u in range(0, whole, 4):
                d0 = np.float64(values[own, u]) - np.float64(values[other, u])
                d1 = np.float64(values[own, u + 1]) - np.float64(values[other, u + 1])
                d2 = np.float64(values[own, u + 2]) - np.float64(values[other, u + 2])
                d3 = np.float64(values[own, u + 3]) - np.float64(values[other, u + 3])
                s0 += d0 * d0
                s1 += d1 * d1
                s2 += d2 * d2
                s3 += d3 * d3
            for u in range(whole, units):
                d0 = np.float64(values[own, u]) - np.float64(values[other, u])
                s0 += d0 * d0
            out[a, j] = (s0 + s1) + (s2 + s3)


def _settle(values: np.ndarray, anchors: np.ndarray, found: _Search, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact distances of the candidates, nearest first; rows that rounding may have spoilt are searched again."""
    squares, index = _ordered(values, anchors, found.index)
    if found.width < len(values) - 1:
        last, farthest = squares[:, k - 1] / found.scale**2, found.best[:, -1].astype(np.float64)
        doubtful = _doubtful(last, farthest, found.squares, anchors, np.float32)
        if len(doubtful):
            squares[doubtful], index[doubtful] = _again(values, anchors[doubtful], found.width, k, found.block)
    return np.sqrt(squares[:, :k]), index[:, :k]


def _doubtful(
    last: np.ndarray, farthest: np.ndarray, lengths: np.ndarray, anchors: np.ndarray, dtype: type
) -> np.ndarray:
    """Rows whose k-th distance is not safely below what any sample that is no candidate may have."""
    rounding = _ROUNDING * float(np.finfo(dtype).eps) * (lengths[anchors].astype(np.float64) + float(lengths.max()))
    return np.flatnonzero(last > farthest - rounding)


def _again(values: np.ndarray, anchors: np.ndarray, width: int, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by products in float64, and by differences to all samples where these do not tell either."""
    centred = (values - values.mean(0, dtype=np.float64)).astype(np.float64)
    lengths = np.einsum("nd,nd->n", centred, centred)
    found, farthest = np.empty((len(anchors), width), np.int64), np.empty(len(anchors))
    rows = max(1, min(block, 2**24 // len(values)))
    for start in range(0, len(anchors), rows):
        part = slice(start, start + rows)
        own = anchors[part]
        table = lengths - 2 * (centred[own] @ centred.T) + lengths[own, None]
        table[np.arange(len(own)), own] = np.inf
        found[part] = np.argpartition(table, width - 1, 1)[:, :width]
        farthest[part] = np.take_along_axis(table, found[part], 1).max(1)
    squares, index = _ordered(values, anchors, found)
    for row in _doubtful(squares[:, k - 1], farthest, lengths, anchors, np.float64):
        others = np.delete(np.arange(len(values)), anchors[row])[None]
        near, order = _ordered(values, anchors[row : row + 1], others)
        squares[row], index[row] = near[0, :width], order[0, :width]
    return squares, index


def _ordered(values: np.ndarray, anchors: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squares = np.empty(index.shape)
    exact_squares(values, anchors, index, squares)
    order = np.lexsort((index, squares), axis=1)
    return np.take_along_axis(squares, order, 1), np.take_along_axis(index, order, 1)
