"""How many activations are small: the threshold form of sparsity, for sites that are never exactly zero.

After GELU, SiLU or a linear map no activation is zero, and counting non-zeros says nothing. One threshold for all units, a
share of the site's root mean square, still tells how concentrated it is; it is the rule that Luo et al., "Sparsing Law",
arXiv 2411.02335, compare their own with (which also weighs a unit by what reads it: ``activity.ppl_sparsity``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Moments, Quantiles, Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True, eq=False)
class SmallValues(Finding):
    """``above`` float64 ``(threshold,)``: share of activations whose size is above each of ``thresholds``, which are shares
    of ``rms``; ``error`` bounds the relative error of the sizes that were compared, 0 where they are exact."""

    above: np.ndarray
    thresholds: np.ndarray
    rms: float
    error: float
    n_values: int

    meanings: ClassVar[dict[str, str]] = {
        "above_tenth": "share of activations larger than a tenth of the root mean square",
        "above_hundredth": "share larger than a hundredth of it",
        "above_rms": "share larger than the root mean square itself (0.317 for normal numbers)",
        "rms": "root mean square of the activations",
        "standard_error": "standard error of the first share, activations taken as independent",
    }

    def share_above(self, threshold: float) -> float:
        """The share above one of ``thresholds``."""
        return float(self.above[int(np.argmin(np.abs(self.thresholds - threshold)))])

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        tenth = self.share_above(0.1)
        return {
            "above_tenth": tenth,
            "above_hundredth": self.share_above(0.01),
            "above_rms": self.share_above(1.0),
            "rms": self.rms,
            "standard_error": float(np.sqrt(tenth * (1 - tenth) / self.n_values)),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"{100 * found['above_tenth']:.1f} % (standard error {100 * found['standard_error']:.2g} %) of the activations are "
            f"larger than a tenth of their root mean square of {self.rms:.3g}, {100 * found['above_hundredth']:.1f} % larger than "
            "a hundredth; of normal numbers 92.0 % and 99.2 % would be."
        )

    def plot(self, axes: Axes) -> None:
        """The share above each threshold."""
        axes.semilogx(self.thresholds, self.above, "o-", label="activations")
        axes.semilogx(SHARES, [0.99920, 0.99202, 0.92034, 0.31731], ":", color="0.5", label="normal numbers")
        axes.set(xlabel="threshold, in units of the root mean square", ylabel="share above it", ylim=(0, 1.05))
        axes.legend(frameon=False)


def _conclude(statistics: Mapping[str, Statistic]) -> SmallValues:
    moments, sizes = statistics["moments"], statistics["sizes"]
    assert isinstance(moments, Moments)
    assert isinstance(sizes, Quantiles)
    found, table = moments.result(), sizes.result()
    rms = float(np.sqrt(np.mean(found.variance + found.mean**2)))
    limits = rms * np.array(SHARES)
    above = [float(table.counts[np.abs(table.values) > limit].sum() / table.count) for limit in limits]
    return SmallValues(np.array(above), np.array(SHARES), rms, table.relative_error, table.count)


@lens(
    question="How sparse is it by a threshold: how many activations are small?",
    optional=("mask",),
    invariances=("unit permutation", "sample permutation"),
    statistics={"moments": Moments, "sizes": Quantiles},
    conclude=_conclude,
)
def small_values(
    features: Float[Tensor, "sample unit"] | Float[Tensor, "sample position unit"] | Any, mask: Any = None
) -> SmallValues:
    """Shares of activations above fixed shares of the site's root mean square.

    ``P(|a| > c rms)`` for c in 0.001, 0.01, 0.1, 1 over all units, samples and positions (the threshold rule of arXiv
    2411.02335 with one threshold for a site). 0 everywhere for a site that is always zero.

    Args:
        features: ``(sample, unit)`` or ``(sample, position, unit)``; tensor, array or stored site.
        mask: bool ``(sample, position)``; padding is left out.

    Cost: O(n d), one pass, 512 KiB. Sizes are compared to within 0.4 % (``error``), so that one pass is enough. Raises
    InputError for other shapes, NonFiniteError for NaN.
    """
    statistics: dict[str, Statistic] = {"moments": Moments(), "sizes": Quantiles()}
    for batch in as_rows(features, mask=mask):
        for statistic in statistics.values():
            statistic.update(batch.values, mask=None if batch.mask is None else batch.mask.bool())
    return _conclude(statistics)
