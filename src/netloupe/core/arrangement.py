"""How a representation arranges its samples: centred rows, and the products that kernel alignment is made of.

Source: linear CKA, Kornblith et al., arXiv 1905.00414; the debiased form follows Song et al. (2012) and Nguyen et al.,
arXiv 2010.15327; the alignment of kernels is that of Cortes, Mohri and Rostamizadeh (2012).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.rows import Rows, as_rows

_GRAM_SAMPLES = 2048  # a sample-by-sample matrix is kept for each site up to so many samples: 32 MiB
_KEPT_BYTES = 32 * 2**20  # a site's centred rows stay in memory up to this size, else they are read for every pair


class Alignment(NamedTuple):
    """Linear CKA of two representations of the same samples."""

    biased: float
    """in [0, 1]; rises towards 1 by itself when there are few samples for many units"""
    debiased: float | None
    """ratio of unbiased estimates, about 0 for unrelated representations; None below four samples"""


def aligned_rows(features: Sequence[Any], names: Sequence[str]) -> list[Rows]:
    """Sites of the same samples, read in batches of one size; InputError where they are not of the same samples."""
    rows = [as_rows(site, ndim=(2,), min_samples=2) for site in features]
    for name, site in zip(names, rows):
        if site.n_samples != rows[0].n_samples:
            raise InputError(
                f"{names[0]} have {rows[0].n_samples} samples and {name} {site.n_samples}; "
                "the same samples are needed in both"
            )
    batch = min(site.batch_size for site in rows)
    return [Rows(site.source, None, None, batch) for site in rows]


class Arrangement:
    """One site, centred and scaled to at most 1, and what every pair with it needs: each computed when first asked.

    Iterating gives float64 blocks ``(sample, unit)``, as often as needed.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, self.n, self.d = rows, rows.n_samples, rows.n_units
        self.by_gram = self.n < self.d and self.n <= _GRAM_SAMPLES
        total, scale = np.zeros(self.d), 0.0
        for batch in rows:
            values = batch.values.double().numpy()
            total += values.sum(0)
            scale = max(scale, float(np.abs(values).max()))
        self.mean, self.scale = total / self.n, scale or 1.0

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._kept) if self.n * self.d * 8 <= _KEPT_BYTES else self._read()

    @cached_property
    def _kept(self) -> list[np.ndarray]:
        return list(self._read())

    def _read(self) -> Iterator[np.ndarray]:
        return ((batch.values.double().numpy() - self.mean) / self.scale for batch in self.rows)

    @cached_property
    def gram(self) -> Float[np.ndarray, "sample sample"]:
        """Inner products of the centred samples."""
        values = np.concatenate(list(self))
        return values @ values.T

    @cached_property
    def lengths(self) -> Float[np.ndarray, " sample"]:
        """Squared length of every centred sample; their sum is the trace of either product."""
        return np.concatenate([(block * block).sum(1) for block in self])

    @cached_property
    def squared_norm(self) -> float:
        """``|X'X|_F^2``, which is also ``|XX'|_F^2``."""
        return float(np.vdot(self.gram, self.gram)) if self.by_gram else _squared(cross_product(self, self))

    @property
    def varies(self) -> bool:
        """Whether there is more variation than rounding of values that are all alike."""
        rounding = self.n * np.finfo(np.float64).eps ** 2 * self.d
        return self.squared_norm > rounding**2

    @property
    def participation(self) -> float:
        """Participation ratio ``(tr C)^2 / tr C^2`` of the covariance: in how many directions it varies, 1 to d."""
        return float(self.lengths.sum() ** 2 / self.squared_norm)


def alignment(x: Arrangement, y: Arrangement) -> Alignment:
    """CKA ``|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)`` of two arrangements that vary, and its debiased form."""
    both = float(np.vdot(x.gram, y.gram)) if x.by_gram and y.by_gram else _squared(cross_product(x, y))
    biased = both / np.sqrt(x.squared_norm * y.squared_norm)
    debiased = debiased_alignment(both, x.squared_norm, y.squared_norm, x.lengths, y.lengths)
    return Alignment(float(min(biased, 1.0)), debiased)


def debiased_alignment(
    both: float,
    own_x: float,
    own_y: float,
    lengths_x: Float[np.ndarray, " sample"],
    lengths_y: Float[np.ndarray, " sample"],
) -> float | None:
    """Debiased CKA from ``|X'Y|_F^2``, ``|X'X|_F^2``, ``|Y'Y|_F^2`` and the squared lengths of the centred samples.

    None below four samples, or where an unbiased estimate of a site's own norm is not positive.
    """
    n = len(lengths_x)
    if n < 4:
        return None
    xy, xx, yy = (
        unbiased_product(product, float(one @ two), float(one.sum()), float(two.sum()), n)
        for product, one, two in (
            (both, lengths_x, lengths_y), (own_x, lengths_x, lengths_x), (own_y, lengths_y, lengths_y),
        )
    )  # fmt: skip
    return float(xy / np.sqrt(xx * yy)) if xx > 0 and yy > 0 else None


def chance_alignment(x: Arrangement, y: Arrangement) -> float:
    """Mean of the biased CKA when the samples of one side are put in random order: ``tr K tr L / ((n - 1) |K| |L|)``."""
    return float(x.lengths.sum() * y.lengths.sum() / ((x.n - 1) * np.sqrt(x.squared_norm * y.squared_norm)))


def alignment_error(x: Arrangement, y: Arrangement) -> float:
    """Jackknife standard error of the biased CKA over samples, each left out in turn in closed form.

    Without sample i the centred products lose ``g x_i y_i'`` with ``g = n / (n - 1)``, so that their squared norms need only
    ``x_i' (X'Y) y_i`` and lengths. Cost O(n d_x d_y) and the square of the wider site.
    """
    if x.n < 3:
        return float("nan")
    g = x.n / (x.n - 1)
    left = []
    for a, b, whole in ((x, y, None), (x, x, x.squared_norm), (y, y, y.squared_norm)):
        if x.n <= _GRAM_SAMPLES and x.n < max(a.d, b.d):  # the same from the samples' own inner products
            through = np.einsum("nm,nm->n", a.gram, b.gram)
            total = float(through.sum())
        else:
            product = cross_product(a, b)
            parts = [np.einsum("nd,nd->n", one @ product, other) for one, other in zip(a, b, strict=True)]
            through, total = np.concatenate(parts), _squared(product)
        left.append((total if whole is None else whole) - 2 * g * through + g * g * a.lengths * b.lengths)
    without = left[0] / np.sqrt(np.maximum(left[1] * left[2], np.finfo(float).tiny))
    return float(np.sqrt((x.n - 1) / x.n * ((without - without.mean()) ** 2).sum()))


def cross_product(x: Arrangement, y: Arrangement) -> Float[np.ndarray, "unit unit_other"]:
    """``X'Y`` of centred rows, batch by batch."""
    product = np.zeros((x.d, y.d))
    for a, b in zip(x, y, strict=True):
        product += a.T @ b
    return product


def centred_kernel(kernel: Float[np.ndarray, "item item"] | Any) -> Float[np.ndarray, "item item"]:
    """``H K H`` with ``H = I - 11'/n``, float64; InputError unless square, NonFiniteError for NaN."""
    table = np.asarray(kernel, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not len(table):
        raise InputError(f"a kernel has shape {table.shape}, expected one row and one column for each item")
    if not np.isfinite(table).all():
        raise NonFiniteError("a kernel holds NaN or infinity, but finite numbers are needed; look for an overflow")
    return table - table.mean(0) - table.mean(1)[:, None] + table.mean()


def kernel_alignment(
    one: Float[np.ndarray, "item item"] | Any,
    other: Float[np.ndarray, "item item"] | Any,
    center: bool = True,
    official: bool = False,
) -> float:
    """``<K, L>_F / (|K|_F |L|_F)`` of two kernels of the same items, by default centred: CKA.

    Args:
        one, other: ``(item, item)`` inner products. center: ``H K H`` first (both sides).
        official: 0 for a kernel of zeros, as the code of arXiv 2401.13558 has it, instead of an error.

    Cost O(n^2). Raises InputError for other shapes or a kernel of zeros (features that do not vary), NonFiniteError for NaN.
    """
    tables = [centred_kernel(each) if center else np.asarray(each, dtype=np.float64) for each in (one, other)]
    if tables[0].shape != tables[1].shape:
        raise InputError(f"the kernels have shapes {tables[0].shape} and {tables[1].shape}; the same items are needed")
    largest = [float(np.abs(each).max()) for each in (one, other)]
    for table, size in zip(tables, largest, strict=True):
        if not np.isfinite(table).all():
            raise NonFiniteError("a kernel holds NaN or infinity, but finite numbers are needed; look for an overflow")
        if np.abs(table).max() <= 8 * np.finfo(np.float64).eps * size:
            if official:
                return 0.0
            raise InputError("a kernel is zero once centred, because features do not vary; leave such a unit group out")
    one, other = (table / np.abs(table).max() for table in tables)
    return float(np.vdot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def _squared(matrix: np.ndarray) -> float:
    return float(np.vdot(matrix, matrix))


def unbiased_product(product: float, norms: float, trace_one: float, trace_two: float, n: int) -> float:
    """``n (n - 3)`` times the unbiased HSIC of two centred linear kernels.

    With centred Gram matrices K, L (rows sum to zero) and their diagonals removed, ``tr(K~L~) = product - norms``,
    ``1'K~1 = -tr K`` and ``1'K~L~1 = norms`` (the rows of ``K~`` sum to minus its diagonal), so that
    ``tr(K~L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2 (1'K~L~1) / (n-2)`` needs no n x n matrix.
    """
    return product - norms + trace_one * trace_two / ((n - 1) * (n - 2)) - 2 * norms / (n - 2)
