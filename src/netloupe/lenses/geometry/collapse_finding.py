"""The collapse finding, and the arithmetic that every way of measuring it shares.

All of it starts from the class means seen from their own mean; definitions and source are told where the numbers are
asked for, in :mod:`netloupe.lenses.geometry.neural_collapse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Frame", "NeuralCollapse", "as_classifier", "assemble", "check_counts", "frame_of"]

_NAMED_CLASSES = 12
"""most classes whose numbers are written beside the picture"""


@dataclass(frozen=True, eq=False)
class NeuralCollapse(Finding):
    """How near to collapse; every number but the rank is zero at full collapse and none of them is ever NaN."""

    nc1: float | None
    """within-class scatter measured in units of the between-class scatter; None without the means to know it"""
    nc1_trace: float
    """trace of the within-class scatter over trace of the between-class scatter"""
    nc2: float
    """distance of the normalised Gram matrix of the centred class means from that of a simplex; 0 to 2"""
    nc3: float | None
    """distance between the normalised classifier and the normalised centred class means, 0 to 2; None without one"""
    nc4: float | None
    """share of samples for which the classifier and the nearest class mean disagree; None without a classifier"""
    rank: int
    """rank of the between-class scatter; below ``K - 1``, NC1 sees only that many directions"""
    within: float
    """trace of the within-class scatter, in squared units of the features"""
    between: float
    """trace of the between-class scatter, in squared units of the features"""
    gram: Float[np.ndarray, "class class"]
    """Gram matrix of the centred class means, divided by its Frobenius norm"""
    counts: Int[np.ndarray, " class"]
    """samples of each class"""
    n_samples: int
    n_units: int

    meanings: ClassVar[dict[str, str]] = {
        "nc1": "spread inside the classes in units of the spread between their means, 0 at collapse",
        "nc1_trace": "total variance inside the classes over that between their means, 0 at collapse",
        "nc2": "distance of the class means from a regular simplex, 0 (regular) to 2",
        "nc3": "distance of the classifier from the class means, 0 (parallel) to 2",
        "nc4": "share of samples whose decision is not the nearest class mean",
        "rank": "directions in which the class means differ; one fewer than classes when none is lost",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains, without those that could not be known."""
        found = {name: getattr(self, name) for name in self.meanings}
        return {name: float(value) for name, value in found.items() if value is not None}

    def plot(self, axes: Axes) -> None:
        """Gram matrix of the centred class means beside a simplex's, in units of the simplex's diagonal."""
        n_classes = len(self.gram)
        unit = (1 - 1 / n_classes) / np.sqrt(n_classes - 1)
        simplex = (np.eye(n_classes) - 1 / n_classes) / np.sqrt(n_classes - 1)
        gap = np.full((n_classes, max(1, n_classes // 8)), np.nan)
        image = axes.imshow(np.hstack([self.gram, gap, simplex]) / unit, vmin=-1, vmax=1, cmap="RdBu_r")
        axes.figure.colorbar(image, ax=axes, shrink=0.6, label="inner product (simplex: 1 with itself)")
        start = n_classes + gap.shape[1]
        shown = np.arange(n_classes) if n_classes <= _NAMED_CLASSES else np.array([0, n_classes - 1])
        axes.set_xticks(np.concatenate([shown, start + shown]), [*map(str, shown), *map(str, shown)])
        axes.set_yticks(shown)
        axes.set(xlabel="class means, measured | simplex", ylabel="class")
        numbers = {name: value for name, value in self.summary().items() if name != "rank"}
        axes.set_title("   ".join(f"{name} {value:.3g}" for name, value in numbers.items()), fontsize="small")


class Frame(NamedTuple):
    """The class means seen from their own mean, with their singular values and directions up to the rank."""

    centre: Float[np.ndarray, " unit"]
    centred: Float[np.ndarray, "class unit"]
    spread: Float[np.ndarray, " rank"]
    directions: Float[np.ndarray, "rank unit"]
    between: float


def frame_of(means: Float[np.ndarray, "class unit"]) -> Frame:
    centre = means.mean(0)
    centred = means - centre
    with np.errstate(over="ignore"):
        between = float(np.sum(centred**2) / len(means))
    if not np.isfinite(between):
        raise NonFiniteError("the squares of the class means overflow, but their scatter is needed; rescale features.")
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    rounding = len(means) * np.finfo(np.float64).eps
    if between == 0 or spread[0] <= float(np.abs(means).max()) * rounding:
        raise InputError(
            f"the means of all {len(means)} classes coincide, but collapse is measured against the scatter between "
            "them; give features that differ between classes."
        )
    # squared singular values are the eigenvalues of the class-by-class Gram matrix, found without squaring it
    kept = (spread / spread[0]) ** 2 > rounding
    return Frame(centre, centred, spread[kept], directions[kept], between)


def check_counts(counts: np.ndarray) -> None:
    if len(counts) < 2 or counts.min() < 2:
        raise InputError(
            f"the first class counts are {counts.tolist()[:5]}, but at least 2 classes and 2 samples of each label "
            "0..K-1 are needed; drop the rare classes and renumber the labels from 0."
        )


def as_classifier(
    weight: Any, bias: Any, shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "class unit"] | None, Float[np.ndarray, " class"] | None]:
    """Weight and bias as finite float64 arrays that fit the class means."""
    if weight is None:
        if bias is not None:
            raise InputError("a bias was given without a weight, but a classifier needs its weight; give both.")
        return None, None
    arrays = []
    for name, given, expected in (("weight", weight, shape), ("bias", bias, shape[:1])):
        if given is None:
            arrays.append(None)
            continue
        tensor = given.detach().cpu().double() if isinstance(given, Tensor) else given
        array = np.asarray(tensor, dtype=np.float64)
        if array.shape != expected:
            raise InputError(
                f"{name} has shape {array.shape}, but {expected} is expected for {shape[0]} classes and {shape[1]} "
                "units; give a classifier with one row per class."
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{name} holds NaN or infinity, but finite numbers are needed; repair the network.")
        arrays.append(array)
    if not arrays[0].any():
        raise InputError("weight is all zeros, but NC3 and NC4 compare its directions; leave it out.")
    return arrays[0], arrays[1]


def _gram(frame: Frame) -> Float[np.ndarray, "class class"]:
    """The Gram matrix of the centred means, of Frobenius norm 1."""
    scaled = frame.centred / np.linalg.norm(frame.centred)
    gram = scaled @ scaled.T
    return gram / np.linalg.norm(gram)


def _nc2(gram: Float[np.ndarray, "class class"]) -> float:
    n_classes = len(gram)
    simplex = (np.eye(n_classes) - 1 / n_classes) / np.sqrt(n_classes - 1)
    return float(np.linalg.norm(gram - simplex))


def _nc3(frame: Frame, weight: np.ndarray | None) -> float | None:
    if weight is None:
        return None
    return float(np.linalg.norm(weight / np.linalg.norm(weight) - frame.centred / np.linalg.norm(frame.centred)))


def assemble(
    frame: Frame, counts: np.ndarray, *, nc1: float | None, within: float, weight: np.ndarray | None, nc4: float | None
) -> NeuralCollapse:
    if not np.isfinite(within):
        raise NonFiniteError("the squares of the features overflow, but their scatter is needed; rescale features.")
    gram = _gram(frame)
    return NeuralCollapse(
        nc1=nc1,
        nc1_trace=within / frame.between,
        nc2=_nc2(gram),
        nc3=_nc3(frame, weight),
        nc4=nc4,
        rank=len(frame.spread),
        within=within,
        between=frame.between,
        gram=gram,
        counts=counts.copy(),
        n_samples=int(counts.sum()),
        n_units=frame.centred.shape[1],
    )
