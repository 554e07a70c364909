"""What one look at a site during training tells of its health: a handful of numbers from a subset of its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MOST_ROWS = 4096  # rows that are looked at for units that never change
SPECTRUM_ROWS = 192  # rows whose spectrum is taken: bounds the cost whatever the batch
_VALUES = 1 << 16  # values whose median is taken


@dataclass(frozen=True)
class Vitals:
    """One site at one step.

    rms : root of the mean squared activation. largest : largest absolute value; ratio : over the median absolute value
    (infinity where more than half are zero). dimension : participation ratio ``(tr C)^2 / tr C^2`` of the covariance, the
    number of directions in which the rows really differ. spread : of the unit that varies most for its size, the share of
    its mean square that is not the same in every row. constant : ``(unit,)`` whether the unit had the same value in every
    row. finite : no NaN and no infinity.
    """

    rms: float
    largest: float
    ratio: float
    dimension: float
    spread: float
    constant: Bool[Tensor, " unit"]
    finite: bool
    n_rows: int

    def numbers(self) -> dict[str, float]:
        """What a history keeps."""
        return {
            "rms": self.rms, "largest": self.largest, "ratio": self.ratio, "dimension": self.dimension,
            "constant_share": float(self.constant.float().mean()),
        }  # fmt: skip


def rows_of(raw: Tensor, unit_axis: int | None) -> Float[Tensor, "row unit"]:
    """Every sample and position as a row of units, detached."""
    raw = raw.detach()
    return raw.reshape(-1, 1) if unit_axis is None else raw.movedim(unit_axis, -1).reshape(-1, raw.shape[unit_axis])


def evenly(rows: Float[Tensor, "row unit"], most: int) -> Float[Tensor, "kept unit"]:
    """At most ``most`` rows, evenly spread: no random state is touched."""
    if len(rows) <= most:
        return rows
    return rows[torch.arange(most, device=rows.device) * len(rows) // most]


def vitals(rows: Float[Tensor, "row unit"]) -> Vitals:
    """Measures rows of one site, on their own device; half precision is widened to float32.

    Cost: one reading of at most 4,096 rows, and ``192^2`` inner products of width ``unit``.
    """
    kept = evenly(rows, MOST_ROWS)
    kept = kept if kept.dtype in (torch.float32, torch.float64) else kept.float()
    low, high = torch.aminmax(kept, dim=0)
    largest = float(torch.maximum(high.max(), -low.min()))
    constant = (low == high).cpu()
    few = evenly(kept, SPECTRUM_ROWS)
    rms = float(few.square().mean().sqrt())
    finite = bool(torch.isfinite(low).all() & torch.isfinite(high).all())
    if not finite:
        return Vitals(rms, largest, float("nan"), float("nan"), float("nan"), constant, False, len(kept))
    sizes = few.abs().flatten()
    sizes = sizes[:: max(1, len(sizes) // _VALUES)]
    middle = float(sizes.median())
    ratio = largest / middle if middle > 0 else float("inf") if largest > 0 else 0.0
    centred = few - few.mean(0)
    gram = centred @ centred.T if len(few) <= few.shape[1] else centred.T @ centred
    trace, squared = float(gram.diagonal().double().sum()), float(gram.double().square().sum())
    dimension = trace * trace / squared if squared > 0 else 0.0
    squares = few.square().sum(0).clamp_min(torch.finfo(few.dtype).tiny)
    spread = float((centred.square().sum(0) / squares).max())
    return Vitals(rms, largest, ratio, dimension, spread, constant, True, len(kept))
