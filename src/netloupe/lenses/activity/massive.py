"""Massive activations: does a single value of a layer outgrow all others, where is it, and by how much?

In trained transformers a few scalars of the residual stream become thousands of times larger than the rest, in fixed units
and on the first or on delimiter tokens. Definition of a massive scalar: Sun et al., arXiv 2402.17762; the ratio that is
followed over training: Gallego-Feliciano et al., "Hidden Dynamics of Massive Activations in Transformer Training", arXiv
2508.03616. Measure it on the output of whole blocks, after the residual sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding, Place
from netloupe.core.intervene import Edit, clamp
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Statistic
from netloupe.lenses.activity.massive_tracker import (
    ABS_MIN,
    RATIO_MIN,
    MassiveResult,
    MassiveTracker,
    extremes,
    gaussian_reference,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Massive",
    "MassiveTracker",
    "gaussian_reference",
    "is_massive",
    "massive",
    "massive_of",
    "massive_stats",
    "pin",
]


def massive_stats(
    h: Float[Tensor, "... position unit"], k: int = 3, dims: tuple[int, int] = (-2, -1)
) -> dict[str, Tensor]:
    """The largest absolute values of each sample, the median of all of them, and where the largest are.

    Args:
        h: activations; everything along ``dims`` is one sample, other axes are kept.
        k: how many of the largest.
        dims: the axes of positions and of units.

    Returns:
        ``top`` ``(..., k)``, largest first; ``median`` ``(...)``, the mean of the two middle values where their number is
        even (numpy's convention; ``torch.median`` takes the lower one); ``ratio`` ``(...)``, the first over the second,
        infinite where more than half of the values are zero; ``where`` ``(..., k, 2)``, int64 places along ``dims``.

    In float32 at least: bfloat16 would round the largest value to 8 bits. Cost: O(values). Raises InputError for fewer than
    two values in a sample, ``k`` beyond them or axes that are not two; NonFiniteError for NaN.
    """
    values = torch.as_tensor(h).detach()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if values.ndim < 2 or len({dim % values.ndim for dim in dims}) != 2:
        raise InputError(
            f"h has shape {tuple(values.shape)} and dims is {dims}, expected (..., position, unit) and two axes"
        )
    moved = values.movedim(dims, (-2, -1))
    n_units = moved.shape[-1]
    flat = moved.reshape(*moved.shape[:-2], -1).abs()
    n = flat.shape[-1]
    if n < 2 or not 1 <= k <= n or flat.numel() == 0:
        raise InputError(f"a sample has {n} values and k is {k}; at least 2 values, and k of them, are needed")
    if not bool(torch.isfinite(flat.sum())) and not bool(torch.isfinite(flat).all()):
        raise NonFiniteError("h holds NaN or infinity; repair the network or drop the sample")
    if flat.device.type == "cpu":
        found = extremes(flat.reshape(-1, n).contiguous().numpy(), k)
        top, places, median = (torch.from_numpy(each).reshape((*flat.shape[:-1], *each.shape[1:])) for each in found)
        top, median = top.to(flat.dtype), median.to(flat.dtype)
    else:
        top, places = flat.topk(k, -1)
        high = flat.kthvalue(n // 2 + 1, -1, keepdim=True).values
        below = flat < high
        lower = torch.where(below, flat, -1.0).amax(-1, keepdim=True)  # the value before, where it is another
        low = torch.where((n % 2 == 0) & (below.sum(-1, keepdim=True) == n // 2), lower, high)
        median = ((low + high) / 2)[..., 0]
    where = torch.stack([places // n_units, places % n_units], -1)
    ratio = torch.where(median > 0, top[..., 0] / median, torch.inf)
    return {"top": top, "median": median, "ratio": ratio, "where": where}


def is_massive(
    h: Float[Tensor, "... position unit"], abs_min: float = ABS_MIN, ratio_min: float = RATIO_MIN
) -> Bool[Tensor, "... position unit"]:
    """Which scalars are massive: ``|a| > abs_min`` and ``|a| >= ratio_min`` times the median of ``|a|`` over their sample.

    The last two axes are one sample (arXiv 2402.17762; both conditions). Small networks never have one: compare ratios.
    Errors as in :func:`massive_stats`.
    """
    values = torch.as_tensor(h)
    median = massive_stats(values, 1)["median"][..., None, None]
    size = values.detach().abs().to(median.dtype)
    return (size > abs_min) & (size >= ratio_min * median)


def pin(site: str, values: Mapping[tuple[int, int], float] | Sequence[tuple[int, int, float]]) -> tuple[Edit, ...]:
    """Edits that set single scalars of a site, for :func:`netloupe.intervene`.

    ``values``: ``{(position, unit): value}`` or rows ``(position, unit, value)``. Zeroing massive scalars breaks a large model,
    setting them to their mean over data leaves it as it was (arXiv 2402.17762).
    """
    rows = [(p, u, v) for (p, u), v in values.items()] if isinstance(values, Mapping) else list(values)
    if not rows:
        raise InputError("no scalars were given to pin; at least one (position, unit) with its value is needed")
    return tuple(clamp(site, float(v), float(v), units=[int(u)], positions=[int(p)]) for p, u, v in rows)


RECTIFIED = 0.1  # from this share of exact zeros the paragraph warns that the median is one of a rectified site


@dataclass(frozen=True, eq=False)
class Massive(Finding):
    """How far the largest values of a site stand out.

    ``top`` ``(rank,)``: the largest absolute values of a sample, averaged over samples; ``median``: the same of the medians;
    ``reference``: their quotient for as many independent normal numbers. ``error``: standard error of the quotient. The largest
    scalars of all data: ``values`` ``(place,)``, signed, with ``samples``, ``positions`` and ``units``. ``unit_counts`` ``(unit,)`` and
    ``position_counts`` ``(position,)``: in how many samples the largest value is there. ``massive_counts`` ``(unit,)``: scalars that
    pass the strict definition; ``n_massive_samples`` samples have one. ``zero_share``: share of values that are exactly zero.
    """

    top: np.ndarray
    median: float
    reference: float
    error: float
    values: np.ndarray
    samples: np.ndarray
    positions: np.ndarray
    units: np.ndarray
    unit_counts: np.ndarray
    position_counts: np.ndarray
    massive_counts: np.ndarray
    n_massive_samples: int
    zero_share: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "ratio": "largest absolute value over the median one, means over samples",
        "ratio_to_gaussian": "the same over what independent normal numbers would give: 1 is nothing special",
        "standard_error": "standard error of the ratio over samples",
        "top1": "largest absolute value of a sample, on average",
        "median": "median absolute value of a sample, on average",
        "massive_units": "units that hold a massive scalar in the strict sense (above 100 and 1000 medians)",
        "massive_samples": "share of samples with a massive scalar",
        "zero_share": "share of values that are exactly zero: they lower the median, and with it raise the ratio",
        "busiest_unit_share": "share of samples whose largest value is in one and the same unit",
        "busiest_position_share": "share of samples whose largest value is at one and the same position",
    }

    @property
    def ratio(self) -> float:
        """``mean top1 / mean median``; infinite where more than half of the values are zero."""
        return float(self.top[0] / self.median) if self.median > 0 else math.inf

    @property
    def dead(self) -> bool:
        """Whether every value is zero."""
        return bool(self.top[0] == 0)

    @property
    def massive_units(self) -> np.ndarray:
        """Units with a massive scalar, most first."""
        order = np.argsort(-self.massive_counts, kind="stable")
        return order[self.massive_counts[order] > 0]

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; no ratio where the median is zero."""
        found = {
            "ratio": self.ratio,
            "ratio_to_gaussian": self.ratio / self.reference,
            "standard_error": self.error,
            "top1": float(self.top[0]),
            "median": self.median,
            "massive_units": float((self.massive_counts > 0).sum()),
            "massive_samples": self.n_massive_samples / self.n_samples,
            "zero_share": self.zero_share,
            "busiest_unit_share": float(self.unit_counts.max() / self.n_samples),
            "busiest_position_share": float(self.position_counts.max() / self.n_samples),
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def paragraph(self) -> str:
        """The answer in plain words."""
        unit, position = int(self.unit_counts.argmax()), int(self.position_counts.argmax())
        where = (
            f"In {self.unit_counts[unit] / self.n_samples:.0%} of the samples the largest value is in unit {unit}, in "
            f"{self.position_counts[position] / self.n_samples:.0%} at position {position}."
        )
        if self.dead:
            return "Every value is zero: the site is dead."
        if not math.isfinite(self.ratio):
            return f"More than half of the values are exactly zero, so that their median is 0 and no ratio is defined. {where}"
        strict = (
            f"Units {', '.join(map(str, self.massive_units[:5].tolist()))} hold massive values in "
            f"{self.n_massive_samples / self.n_samples:.0%} of the samples."
            if self.n_massive_samples
            else "None is massive in the strict sense."
        )
        rectified = (
            f" But {self.zero_share:.0%} of the values are exactly zero, as behind a ReLU: they lower the median, and the ratio "
            "says little here; look at the whole block's output instead."
            if self.zero_share > RECTIFIED
            else ""
        )
        return (
            f"The largest value of a sample is {self.ratio:.4g} (standard error {self.error:.2g}) times the median one, "
            f"{self.ratio / self.reference:.3g} times what independent normal numbers would give. {where} {strict}{rectified}"
        )

    def places(self) -> list[Place]:
        """The largest scalars of all data."""
        found = zip(self.values, self.samples, self.positions, self.units, strict=True)
        return [Place(float(value), int(sample), int(position), int(unit)) for value, sample, position, unit in found]

    def plot(self, axes: Axes) -> None:
        """The mean largest values by rank beside the median, on a logarithmic axis, with the normal reference."""
        names = [f"top {rank + 1}" for rank in range(len(self.top))] + ["median"]
        heights = [*self.top.tolist(), self.median]
        axes.bar(names, heights, color=["C0"] * len(self.top) + ["C7"])
        if self.median > 0:
            expected = self.reference * self.median
            axes.axhline(expected, color="C1", linestyle="--", label="top 1 of as many normal numbers")
            axes.legend(frameon=False, fontsize="small")
            axes.set_yscale("log")
        axes.set_ylabel("absolute value")


def massive_of(result: MassiveResult) -> Massive:
    """The finding from what a :class:`MassiveTracker` has seen (``observe``, a cluster, a training history)."""
    return Massive(
        top=result.top,
        median=result.median,
        reference=result.reference,
        error=result.error,
        values=result.largest_values,
        samples=result.largest_samples,
        positions=result.largest_positions,
        units=result.largest_units,
        unit_counts=result.unit_counts,
        position_counts=result.position_counts,
        massive_counts=result.massive_counts,
        n_massive_samples=result.n_massive_samples,
        zero_share=result.zero_share,
        n_samples=result.n_samples,
    )


def _conclude(statistics: Mapping[str, Statistic]) -> Massive:
    tracker = statistics["massive"]
    assert isinstance(tracker, MassiveTracker)
    return massive_of(tracker.result())


@lens(
    question="Do single values outgrow all others, and in which units and places?",
    optional=("mask",),
    invariances=("unit permutation", "sample permutation"),
    statistics={"massive": MassiveTracker},
    conclude=_conclude,
)
def massive(
    features: Float[Tensor, "sample position unit"] | Float[Tensor, "sample unit"] | Any,
    mask: Any = None,
    *,
    k: int = 3,
    n_places: int = 8,
    abs_min: float = ABS_MIN,
    ratio_min: float = RATIO_MIN,
) -> Massive:
    """How far a site's largest values stand above its median, which units and positions hold them, and on which samples.

    With ``top1`` and ``med`` the largest and the median absolute value of one sample (over positions times units):
    ``ratio = mean top1 / mean med``, a ratio of means (arXiv 2508.03616, eq. 8), also over ``E max|z| / median|z|`` of as many
    standard normals. A scalar is massive where it exceeds ``abs_min`` and ``ratio_min`` medians (arXiv 2402.17762).

    Args:
        features: ``(sample, position, unit)`` or ``(sample, unit)``: tensor, array or stored site, best a whole block's output
            after the residual sum; inside a block or behind a norm the numbers are others.
        mask: bool ``(sample, position)``; padding is left out.
        k, n_places: largest values of a sample that are averaged, and scalars of all data that are kept with their places.
        abs_min, ratio_min: the strict definition.

    Cost: one pass, two readings of the values; streams. Raises InputError for other shapes, no samples and samples with
    fewer than ``k`` or two values; NonFiniteError for NaN.
    """
    tracker = MassiveTracker(k, n_places, abs_min, ratio_min)
    for batch in as_rows(features, mask=mask):
        tracker.update(batch.values, mask=batch.mask, samples=batch.samples)
    return massive_of(tracker.result())
