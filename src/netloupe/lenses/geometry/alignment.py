"""Does a representation keep the arrangement of its inputs, or has it taken on that of its targets?

Source: Alleman, Lindsey and Fusi, "Task structure and nonlinearity jointly determine learned representational geometry", arXiv
2401.13558: the centred kernel alignment (CKA) of a hidden layer with the labels and with the inputs. Saturating activations
move towards the labels, rectifiers keep more of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.arrangement import (
    Arrangement,
    aligned_rows,
    alignment,
    alignment_error,
    chance_alignment,
    kernel_alignment,
)
from netloupe.core.capture import Sites, capture, class_labels
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import LabelMoments
from netloupe.core.values import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "AlignmentProfile",
    "FeatureAlignment",
    "alignment_profile",
    "feature_alignment",
    "kernel_alignment",
    "participation_ratio",
]

INPUTS = "(inputs)"
MAX_SAMPLES = 1024
MOST_NAMED = 16


@dataclass(frozen=True, eq=False)
class FeatureAlignment(Finding):
    """CKA of features with targets, and with inputs where they were given (``input``, ``input_error``; else None).

    ``means``: the same with targets for the means of conditions alone, without the noise around them; 0 where they coincide.
    ``chance``: what targets dealt out at random would have. ``participation``: in how many directions the features vary.
    """

    target: float
    standard_error: float
    chance: float
    means: float
    participation: float
    n_samples: int
    n_conditions: int
    input: float | None = None
    input_error: float | None = None

    meanings: ClassVar[dict[str, str]] = {
        "target_alignment": "how far samples are arranged by their target, 0 to 1",
        "standard_error": "its standard error over samples",
        "chance": "what targets dealt out at random would have",
        "target_alignment_means": "the same for the means of the conditions, without the spread around them",
        "participation_ratio": "in how many directions the features vary",
        "input_alignment": "how far samples are arranged as the inputs are, 0 to 1",
        "input_error": "standard error of that over samples",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        values = (
            self.target,
            self.standard_error,
            self.chance,
            self.means,
            self.participation,
            self.input,
            self.input_error,
        )
        return {name: value for name, value in zip(self.meanings, values, strict=True) if value is not None}

    def paragraph(self) -> str:
        """The answer in plain words."""
        text = (
            f"Samples are arranged by their target to {self.target:.3f} (standard error {self.standard_error:.2g}; targets dealt "
            f"out at random {self.chance:.2g}) on a scale that ends at 1; the means of the {self.n_conditions} conditions alone "
            f"to {self.means:.3f}. The features vary in {self.participation:.1f} directions."
        )
        if self.input is not None:
            text += (
                f" With the inputs' arrangement they agree to {self.input:.3f} (standard error {self.input_error:.2g})."
            )
        return text

    def plot(self, axes: Axes) -> None:
        """Bars on the scale from 0 to 1."""
        bars = {"targets": (self.target, self.standard_error), "targets, means alone": (self.means, 0.0)}
        if self.input is not None and self.input_error is not None:
            bars["inputs"] = (self.input, self.input_error)
        names, values = list(bars), [value for value, _ in bars.values()]
        axes.barh(names, values, xerr=[error for _, error in bars.values()], color=["C0", "C7", "C1"][: len(names)])
        axes.axvline(self.chance, color="0.4", linestyle=":", label="targets at random")
        axes.set(xlim=(0, 1), xlabel="centred kernel alignment")
        axes.legend(frameon=False, fontsize="small")


@lens(
    question="Are samples arranged by their target, and how far?",
    needs=("features", "labels"),
    optional=("other",),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def feature_alignment(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    other: Float[Tensor, "sample unit_in"] | Any = None,
    *,
    targets: Float[np.ndarray, "condition target"] | Any = None,
) -> FeatureAlignment:
    """CKA of a representation with the targets of its samples and, where they are given, with the inputs.

    With centred features X and targets Y: ``|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)`` (arXiv 2401.13558). Over samples, and for
    the means of the conditions alone, every condition weighing the same. Chance is the mean over random orders of the targets,
    ``tr K tr L / ((n - 1) |K| |L|)``; standard errors are the jackknife over samples. All in closed form.

    Args:
        features: ``(sample, unit)``. labels: ``(sample,)`` integers, the condition of each sample.
        other: inputs of the same samples ``(sample, unit_in)``.
        targets: ``(condition, target)`` for the conditions in rising order of their label; by default each condition is a target
            of its own (one-hot). A condition may then share its target with others, as in an XOR.

    Cost: O(n d (d + m)) and, with inputs, O(n d d_in) time; O(d^2 + d d_in) memory; streams. Few conditions in many units
    align with one-hot targets by themselves: read the means beside ``chance``. Raises InputError for one condition, features
    or targets that do not vary, and shapes that do not fit.
    """
    rows = as_rows(features, labels, ndim=(2,), min_samples=4)
    if rows.labels is None:
        raise InputError("no labels were given; the condition of each sample is needed")
    conditions, index = np.unique(rows.labels.numpy(), return_inverse=True)
    table = _targets(targets, len(conditions))
    sides = [rows, table[index], *([] if other is None else [other])]
    x, y, *rest = (Arrangement(each) for each in aligned_rows(sides, ("features", "targets", "inputs")))
    _require_variation(x, y, *rest)
    moments = LabelMoments(n_classes=len(conditions))
    for batch in rows:
        place = torch.from_numpy(index[batch.samples.numpy()])
        moments.update(batch.values, labels=place, samples=batch.samples)
    means = moments.result().means
    means = (means - means.mean(0)) / x.scale
    return FeatureAlignment(
        target=alignment(x, y).biased,
        standard_error=alignment_error(x, y),
        chance=chance_alignment(x, y),
        means=kernel_alignment(means @ means.T, table @ table.T, official=True),
        participation=x.participation,
        n_samples=x.n,
        n_conditions=len(conditions),
        input=alignment(x, rest[0]).biased if rest else None,
        input_error=alignment_error(x, rest[0]) if rest else None,
        context=Context(),
    )


def participation_ratio(
    features: Float[np.ndarray, "sample unit"] | Any, center: bool = True, official: bool = False
) -> float:
    """``(tr C)^2 / tr C^2`` of the samples' second moments: 1 on a line, d in a ball.

    Args:
        features: ``(sample, unit)``. center: subtract the mean over samples. official: subtract from each sample the mean over its
            *units* instead, as the code of arXiv 2401.13558 does.

    Cost O(n d min(n, d)). Raises InputError where nothing varies.
    """
    x = as_rows(features, ndim=(2,)).array().double().numpy()
    if center:
        x = x - x.mean(1 if official else 0, keepdims=True)
    largest = np.abs(x).max()
    if not largest > 0:
        raise InputError("the features are the same for every sample, so there is no direction in which they vary")
    x = x / largest
    product = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float((x**2).sum() ** 2 / (product**2).sum())


@dataclass(frozen=True, eq=False)
class AlignmentProfile(Finding):
    """CKA with targets and with inputs, site by site; the first row is the inputs themselves.

    ``sites`` in the order they run; ``target``, ``input`` and their errors float64 ``(site,)``, NaN for a site that does not vary.
    """

    sites: tuple[str, ...]
    target: Float[np.ndarray, " site"]
    target_error: Float[np.ndarray, " site"]
    input: Float[np.ndarray, " site"]
    input_error: Float[np.ndarray, " site"]
    chance: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "target_last": "how far the last site arranges samples by their target, 0 to 1",
        "target_inputs": "how far the inputs themselves do",
        "input_last": "how far the last site still arranges samples as the inputs are, 0 to 1",
        "target_highest": "the highest alignment with the targets of any site",
        "chance": "what targets dealt out at random would have at the last site",
        "standard_error": "standard error of the first number over samples",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        last = int(np.flatnonzero(np.isfinite(self.target))[-1])
        values = (
            self.target[last], self.target[0], self.input[last], np.nanmax(self.target), self.chance, self.target_error[last],
        )  # fmt: skip
        return {name: float(value) for name, value in zip(self.meanings, values, strict=True)}

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"The inputs of {self.n_samples} samples are arranged by target to {found['target_inputs']:.3f}, the last site's "
            f"activations to {found['target_last']:.3f} (standard error {found['standard_error']:.2g}; at random {found['chance']:.2g}); "
            f"of the inputs' own arrangement the last site keeps {found['input_last']:.3f}. The highest alignment with the targets "
            f"is {found['target_highest']:.3f}, at {self.sites[int(np.nanargmax(self.target))]}."
        )

    def plot(self, axes: Axes) -> None:
        """Both alignments against depth."""
        depth = np.arange(len(self.sites))
        for values, errors, name in (
            (self.target, self.target_error, "targets"),
            (self.input, self.input_error, "inputs"),
        ):
            axes.errorbar(depth, values, errors, marker="o", markersize=3, label=f"with the {name}")
        step = -(-len(self.sites) // MOST_NAMED)
        axes.set_xticks(depth[::step], self.sites[::step], rotation=40, ha="right", fontsize="small")
        axes.set(ylim=(0, 1.05), ylabel="centred kernel alignment")
        axes.legend(frameon=False, fontsize="small")


@lens(
    question="Through the network's depth, do samples stay arranged as inputs or become arranged by target?",
    needs=("model", "data"),
)
def alignment_profile(
    model: nn.Module, data: Any, *, sites: Sites = None, max_samples: int = MAX_SAMPLES
) -> AlignmentProfile:
    """CKA of every site with one-hot targets and with the raw inputs, and of the inputs with the targets.

    As :func:`feature_alignment`, from sites ``(sample, unit)``; positions are averaged.

    Args:
        model: any network. data: batches with class labels whose inputs are numbers (images, vectors; not tokens).
        sites: names or globs; by default every site. max_samples: from the front of the data, all of one statistic.

    Cost: one pass, O(s n^2 (d + d_in)) for s sites where units outnumber samples, else as in :func:`feature_alignment`; it
    holds ``max_samples`` samples of every site. Raises InputError without labels, for one class, tokens, or inputs or all
    sites that do not vary, and the errors of :func:`netloupe.capture`.
    """
    if max_samples < 4:
        raise InputError(f"max_samples is {max_samples}, at least 4 are needed")
    kept: dict[str, list[Tensor]] = {}
    given: list[Tensor] = []
    labels: list[Tensor] = []
    seen = 0
    for batch in capture(model, data, sites, pool="mean"):
        of_batch = class_labels(batch.labels)
        if of_batch is None:
            raise InputError("the data has no class labels, and without them there is no target to align with")
        room = max_samples - seen
        given.append(_raw_inputs(batch.batch)[:room])
        labels.append(of_batch[:room].cpu())
        for site, values in batch.activations.items():
            kept.setdefault(site, []).append(values[:room].flatten(1).cpu())
        seen += min(len(batch), room)
        if seen >= max_samples:
            break
    classes, index = np.unique(torch.cat(labels).numpy(), return_inverse=True)
    if len(classes) < 2 or seen < 4:
        raise InputError(
            f"{seen} samples of {len(classes)} classes were given; at least 4 samples of 2 classes are needed"
        )
    arrays = {
        INPUTS: torch.cat(given),
        **{site: torch.cat(values) for site, values in kept.items() if _real(values[0])},
    }
    rows = aligned_rows([np.eye(len(classes))[index], *arrays.values()], ["targets", *arrays])
    y, *others = (Arrangement(each) for each in rows)
    found = dict(zip(arrays, others, strict=True))
    x = found[INPUTS]
    _require_variation(x, y)
    varying = [each for site, each in found.items() if site != INPUTS and each.varies]
    if not varying:
        raise InputError("no site varies over these samples, so none has an arrangement")
    target, target_error, kept_input, input_error = np.array([_row(each, x, y) for each in others]).T
    return AlignmentProfile(
        tuple(found),
        target,
        target_error,
        kept_input,
        input_error,
        chance_alignment(varying[-1], y),
        seen,
        context=Context(),
    )


def _row(site: Arrangement, x: Arrangement, y: Arrangement) -> tuple[float, float, float, float]:
    if not site.varies:
        return float("nan"), float("nan"), float("nan"), float("nan")
    return alignment(site, y).biased, alignment_error(site, y), alignment(site, x).biased, alignment_error(site, x)


def _raw_inputs(batch: Any) -> Float[Tensor, "sample unit"]:
    """The first floating-point tensor that the network is given, flat."""
    for _, tensor in flatten((batch.args, batch.kwargs)):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == batch.n_samples:
            return tensor.detach().flatten(1).cpu()
    raise InputError(
        "the network's inputs are no numbers (tokens, perhaps), so that they have no arrangement of their own"
    )


def _real(values: Tensor) -> bool:
    return not values.is_complex()


def _targets(targets: Any, n_conditions: int) -> Float[np.ndarray, "condition target"]:
    if targets is None:
        return np.eye(n_conditions)
    table = np.asarray(targets.detach().cpu() if isinstance(targets, Tensor) else targets, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) != n_conditions or not np.isfinite(table).all():
        raise InputError(
            f"targets have shape {table.shape}; one row of finite numbers for each of {n_conditions} conditions is needed"
        )
    return table


def _require_variation(*sides: Arrangement) -> None:
    for side, name in zip(sides, ("features", "targets", "inputs")):
        if not side.varies:
            raise InputError(f"the {name} are the same for every sample, so that their alignment is not defined")
