"""How many bits about the label a linear reader, and a small nonlinear one, can use at a site.

Source: usable information, Xu et al., arXiv 2002.10689; probes in :mod:`netloupe.lenses.information.probes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import Rows, as_rows
from netloupe.lenses.information.probes import LinearProbe, MLPProbe, judge, required_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SAMPLES = 2000


@dataclass(frozen=True, eq=False)
class UsableInformation(Finding):
    """What two probes read of samples they were not fitted to: bits about the label, and accuracy.

    Intervals are 95 % bootstrap intervals over the held-out samples. ``chance_accuracy`` and ``chance_bits`` belong to
    the linear probe fitted to permuted labels.
    """

    linear_bits: float
    linear_interval: tuple[float, float]
    linear_accuracy: float
    linear_accuracy_interval: tuple[float, float]
    mlp_bits: float
    mlp_interval: tuple[float, float]
    mlp_accuracy: float
    label_bits: float
    chance_accuracy: float
    chance_bits: float
    n_fitted: int
    n_judged: int

    meanings: ClassVar[dict[str, str]] = {
        "linear_bits": "bits about the label that a linear reader can use, on held-out samples",
        "linear_bits_low": "lower end of its 95 % interval",
        "linear_bits_high": "upper end of its 95 % interval",
        "mlp_bits": "bits about the label that a small nonlinear reader can use",
        "label_bits": "bits that there are to know about the label",
        "linear_accuracy": "share of held-out samples that the linear reader names correctly",
        "mlp_accuracy": "share that the nonlinear reader names correctly",
        "chance_accuracy": "share that a linear reader of permuted labels names correctly",
        "chance_bits": "bits that a linear reader of permuted labels seems to use; about 0",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        low, high = self.linear_interval
        found = {"linear_bits_low": low, "linear_bits_high": high}
        return {name: found[name] if name in found else getattr(self, name) for name in self.meanings}

    def paragraph(self) -> str:
        """The answer in plain words."""
        low, high = self.linear_interval
        return (
            f"A linear reader can use {self.linear_bits:.2f} of the label's {self.label_bits:.2f} bits (95 % interval "
            f"{low:.2f} to {high:.2f}) and names {self.linear_accuracy:.1%} of {self.n_judged} held-out samples "
            f"correctly, where permuted labels give {self.chance_accuracy:.1%}. A small nonlinear reader can use "
            f"{self.mlp_bits:.2f} bits and names {self.mlp_accuracy:.1%}."
        )

    def plot(self, axes: Axes) -> None:
        """Bits that each reader can use, with intervals, beside all there are."""
        rows = [
            ("linear", self.linear_bits, self.linear_interval, "C0"),
            ("nonlinear", self.mlp_bits, self.mlp_interval, "C2"),
        ]
        for place, (_, value, (low, high), color) in enumerate(rows):
            axes.barh(place, value, color=color, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]], capsize=3)
        axes.axvline(self.label_bits, color="0.3", linestyle="--", label=f"all there are, {self.label_bits:.2f}")
        axes.axvline(self.chance_bits, color="C3", linestyle=":", label="linear, permuted labels")
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set(xlabel="bits about the label, on held-out samples")
        axes.invert_yaxis()
        axes.legend(frameon=False, fontsize="small")


@lens(
    question="How many bits about the label can a linear reader use, and how many a small nonlinear one?",
    needs=("features", "labels"),
    pooled=True,
    min_samples=8,
)
def usable_information(
    features: Float[Tensor, "sample unit"] | Any, labels: Int[Tensor, " sample"] | Any, *, random_state: int = 0
) -> UsableInformation:
    """Bits about the label that a linear probe and a small perceptron can use, on samples held out from both.

    ``I_V = H(Y) - min_{f in V} E[-log2 f(x)(y)]`` (arXiv 2002.10689), with the expectation over a held-out quarter and
    the minimum over the other samples: a lower bound up to sampling, which falls below 0 where a probe is misled. A
    third fit, to permuted labels, says what nothing looks like.

    Args:
        features: ``(sample, unit)``: tensor, array or stored site. Above 2,000 samples a random 2,000 are used.
        labels: ``(sample,)`` whole numbers, at least four samples of each class.
        random_state: of the choice of samples, the split and the probes.

    Cost: some hundred passes over at most 2,000 samples, O(n d (K + 32)) each; about 0.4 s for 64 units and 10 classes.
    Raises InputError for other shapes, missing labels, one class or a class of fewer than four; NonFiniteError for NaN.
    """
    values, targets = some_samples(as_rows(features, labels, ndim=(2,), min_samples=8), random_state)
    required_labels(targets)
    linear = judge(LinearProbe(random_state=random_state), values, targets, random_state=random_state)
    mlp = judge(MLPProbe(random_state=random_state), values, targets, random_state=random_state, chance=False)
    return UsableInformation(
        linear.bits, linear.bits_interval, linear.accuracy, linear.accuracy_interval,
        mlp.bits, mlp.bits_interval, mlp.accuracy,
        linear.label_bits, linear.chance_accuracy, linear.chance_bits, linear.n_fitted, len(linear.judged),
    )  # fmt: skip


def some_samples(rows: Rows, random_state: int) -> tuple[Tensor, Tensor | None]:
    """All samples, or a random :data:`MOST_SAMPLES` of them in their order, read batch by batch."""
    n_samples = rows.n_samples
    chosen = np.ones(n_samples, bool)
    if n_samples > MOST_SAMPLES:
        chosen[np.random.default_rng(random_state).permutation(n_samples)[MOST_SAMPLES:]] = False
    picked = torch.from_numpy(chosen)
    parts = [batch.values[picked[batch.samples]] for batch in rows]
    return torch.cat(parts), None if rows.labels is None else rows.labels.cpu()[picked]
