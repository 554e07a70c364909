"""How much each dictionary feature of the last layer moves the decision: gradient times input, in closed form.

Source: Fel et al., "Understanding Visual Feature Reliance through the Lens of Complexity", arXiv 2407.06076.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reduce = Literal["mean", "predicted", "true"]


@dataclass(frozen=True, eq=False)
class FeatureImportance(Finding):
    """What features add to logits.

    ``importance`` float64 ``(feature,)``: mean absolute contribution; ``signed``: the mean of the contribution itself, below 0
    for a feature that inhibits.
    """

    importance: Float[np.ndarray, " feature"]
    signed: Float[np.ndarray, " feature"]
    reduce: str

    meanings: ClassVar[dict[str, str]] = {
        "top_share": "share of all importance that the most important tenth of features has",
        "largest": "mean absolute contribution of the most important feature to a logit",
        "inhibiting": "share of features that lower the logit on average",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        ordered = np.sort(self.importance)[::-1]
        total, n_top = float(ordered.sum()), max(1, len(ordered) // 10)
        return {
            "top_share": float(ordered[:n_top].sum() / total) if total else 0.0,
            "largest": float(ordered[0]),
            "inhibiting": float((self.signed < 0).mean()),
        }

    def plot(self, axes: Axes) -> None:
        """Importance of every feature, largest first; inhibiting ones in another colour."""
        order = np.argsort(self.importance)[::-1]
        colors = np.where(self.signed[order] < 0, "C3", "C0").tolist()
        axes.bar(range(len(order)), self.importance[order], color=colors, width=1.0)
        axes.set(xlabel="feature, most important first (red: lowers the logit)", ylabel="mean absolute contribution")


def gradient_x_input(
    z: Float[Tensor, "sample feature"] | Any,
    dictionary: Float[Tensor, "feature unit"] | Any,
    weight: Float[Tensor, "class unit"] | Any,
    reduce: Reduce = "mean",
    *,
    bias: Float[Tensor, " class"] | Any = None,
    labels: Int[Tensor, " sample"] | Any = None,
) -> FeatureImportance:
    """``G(z_i) = E_x |dy/dz_i z_i|`` for a linear head on decoded features: ``y = (z D) W' + b``, so ``dy_c/dz_i = (D W')_ic``.

    Args:
        z: raw codes ``(sample, feature)``, not standardised: scale is part of importance.
        dictionary: ``(feature, unit)``. weight: the head's, ``(class, unit)``, as ``nn.Linear`` has it.
        reduce: over classes: ``mean`` of the absolute contributions, the ``predicted`` class of each sample (needs the
            ``bias`` where the head has one), or its ``true`` class (needs ``labels``). With ``mean`` a sign is the average over
            all classes, most of which any feature speaks against: take ``true`` to find features that inhibit.

    Cost O(k d K + n k) for ``mean``, O(n k) more otherwise. Raises InputError for shapes that do not fit or missing labels,
    NonFiniteError for NaN.
    """
    codes, slopes, logits = _head(z, dictionary, weight, bias)
    if reduce == "mean":
        return FeatureImportance(np.abs(codes).mean(0) * np.abs(slopes).mean(1), codes.mean(0) * slopes.mean(1), reduce)
    if reduce not in ("predicted", "true"):
        raise InputError(f"reduce is '{reduce}', expected mean, predicted or true")
    chosen = logits.argmax(1) if reduce == "predicted" else _labels(labels, logits)
    parts = codes * slopes.T[chosen]
    return FeatureImportance(np.abs(parts).mean(0), parts.mean(0), reduce)


def support_curve(
    z: Float[Tensor, "sample feature"] | Any,
    dictionary: Float[Tensor, "feature unit"] | Any,
    weight: Float[Tensor, "class unit"] | Any,
    bias: Float[Tensor, " class"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    order: Sequence[int] | np.ndarray,
    n_points: int = 21,
) -> tuple[Int[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """Accuracy while features are set to 0 in the given order: ``(number removed, accuracy over that with all)``.

    Args as in :func:`gradient_x_input`; ``order`` lists every feature once, the first to go first. Cost O(n k K) in all.
    Raises InputError for an order that is no permutation and where no sample is right to begin with.
    """
    codes, slopes, logits = _head(z, dictionary, weight, bias)
    targets, ranked = _labels(labels, logits), np.asarray(order)
    if not np.array_equal(np.sort(ranked), np.arange(codes.shape[1])):
        raise InputError(f"the order has {len(ranked)} entries, expected each of {codes.shape[1]} features once")
    whole = float((logits.argmax(1) == targets).mean())
    if whole == 0:
        raise InputError("no sample is classified correctly to begin with, so accuracy cannot fall")
    removed = np.unique(np.linspace(0, len(ranked), n_points).round().astype(int))
    found, last = [], 0
    for count in removed.tolist():
        gone = ranked[last:count]
        logits, last = logits - codes[:, gone] @ slopes[gone], count
        found.append(float((logits.argmax(1) == targets).mean()) / whole)
    return removed, np.array(found)


def _head(z: Any, dictionary: Any, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, slopes ``(feature, class)`` and logits in float64."""
    codes, atoms, rows = (
        _matrix(value, name) for value, name in ((z, "z"), (dictionary, "dictionary"), (weight, "weight"))
    )
    if codes.shape[1] != atoms.shape[0] or atoms.shape[1] != rows.shape[1]:
        raise InputError(
            f"z, dictionary and weight have shapes {codes.shape}, {atoms.shape} and {rows.shape}, expected (sample, feature), "
            "(feature, unit) and (class, unit)"
        )
    slopes = atoms @ rows.T
    constant = 0.0 if bias is None else torch.as_tensor(bias).detach().cpu().double().numpy()
    if bias is not None and np.shape(constant) != (len(rows),):
        raise InputError(f"the bias has shape {np.shape(constant)}, expected ({len(rows)},)")
    return codes, slopes, codes @ slopes + constant


def _matrix(value: Any, name: str) -> np.ndarray:
    found = torch.as_tensor(value).detach().cpu().double().numpy()
    if found.ndim != 2 or 0 in found.shape:
        raise InputError(f"{name} has shape {found.shape}, expected two axes that are not empty")
    if not np.isfinite(found).all():
        raise NonFiniteError(f"{name} holds NaN or infinity, finite numbers are needed")
    return found


def _labels(labels: Any, logits: np.ndarray) -> np.ndarray:
    if labels is None:
        raise InputError("no labels were given, and the true class was asked for; give one class index for each sample")
    found = torch.as_tensor(labels).cpu().numpy()
    if (
        found.shape != (len(logits),)
        or found.dtype.kind not in "iu"
        or found.min() < 0
        or found.max() >= logits.shape[1]
    ):
        raise InputError(
            f"labels have shape {found.shape}, expected one class from 0 to {logits.shape[1] - 1} for each sample"
        )
    return found
