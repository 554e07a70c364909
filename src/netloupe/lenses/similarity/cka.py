"""Centred kernel alignment: do two sites arrange the same samples alike?

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414; the debiased form
follows Song et al. (2012) and Nguyen et al., arXiv 2010.15327.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from netloupe.core.arrangement import Arrangement, aligned_rows, alignment
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    x, y = (Arrangement(rows) for rows in aligned_rows([features, other], ("features", "other")))
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
    sites = [Arrangement(rows) for rows in aligned_rows(features, [f"features {i}" for i in range(len(features))])]
    varying = [index for index, site in enumerate(sites) if site.varies]
    context = Context()
    return {(i, j): _between(sites[i], sites[j], context) for i, j in combinations(varying, 2)}


def _between(x: Arrangement, y: Arrangement, context: Context) -> CKA:
    found = alignment(x, y)
    return CKA(found.biased, found.debiased, x.n, (x.d, y.d), context=context)
