"""Bits about the label at any site, beside what labels in random order give.

Source: Chelombiev, Houghton and O'Donnell, arXiv 1902.09037, for the default estimator; a plug-in estimate grows with the
number of symbols even for meaningless labels, so it is never shown without that chance level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.nulls import permutations
from netloupe.core.rows import as_rows
from netloupe.lenses.information import estimators
from netloupe.lenses.information.mutual_information import Estimator, SymbolEstimator, as_estimator

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class LabelInformation(Finding):
    """Information about the label, in bits. ``null`` float64 ``(permutation,)``: the same with labels in random order."""

    bits: float
    """the estimate of I(T;Y)"""
    entropy: float
    """the estimate of I(X;T), which is H(T) for distinct inputs; NaN where the estimator has none"""
    label_entropy: float
    null: Float[np.ndarray, " permutation"]
    n_samples: int
    n_units: int
    estimator: str
    exact: bool

    meanings: ClassVar[dict[str, str]] = {
        "bits_above_chance": "bits about the label, less what labels in random order give",
        "chance_spread": "standard deviation of that chance level over random orders",
        "bits": "bits about the label as estimated, chance included",
        "chance_bits": "bits that labels in random order give",
        "p_value": "how often a random order gives as many bits",
        "label_entropy": "bits that would name every label",
        "entropy": "bits about the input that survive the estimator's resolution",
        "entropy_share": "these bits as a share of their ceiling, log2 of the number of samples",
        "saturated": "1 where (nearly) every sample is its own symbol, so that the estimate says nothing",
    }

    @property
    def saturated(self) -> bool:
        """Whether the entropy is within 0.1 bits of its ceiling."""
        return estimators.saturated(self.entropy, self.n_samples)

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains, without those that the estimator does not have."""
        found = {
            "bits_above_chance": round(self.bits - float(self.null.mean()), 12),  # equal sums differ by rounding
            "chance_spread": float(self.null.std(ddof=1)),
            "bits": self.bits,
            "chance_bits": float(self.null.mean()),
            "p_value": float((1 + (self.null >= self.bits - 1e-12).sum()) / (1 + len(self.null))),
            "label_entropy": self.label_entropy,
            "entropy": self.entropy,
            "entropy_share": self.entropy / float(np.log2(self.n_samples)),
            "saturated": float(self.saturated),
        }
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        text = (
            f"By the estimator {self.estimator}, the site carries {found['bits_above_chance']:.3g} bits about the label "
            f"above chance (of {self.label_entropy:.3g}; estimated {self.bits:.3g}, labels in random order give "
            f"{found['chance_bits']:.3g} ± {found['chance_spread']:.2g}; p = {found['p_value']:.3g})."
        )
        if self.saturated:
            text += (
                f" It is saturated: {self.n_samples} samples of {self.n_units} units are (nearly) all different at this "
                "resolution, so this number cannot tell; use fewer units, more samples, or diffusion entropy."
            )
        elif np.isfinite(self.entropy):
            text += f" {self.entropy:.3g} of {np.log2(self.n_samples):.3g} bits about the input survive."
        return text if self.exact else text + " The bin edges come from a sample of the different values."

    def plot(self, axes: Axes) -> None:
        """The estimate beside its chance level, its random orders and the label's entropy."""
        names = ["measured", "chance"]
        axes.barh(names, [self.bits, float(self.null.mean())], color=["C0", "C7"], height=0.6)
        axes.plot(self.null, np.full(len(self.null), "chance"), "|", color="black", alpha=0.4, markersize=14)
        axes.axvline(self.label_entropy, color="C1", linestyle="--", label=f"all labels {self.label_entropy:.2f}")
        axes.set(
            xlabel=f"bits about the label ({self.estimator}{', saturated' if self.saturated else ''})",
            xlim=(min(0.0, self.bits, float(self.null.min())), 1.15 * max(self.label_entropy, self.bits, 1e-9)),
        )
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="lower right")


@lens(
    question="How many bits about the label does it carry?",
    needs=("features", "labels"),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "sample permutation", "scale"),
)
def label_information(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    estimator: str | Estimator = "ebab",
    *,
    n_permutations: int = 100,
    random_state: int = 0,
) -> LabelInformation:
    """Mutual information between a layer and the labels, and what chance gives, in bits.

    ``I(T;Y) = H(T) - sum_y p(y) H(T|Y=y)`` where T is the layer at the estimator's resolution; by default 30 bins of
    equally many different values, shared by the layer's units (arXiv 1902.09037). The leading number subtracts the mean
    over labels in random order: a plug-in estimate is biased upwards, by about ``(symbols - 1)(classes - 1) / (2 n ln
    2)``. Where labels do matter the bias is smaller than that, so the difference errs on the low side.

    Args:
        features: ``(sample, unit)`` of distinct inputs; tensor, array or stored site.
        labels: whole numbers ``(sample,)``, at least two of each class.
        estimator: ``ebab``, ``binned``, ``akde``, ``kde``, ``diffusion``, ``knn``, or an :class:`Estimator` with options.
        n_permutations: random orders of the labels, drawn from ``random_state``.

    Cost: O(n d log(n d)) and two passes for bins, O(n) for each random order; the other estimators compare all pairs
    of samples and state their limits. The declared invariances are those of ``ebab``. Raises InputError for other
    shapes, classes of one sample, a single class, or too many samples; NonFiniteError for NaN.
    """
    rows, chosen = as_rows(features, labels, ndim=(2,), min_samples=4), as_estimator(estimator)
    if n_permutations < 2:
        raise InputError(f"n_permutations is {n_permutations}, at least 2 are needed for a chance level")
    classes = estimators.class_labels(rows)
    sizes = np.bincount(classes)
    if len(sizes) < 2:
        raise InputError("all labels are equal, so nothing can be told about them; give at least 2 classes")
    if isinstance(chosen, SymbolEstimator):
        entropy, bits, null, exact = _counted(rows.source, classes, chosen, n_permutations, random_state)
    else:
        entropy, bits, null, exact = _repeated(rows.source, classes, chosen, n_permutations, random_state)
    options = {"estimator": repr(chosen), "n_permutations": n_permutations}
    return LabelInformation(
        bits, entropy, estimators.entropy_of_counts(sizes), null, rows.n_samples, rows.n_units, chosen.name,
        exact, context=Context(n_samples=rows.n_samples, seed=random_state, options=options),
    )  # fmt: skip


def _counted(
    features: Any, classes: np.ndarray, estimator: SymbolEstimator, n_permutations: int, seed: int
) -> tuple[float, float, np.ndarray, bool]:
    """For symbols, chance depends on how often each symbol and each class occurs and on nothing else."""
    edges, exact = estimator.edges(features)
    symbols = estimators.row_symbols(features, edges)
    bits = estimators.symbol_information(symbols, classes)
    sizes = np.sort(np.unique(symbols, return_counts=True)[1])
    sorted_symbols = np.repeat(np.arange(len(sizes)), sizes)
    sorted_classes = torch.from_numpy(np.repeat(np.arange(classes.max() + 1), np.sort(np.bincount(classes))))
    shuffled = permutations(sorted_classes, n_permutations, seed)
    null = np.array([estimators.symbol_information(sorted_symbols, order.numpy()) for order in shuffled])
    return estimators.entropy_of_counts(sizes), bits, null, exact


def _repeated(
    features: Any, classes: np.ndarray, estimator: Estimator, n_permutations: int, seed: int
) -> tuple[float, float, np.ndarray, bool]:
    """Any estimator, asked again with the labels of each order."""
    orders = [order.numpy() for order in permutations(torch.from_numpy(classes), n_permutations, seed)]
    entropy, bits = estimator.over_labelings(features, np.stack([classes, *orders]))
    return entropy, float(bits[0]), bits[1:], True
