"""Centred kernel alignment: do two sites arrange the same samples alike?

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414; the debiased form
follows Song et al. (2012) and Nguyen et al., arXiv 2010.15327.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows, as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRAM_SAMPLES = 2048  # a sample-by-sample matrix is kept for each site up to so many samples: 32 MiB
_KEPT_BYTES = 32 * 2**20  # a site's centred rows stay in memory up to this size, else they are read for every pair


@dataclass(frozen=True, eq=False)
class CKA(Finding):
    """Similarity of two representations of the same samples.

    ``biased`` is in [0, 1]; it rises towards 1 by itself when there are few samples for many units. ``debiased`` is
    the ratio of unbiased estimates (None below four samples): about 0 for unrelated representations, and it may
    be slightly negative. Both are 1 for representations equal up to rotation, scale and shift.
    """

    biased: float
    debiased: float | None
    n_samples: int
    n_units: tuple[int, int]

    meanings: ClassVar[dict[str, str]] = {
        "cka": "similarity of the two arrangements, 1 for equal up to rotation, scale and shift (debiased)",
        "cka_biased": "the same without correction for few samples; never below 0",
    }

    def summary(self) -> dict[str, float]:
        """``cka`` (debiased where there are at least four samples) and ``cka_biased``."""
        return {"cka": self.biased if self.debiased is None else self.debiased, "cka_biased": self.biased}

    def plot(self, axes: Axes) -> None:
        """Both numbers as bars on the scale from 0 to 1."""
        values = self.summary()
        axes.barh(list(values), list(values.values()), color=["C0", "C7"])
        axes.set(xlim=(min(0.0, *values.values()), 1), xlabel="centred kernel alignment")


@lens(
    question="Do two sites, or two networks, arrange the same samples alike?",
    needs=("features", "other"),
    pooled=True,
    min_samples=2,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def cka(features: Float[Tensor, "sample unit"] | Any, other: Float[Tensor, "sample unit_other"] | Any) -> CKA:
    """Linear CKA, biased and debiased, without a sample-by-sample matrix where samples outnumber units.

    With centred ``X`` and ``Y``: ``|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)``. The debiased form replaces each squared norm by its
    unbiased estimate (U-centred HSIC), which also needs only covariances and the squared length of each centred sample.

    Args:
        features, other: ``(sample, unit)`` of the same samples; tensors, arrays or stored sites of any widths.

    Cost: O(n (d1 + d2)^2) time and O((d1 + d2)^2) memory (a site with more units than samples, up to 2,048 of them:
    O(n^2 d) by the Gram matrix of its samples instead); n may exceed memory. Raises InputError for other shapes,
    different numbers of samples, fewer than two, or a representation that does not vary. For many sites see
    :func:`cka_matrix`.
    """
    x, y = (_Arrangement(rows) for rows in _aligned([features, other], ("features", "other")))
    if not (x.varies and y.varies):
        raise InputError("a representation is the same for every sample, so its similarity to another is not defined")
    return _between(x, y, Context())


def cka_matrix(features: Sequence[Float[Tensor, "sample unit"] | Any]) -> dict[tuple[int, int], CKA]:
    """:func:`cka` of every two of many sites: the same numbers, with what belongs to one site computed once.

    Args:
        features: one ``(sample, unit)`` for each site, of the same samples; tensors, arrays or stored sites.

    Returns:
        ``{(i, j): CKA}`` for ``i < j``. A pair is absent where a site is the same for every sample, for there
        similarity is not defined.

    Cost for k sites: O(k n d^2) once and O(k^2 n d^2) for the pairs; where units outnumber samples O(k n^2 d) once and
    O(k^2 n^2) for the pairs. Memory: up to 64 MiB a site and O(d^2). Errors as in :func:`cka`.
    """
    if not features:
        return {}
    sites = [_Arrangement(rows) for rows in _aligned(features, [f"features {i}" for i in range(len(features))])]
    varying = [index for index, site in enumerate(sites) if site.varies]
    context = Context()
    return {(i, j): _between(sites[i], sites[j], context) for i, j in combinations(varying, 2)}


def _aligned(features: Sequence[Any], names: Sequence[str]) -> list[Rows]:
    """Sites of the same samples, read in batches of one size."""
    rows = [as_rows(site, ndim=(2,), min_samples=2) for site in features]
    for name, site in zip(names, rows, strict=True):
        if site.n_samples != rows[0].n_samples:
            raise InputError(
                f"{names[0]} have {rows[0].n_samples} samples and {name} {site.n_samples}; "
                "the same samples are needed in both"
            )
    batch = min(site.batch_size for site in rows)
    return [Rows(site.source, None, None, batch) for site in rows]


class _Arrangement:
    """One site, centred and scaled to at most 1, and what every pair with it needs: each computed when first asked."""

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
        return _squared(self.gram) if self.by_gram else _cross(self, self)

    @property
    def varies(self) -> bool:
        """Whether there is more variation than rounding of values that are all alike."""
        rounding = self.n * np.finfo(np.float64).eps ** 2 * self.d
        return self.squared_norm > rounding**2


def _between(x: _Arrangement, y: _Arrangement, context: Context) -> CKA:
    both = float(np.vdot(x.gram, y.gram)) if x.by_gram and y.by_gram else _cross(x, y)
    biased = both / np.sqrt(x.squared_norm * y.squared_norm)
    debiased = None
    if x.n >= 4:
        xy, xx, yy = (
            _unbiased(product, float(a.lengths @ b.lengths), float(a.lengths.sum()), float(b.lengths.sum()), a.n)
            for product, a, b in ((both, x, y), (x.squared_norm, x, x), (y.squared_norm, y, y))
        )
        if xx > 0 and yy > 0:
            debiased = float(xy / np.sqrt(xx * yy))
    return CKA(float(min(biased, 1.0)), debiased, x.n, (x.d, y.d), context=context)


def _cross(x: _Arrangement, y: _Arrangement) -> float:
    """``|X'Y|_F^2`` of centred rows, batch by batch."""
    product = np.zeros((x.d, y.d))
    for a, b in zip(x, y, strict=True):
        product += a.T @ b
    return _squared(product)


def _squared(matrix: np.ndarray) -> float:
    return float(np.vdot(matrix, matrix))


def _unbiased(product: float, norms: float, trace_one: float, trace_two: float, n: int) -> float:
    """``n (n - 3)`` times the unbiased HSIC of two centred linear kernels.

    With centred Gram matrices K, L (rows sum to zero) and their diagonals removed, ``tr(K~L~) = product - norms``,
    ``1'K~1 = -tr K`` and ``1'K~L~1 = norms`` (the rows of ``K~`` sum to minus its diagonal), so that
    ``tr(K~L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2 (1'K~L~1) / (n-2)`` needs no n x n matrix.
    """
    return product - norms + trace_one * trace_two / ((n - 1) * (n - 2)) - 2 * norms / (n - 2)
