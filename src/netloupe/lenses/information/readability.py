"""How much of a later site a linear reader of an earlier one can already tell: one step of feature complexity.

Source: Fel et al., "Understanding Visual Feature Reliance through the Lens of Complexity", arXiv 2407.06076.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from netloupe.core.alignment import paired_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.lenses.information.vinfo import FITTED, held_out_share, split_masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_UNITS = 512
"""a wider site is projected at random to so many units"""


@dataclass(frozen=True, eq=False)
class Readability(Finding):
    """What a linear reader of one site explains of each unit of another, on held-out samples.

    ``per_unit`` float64 ``(unit,)``: R^2, not clipped; NaN for units that do not vary. Its mean has a 95 % interval over
    units.
    """

    per_unit: Float[np.ndarray, " unit"]
    n_fitted: int
    n_judged: int

    meanings: ClassVar[dict[str, str]] = {
        "readable": "share of the later site's variance, unit by unit, that a linear reader of the earlier one explains",
        "readable_error": "standard error of that mean over units",
        "readable_least": "the same for the unit that is hardest to read",
        "readable_half": "share of units of which at least half is explained",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; R^2 clipped to [0, 1]."""
        found = np.clip(self.per_unit[np.isfinite(self.per_unit)], 0, 1)
        spread = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
        return {
            "readable": float(found.mean()),
            "readable_error": float(spread),
            "readable_least": float(found.min()),
            "readable_half": float((found >= 0.5).mean()),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"A linear reader of the earlier site explains {found['readable']:.1%} (standard error {found['readable_error']:.1%}) "
            f"of the later site's variance, unit by unit, on {self.n_judged} held-out samples; of the unit that is hardest to "
            f"read {found['readable_least']:.1%}."
        )

    def plot(self, axes: Axes) -> None:
        """Every unit's share, the hardest to read first."""
        found = np.sort(np.clip(self.per_unit[np.isfinite(self.per_unit)], 0, 1))
        axes.plot(np.arange(1, len(found) + 1), found, "o-", markersize=3)
        axes.set(xlabel="unit, hardest to read first", ylabel="share of variance explained", ylim=(-0.02, 1.02))


@lens(
    question="How much of a later site can a linear reader of an earlier one already tell?",
    needs=("features", "other"),
    pooled=True,
    min_samples=40,
    invariances=("unit permutation", "scale", "translation"),
)
def linear_readability(
    features: Float[Tensor, "sample unit"] | Any,
    other: Float[Tensor, "sample unit_other"] | Any,
    *,
    alpha: float = 1.0,
    random_state: int = 0,
) -> Readability:
    """Held-out R^2 of each unit of ``other`` from all of ``features``: V-information of a linear Gaussian reader.

    One step of feature complexity (arXiv 2407.06076), with the later site's units as features: near 1 where the layers
    between only rotate or rescale, low where they compute something new.

    Args:
        features: the earlier site, ``(sample, unit)``. Beyond 512 units it is projected at random to 512.
        other: the later site, ``(sample, unit)`` of the same samples; beyond 512 units every so-manieth is taken.
        alpha: ridge penalty on standardised units. random_state: of the split (a quarter is judged) and the projection.

    Cost: two passes, O(n d (d + k) + d^3) with d and k at most 512; streams. Raises InputError for other shapes, fewer than 40
    samples, and a site that does not vary; NonFiniteError for NaN.
    """
    x, z = paired_rows(features, other, min_samples=40)
    masks = split_masks(FITTED, x.n_samples, random_state)
    d, k = x.n_units, z.n_units
    if d > MOST_UNITS or k > MOST_UNITS:
        draw = np.random.default_rng(random_state)
        mix = torch.from_numpy(draw.standard_normal((d, MOST_UNITS)) / np.sqrt(d)) if d > MOST_UNITS else None
        units = torch.arange(k) if k <= MOST_UNITS else torch.linspace(0, k - 1, MOST_UNITS).round().long()
        narrow = [(b.values.double() @ mix if mix is not None else b.values.double()) for b in x]
        features, other = torch.cat(narrow), torch.cat([b.values[:, units] for b in z])
    found = held_out_share(features, other, alpha, masks)
    if np.isnan(found).all():
        raise InputError("the later site is the same for every sample, so there is nothing of it to read")
    if not np.isfinite(found).any() or _constant(x):
        raise InputError("the earlier site is the same for every sample, so nothing can be read from it")
    return Readability(found, int(masks[0].sum()), int(masks[1].sum()))


def _constant(rows: Any) -> bool:
    first = next(iter(rows)).values[:1]
    return all(bool((batch.values == first).all()) for batch in rows)
