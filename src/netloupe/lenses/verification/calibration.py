"""Is the network as sure as it is right: confidence against accuracy.

Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599; used by Li et al., arXiv 2210.06313.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.rows import as_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Calibration(Finding):
    """Predictions sorted into bins of equal width by confidence, the largest probability.

    ``counts`` int64, ``confidence`` and ``accuracy`` float64, all ``(bin,)``: number of samples, mean confidence and
    share of right answers; the latter two are NaN in an empty bin. ``chance`` is the error that a perfectly calibrated
    predictor of the same confidences shows on so few samples.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    chance: float

    meanings: ClassVar[dict[str, str]] = {
        "ece": "expected calibration error: mean gap between confidence and accuracy",
        "chance": "what that error is expected to be for perfect calibration with so few samples",
        "largest_gap": "largest gap in a bin",
        "overconfidence": "mean confidence minus accuracy; negative where it is too modest",
        "accuracy": "share of right answers",
    }

    @property
    def ece(self) -> float:
        """``sum_b |B_b| / n |acc_b - conf_b|``, from 0 to 1."""
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        gap = self.confidence - self.accuracy
        n_samples = self.counts.sum()
        return {
            "ece": self.ece,
            "chance": self.chance,
            "largest_gap": float(np.nanmax(np.abs(gap))),
            "overconfidence": float(np.nansum(self.counts * gap) / n_samples),
            "accuracy": float(np.nansum(self.counts * self.accuracy) / n_samples),
        }

    def plot(self, axes: Axes) -> None:
        """Accuracy over confidence, bin by bin; the diagonal is perfect calibration."""
        edges = np.linspace(0, 1, len(self.counts) + 1)
        axes.bar(edges[:-1], np.nan_to_num(self.accuracy), np.diff(edges), align="edge", color="C0", edgecolor="w")
        axes.plot(self.confidence, self.accuracy, "o", color="C1", markersize=3)
        axes.plot([0, 1], [0, 1], "--", color="0.4", linewidth=0.8)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"ECE {self.ece:.3f}")


def expected_calibration_error(
    probs: Float[Tensor, "sample class"] | Any, labels: Int[Tensor, " sample"] | Any, n_bins: int = 15
) -> Calibration:
    """``ECE = sum_b |B_b| / n |accuracy_b - confidence_b|`` over ``n_bins`` bins of equal width.

    Bin ``b`` holds confidences in ``(b / n_bins, (b + 1) / n_bins]``. The answer depends on the number of bins and,
    for few samples, is above 0 even for perfect calibration; ``chance`` tells how far: it takes each bin's hits as
    independent with the stated probabilities and their sum as normal.

    Args:
        probs: ``(sample, class)`` that sum to 1 in each row (softmax of the logits): tensor, array or stored site.
        labels: ``(sample,)`` integers ``0..K-1``.
        n_bins: 15 by default.

    Cost: one pass, O(n K) time; streams. Raises InputError for rows that are no probabilities, labels out of range,
    lengths that do not match and fewer than one bin, NonFiniteError for NaN.
    """
    if n_bins < 1:
        raise InputError(f"n_bins is {n_bins}, expected at least 1")
    if labels is None:
        raise InputError("no labels were given, expected one class index for each row of probabilities; pass labels")
    totals = np.zeros((4, n_bins))  # samples, confidence, hits, variance of the hits under perfect calibration
    for batch in as_rows(probs, labels, ndim=(2,)):
        assert batch.labels is not None
        values = _checked(batch.values.double(), batch.labels)
        confidence, answer = values.max(1)
        bins = (confidence * n_bins).ceil().long().clamp(1, n_bins) - 1
        hits = (answer == batch.labels.to(answer.device)).double()
        parts = (torch.ones_like(confidence), confidence, hits, confidence * (1 - confidence))
        totals += np.stack([torch.bincount(bins, part, n_bins).cpu().numpy() for part in parts])
    counts, confidence, hits, variance = totals
    chance = float(np.sqrt(2 / np.pi * variance).sum() / counts.sum())
    with np.errstate(invalid="ignore"):
        return Calibration(counts.astype(np.int64), confidence / counts, hits / counts, chance)


def _checked(values: Tensor, labels: Tensor) -> Tensor:
    """Rows in ``[0, 1]`` that sum to 1 up to half precision's rounding, with labels among their columns."""
    sums, n_classes = values.sum(1), values.shape[1]
    if bool((values < 0).any()) or bool(((sums - 1).abs() > 5e-3).any()):
        raise InputError(
            f"probs hold values down to {float(values.min()):.3g} and rows that sum to {float(sums.min()):.3g} up to "
            f"{float(sums.max()):.3g}, expected probabilities that sum to 1; apply softmax to logits first"
        )
    if bool((labels < 0).any()) or bool((labels >= n_classes).any()):
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, expected 0 to {n_classes - 1} for "
            f"{n_classes} columns of probs"
        )
    return values.clamp(max=1.0)
