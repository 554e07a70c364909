"""Directions that turn a feature on, and how far one must go along them.

Source: the causal test of Lampinen, Chan and Hermann, arXiv 2405.05847: a feature that takes little variance may be
flipped by a small step. Arrays and the rest of the network as a function; no hook is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.nulls import random_direction
from netloupe.core.rows import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLIPPED = 0.9


@dataclass(frozen=True, eq=False)
class FlipCurve(Finding):
    """What happens to yes/no outputs as samples with the feature off move along its direction.

    ``norms`` float64 ``(step,)``: length of the move. ``flipped``: share whose output turned to yes. ``intact``: share of the
    least preserved other output that stayed right (1 where there is no other). ``random``: share flipped by random
    directions of the same length.
    """

    norms: Float[np.ndarray, " step"]
    flipped: Float[np.ndarray, " step"]
    intact: Float[np.ndarray, " step"]
    random: Float[np.ndarray, " step"]
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "norm_to_flip": "length of the move that flips nine samples in ten (the longest tried where none does)",
        "flip_rate": "share flipped by that move",
        "others_intact": "accuracy of the least preserved other output after that move",
        "random_flip_rate": "share flipped by random moves of that length",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains, at the move that flips nine in ten, interpolated."""
        reached = np.flatnonzero(self.flipped >= FLIPPED)
        last = int(reached[0]) if len(reached) else len(self.norms) - 1
        norm = float(self.norms[last])
        if len(reached) and last > 0:
            low, high = self.flipped[last - 1], self.flipped[last]
            norm = float(self.norms[last - 1] + (FLIPPED - low) / (high - low) * (norm - self.norms[last - 1]))
        at = [float(np.interp(norm, self.norms, curve)) for curve in (self.flipped, self.intact, self.random)]
        return dict(zip(self.meanings, [norm, *at], strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"A move of length {found['norm_to_flip']:.3g} flips {100 * found['flip_rate']:.0f} % of {self.n_samples} samples and "
            f"leaves the other outputs {100 * found['others_intact']:.0f} % right; random moves of that length flip "
            f"{100 * found['random_flip_rate']:.1f} %."
        )

    def plot(self, axes: Axes) -> None:
        """The three curves."""
        axes.plot(self.norms, self.flipped, "o-", label="flipped")
        axes.plot(self.norms, self.intact, "s--", label="others right")
        axes.plot(self.norms, self.random, ":", color="0.4", label="flipped by random moves")
        axes.set(xlabel="length of the move", ylabel="share of samples", ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize="small")


def mean_difference_direction(
    features: Float[Tensor, "sample unit"] | Any, labels: Int[Tensor, " sample"] | Any
) -> Float[Tensor, " unit"]:
    """``mean(x | label = 1) - mean(x | label = 0)``, float64 ``(unit,)``: the move that carries one mean onto the other.

    Args:
        features: ``(sample, unit)``. labels: ``(sample,)`` of 0 and 1.

    Cost: one pass, O(n d); streams. Raises InputError for other labels or only one of the two.
    """
    rows = as_rows(features, labels, ndim=(2,), min_samples=2)
    if rows.labels is None or not set(rows.labels.unique().tolist()) == {0, 1}:
        raise InputError("labels must be given and hold both 0 and 1, for a difference of two means is asked for")
    sums = torch.zeros(2, rows.n_units, dtype=torch.float64)
    for batch in rows:
        assert batch.labels is not None
        sums.index_add_(0, batch.labels.long(), batch.values.double())
    counts = torch.bincount(rows.labels.long(), minlength=2)
    means = sums / counts[:, None]
    return means[1] - means[0]


def flip_curve(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, "sample feature"] | Any,
    predict: Callable[[Tensor], Tensor],
    feature: int = 0,
    *,
    direction: Float[Tensor, " unit"] | None = None,
    sizes: Sequence[float] = tuple(np.linspace(0, 2, 21)),
    n_random: int = 5,
    random_state: int = 0,
) -> FlipCurve:
    """Flip rate of one output, and what becomes of the others, as ``a * direction`` is added to samples with the feature off.

    Args:
        features: ``(sample, unit)``. labels: ``(sample, feature)`` of 0 and 1, what each output should say.
        predict: the rest of the network: ``(sample, unit)`` to logits ``(sample, feature)``, yes where positive.
        direction: default :func:`mean_difference_direction` of the feature. sizes: the multiples ``a``, rising from 0.
        n_random: random directions (same length, :func:`netloupe.core.nulls.random_direction`), averaged.

    Cost: ``len(sizes) (1 + n_random)`` calls of ``predict``; all samples in memory. Raises InputError for shapes that do not
    fit, sizes that do not rise, a direction of zero, or no sample with the feature off and predicted so.
    """
    x = as_rows(features, ndim=(2,), min_samples=2).array()
    y = torch.as_tensor(labels).long()
    if y.ndim != 2 or len(y) != len(x) or not 0 <= feature < y.shape[1]:
        raise InputError(
            f"labels have shape {tuple(y.shape)} and feature is {feature}, expected (sample, feature) for {len(x)} samples"
        )
    steps = np.asarray(sizes, dtype=float)
    if len(steps) < 2 or (np.diff(steps) <= 0).any() or n_random < 1:
        raise InputError(
            f"sizes are {steps.tolist()[:4]}... with {n_random} random directions; rising sizes and one are needed"
        )
    move = mean_difference_direction(x, y[:, feature]) if direction is None else torch.as_tensor(direction)
    if move.shape != x.shape[1:] or not bool(move.any()):
        raise InputError(
            f"the direction has shape {tuple(move.shape)}, expected {x.shape[1]} units that are not all zero"
        )
    with torch.no_grad():
        kept = (y[:, feature] == 0) & (predict(x)[:, feature] <= 0)
        if not bool(kept.any()):
            raise InputError("no sample has the feature off and is predicted so; there is nothing to flip")
        x, y = x[kept], y[kept]
        others = [index for index in range(y.shape[1]) if index != feature]
        curves = []
        for way in [move, *(random_direction(move, random_state + index) for index in range(n_random))]:
            said = [predict(x + float(a) * way.to(x.dtype)) > 0 for a in steps]
            flipped = [float(each[:, feature].double().mean()) for each in said]
            right = [[float((each[:, j] == y[:, j].bool()).double().mean()) for j in others] for each in said]
            curves.append((flipped, [min(row, default=1.0) for row in right]))
    chance = np.mean([flipped for flipped, _ in curves[1:]], axis=0)
    norms = steps * float(move.double().norm())
    return FlipCurve(norms, np.array(curves[0][0]), np.array(curves[0][1]), chance, len(x))
