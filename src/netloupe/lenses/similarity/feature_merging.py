"""How many distinct features a layer really holds, told from its weights alone: iterative feature merging.

Source: "Going Beyond Neural Network Feature Similarity: The Network Feature Complexity and Its Interpretation Using Category
Theory", arXiv 2310.06756. Two units that are computed alike and read alike are one feature; while a layer's closest two units are
close beside its farthest, they are merged. What is left is the layer's feature complexity, and a smaller network that needed no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.units import UnitAxis, UnitGroup, Unknown, tensors_of, unit_groups, with_tensors
from netloupe.core.units_rules import HOMOGENEOUS
from netloupe.lenses.similarity.merging_engine import BatchNorm, Distance, Merge, Merger, Order, Part, Rule
from netloupe.nn.folding import fold_batch_norms

BETAS = (
    0.001, 0.01, 0.03, 0.05, 0.07, 0.1, 0.12, 0.14, 0.15, 0.18, 0.2, 0.22, 0.24, 0.25, 0.26, 0.28, 0.3,
)  # fmt: skip
"""the tolerances that the authors' scripts go through"""
_PRODUCTS = ("mul", "mul_", "imul", "matmul", "bmm", "pow")


@dataclass(frozen=True, eq=False)
class MergeResult:
    """A network after merging.

    ``model``: the smaller network (None from :func:`merge_matrices`). ``complexity``, ``original``: units left and before, by group.
    ``merges``: every merge in order. ``members``: for each group the units that each unit left was made of, in its order.
    ``left_alone``: groups that were not merged, and why. ``tensors``: the parameters that changed.
    """

    model: nn.Module | None
    complexity: dict[str, int]
    original: dict[str, int]
    merges: tuple[Merge, ...]
    members: dict[str, tuple[tuple[int, ...], ...]]
    left_alone: dict[str, str]
    tensors: dict[str, Float[np.ndarray, "..."]]
    beta: float
    n_parameters: tuple[int, int]

    @property
    def fraction(self) -> float:
        """Share of all mergeable units that are left."""
        return sum(self.complexity.values()) / sum(self.original.values())


def merge_features(
    model: nn.Module,
    example: Any,
    beta: float = 0.1,
    max_ratio: float = 1.0,
    groups: Sequence[str] | None = None,
    bn: BatchNorm = "fold",
    distance: Distance = "in+out",
    order: Order = "round-robin",
    *,
    rule: Rule = "sum",
    normalise: bool = False,
    limit: Literal["merges", "sweeps"] = "merges",
    unknown: Unknown = "refuse",
    random_state: int | None = None,
) -> MergeResult:
    """Merges the two closest units of each group in turn, as long as ``min D <= beta max D``; the network itself stays as it is.

    ``D_ij = |w_i - w_j|^2 + |v_i - v_j|^2`` over all weights that compute two units (rows w) and read them (columns v); both extremes are
    those of the present, already merged units. Rows and biases add up, ``w_i + w_j``; columns become ``(c_i v_i + c_j v_j) / (c_i + c_j)``
    with the number of units merged in each. For units computed alike, behind functions with ``f(a x) = a f(x)``, that changes nothing.

    Args:
        example: an input to trace shapes with (:func:`netloupe.core.units.unit_groups`).
        beta: tolerance, 0 to 1. max_ratio: most merges of a group, as a share of its units.
        groups: names of the groups to merge, all by default; groups that cannot be merged are then an error and not left alone.
        bn: ``fold`` batch norms into their layers first; ``exact``: keep them, deviations of merged units add up, so that equal units still
            change nothing; ``official``: as the authors' code, which adds variances up and changes the network even for equal units.
        distance: ``in+out``, or the rows (``in``) or columns (``out``) alone.
        order: ``round-robin``, one pair a group and sweep, as the paper; ``layerwise``, each group to its end.
        rule: ``sum`` as above; ``average``: rows are averaged and columns add up, exact for equal units behind any function.
        normalise: give every unit's rows length 1 first, where functions allow it: finds units that are multiples of each other.
        limit: what ``max_ratio`` counts; the authors' code counts ``sweeps``, of which a group may sit out some.
        unknown: ``pin`` leaves alone what cannot be traced, in place of refusing the network.
        random_state: merge as many random pairs as the closest ones would be: the control.

    Cost for a group of n units with f weights each: O(n^2 f) once, O(n f + n^2) a merge, and O(m^2 k) for the neighbours of m units
    joined by k weights. Raises InputError for numbers out of range, groups that do not exist, a network that cannot be traced
    or has tied parameters; NonFiniteError for weights that are not finite.
    """
    _check(beta, max_ratio, bn, distance, order, rule, limit)
    before = sum(p.numel() for p in model.parameters())
    if bn == "fold" and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        model, left = fold_batch_norms(model, example)
        if left:
            raise InputError(
                f"batch norm '{left[0]}' does not directly follow a layer of its own and cannot be folded; use bn='exact'"
            )
    tensors = {
        name: value.double().cpu().numpy() for name, value in tensors_of(model).items() if value.is_floating_point()
    }
    _require_finite(tensors)
    found = unit_groups(model, example, unknown)
    chosen, parts, alone = _mergeable(model, found, groups, bn)
    if normalise:
        _normalised(tensors, chosen, parts)
    result = _merged(tensors, chosen, parts, (beta, max_ratio, order, limit), distance, rule, random_state)
    changed = {name: torch.from_numpy(value) for name, value in result[0].items()}
    merger, merges = result[1], result[2]
    smaller = (
        with_tensors(model, {**{n: torch.from_numpy(v) for n, v in tensors.items()}, **changed})
        if normalise
        else with_tensors(model, changed)
    )
    return MergeResult(
        smaller, {name: len(group.order) for name, group in merger.groups.items()}, {group.name: group.n for group in chosen},
        tuple(merges), merger.members(), alone, result[0], beta, (before, sum(p.numel() for p in smaller.parameters())),
    )  # fmt: skip


def merge_matrices(
    weights: Sequence[Float[np.ndarray, "out in"]],
    biases: Sequence[Float[np.ndarray, " out"] | None] | None = None,
    beta: float = 0.1,
    max_ratio: float = 1.0,
    distance: Distance = "in+out",
    order: Order = "round-robin",
    *,
    rule: Rule = "sum",
    limit: Literal["merges", "sweeps"] = "merges",
) -> MergeResult:
    """:func:`merge_features` for the matrices of a perceptron, ``(out, in)`` from the first layer to the last.

    Groups are called ``layer0``, ``layer1``, ...; the result's ``tensors`` are ``weight0``, ``bias0``, ... in float64. Errors as there, and
    InputError for matrices that do not follow each other.
    """
    _check(beta, max_ratio, "fold", distance, order, rule, limit)
    given = [np.asarray(weight, dtype=np.float64) for weight in weights]
    shapes = [weight.shape for weight in given]
    fits = all(len(shape) == 2 for shape in shapes) and all(a[0] == b[1] for a, b in pairwise(shapes))
    if len(given) < 2 or not fits:
        raise InputError(
            f"weights have shapes {shapes}; at least two matrices (out, in) that follow each other are needed"
        )
    tensors = {f"weight{i}": weight for i, weight in enumerate(given)}
    for i, bias in enumerate(biases or []):
        if bias is not None:
            tensors[f"bias{i}"] = np.asarray(bias, dtype=np.float64)
    if any(tensors[f"bias{i}"].shape != shape[:1] for i, shape in enumerate(shapes) if f"bias{i}" in tensors):
        raise InputError(f"biases do not fit weights of shapes {shapes}")
    _require_finite(tensors)
    groups, parts = [], {}
    for i, weight in enumerate(given[:-1]):
        axes = [UnitAxis(f"weight{i}", 0, "out"), UnitAxis(f"weight{i + 1}", 1, "in")]
        if f"bias{i}" in tensors:
            axes.insert(1, UnitAxis(f"bias{i}", 0, "out"))
        groups.append(UnitGroup(f"layer{i}", len(weight), tuple(axes)))
        parts[f"layer{i}"] = [Part(axis, "in" if axis.role == "in" else "out") for axis in axes]
    found, merger, merges = _merged(tensors, groups, parts, (beta, max_ratio, order, limit), distance, rule, None)
    result = {**tensors, **found}
    sizes = tuple(sum(value.size for value in each.values()) for each in (tensors, result))
    return MergeResult(
        None, {name: len(group.order) for name, group in merger.groups.items()}, {group.name: group.n for group in groups},
        tuple(merges), merger.members(), {}, result, beta, (sizes[0], sizes[1]),
    )  # fmt: skip


def merge_agreement(
    result: MergeResult, activations: Mapping[str, Float[Tensor, "sample unit"] | Any], random_state: int = 0
) -> dict[str, tuple[float, float]]:
    """Whether merged units do the same: for each group the mean correlation of units merged into one, and of units that were not.

    Args:
        activations: for each group ``(sample, unit)`` of the units before merging.

    Returns:
        ``(within, across)`` by group; NaN within where nothing was merged, or only units that never vary. Cost O(n d^2). Raises
        InputError for a group that the result does not have, or another number of units.
    """
    from netloupe.core.rows import as_rows
    from netloupe.core.statistics import Covariance

    found = {}
    for name, values in activations.items():
        if name not in result.members:
            raise InputError(f"there is no group '{name}'; there are {', '.join(result.members)}")
        rows, covariance = as_rows(values, ndim=(2, 3), min_samples=2), Covariance()
        if rows.n_units != result.original[name]:
            raise InputError(f"activations of '{name}' have {rows.n_units} units, {result.original[name]} are needed")
        for batch in rows:
            covariance.update(batch.values)
        table = covariance.result().correlation
        label = np.empty(len(table), np.int64)
        for number, members in enumerate(result.members[name]):
            label[list(members)] = number
        same = label[:, None] == label
        pairs = np.triu(np.ones_like(same), 1)
        within, across = (table[pairs & part] for part in (same, ~same))
        found[name] = tuple(
            float(np.nanmean(each)) if np.isfinite(each).any() else float("nan") for each in (within, across)
        )
    return found


def _merged(
    tensors: Mapping[str, np.ndarray], groups: Sequence[UnitGroup], parts: Mapping[str, Sequence[Part]],
    stops: tuple[float, float, Order, Literal["merges", "sweeps"]], distance: Distance, rule: Rule, random_state: int | None,
) -> tuple[dict[str, np.ndarray], Merger, list[Merge]]:  # fmt: skip
    merger = Merger(tensors, groups, parts, distance, rule)
    merges = list(merger.run(*stops))
    if random_state is not None:
        wanted, draw = [merge.group for merge in merges], np.random.default_rng(random_state)
        merger, merges = Merger(tensors, groups, parts, distance, rule), []
        for name in wanted:
            first, second = sorted(draw.choice(len(merger.groups[name].order), 2, replace=False).tolist())
            merges.append(Merge(name, first, second, float(merger.distances(name)[first, second]), float("nan")))
            merger.merge(name, first, second)
    return merger.result(), merger, merges


def _mergeable(
    model: nn.Module, found: Sequence[UnitGroup], wanted: Sequence[str] | None, bn: BatchNorm
) -> tuple[list[UnitGroup], dict[str, list[Part]], dict[str, str]]:
    """The groups that can be merged with what is done to each of their axes, and why the others cannot."""
    names = [group.name for group in found]
    strange = [name for name in wanted or [] if name not in names]
    if strange:
        raise InputError(f"there is no group '{strange[0]}'; there are {', '.join(names) or 'none'}")
    chosen, parts, alone = [], {}, {}
    for group in found:
        if wanted is not None and group.name not in wanted:
            continue
        own = [_part(model, axis, bn) for axis in group.axes]
        reason = _obstacle(group, own)
        if reason and wanted is not None:
            raise InputError(f"units of '{group.name}' cannot be merged: {reason}")
        if reason:
            alone[group.name] = reason
        else:
            chosen.append(group)
            parts[group.name] = [part for part in own if part is not None]
    if not chosen:
        raise InputError(f"no group of units can be merged: {next(iter(alone.values()), 'the network has none')}")
    return chosen, parts, alone


def _obstacle(group: UnitGroup, parts: Sequence[Part | None]) -> str:
    products = [name for name in group.functions if name in _PRODUCTS]
    if group.n < 2:
        return "it has one unit"
    if group.mixed:
        return f"{group.mixed[0]} looks at all of them together"
    if products:
        return f"they are multiplied with each other ({products[0]})"
    if not any(axis.role == "in" for axis in group.axes):
        return "nothing with weights reads them"
    if None in parts:
        return f"no rule is known for '{group.axes[list(parts).index(None)].parameter}'"
    return ""


def _part(model: nn.Module, axis: UnitAxis, bn: BatchNorm) -> Part | None:
    path, _, own = axis.parameter.rpartition(".")
    module: Any = model.get_submodule(path)
    if axis.role != "unit":
        return Part(axis, axis.role)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        kind = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "var"}[own]
        return Part(axis, kind, 0.0 if bn == "official" else module.eps)  # pyright: ignore[reportArgumentType]
    return Part(axis, "unit") if isinstance(module, nn.PReLU) else None


def _normalised(
    tensors: dict[str, np.ndarray], groups: Sequence[UnitGroup], parts: Mapping[str, Sequence[Part]]
) -> None:
    """Rows (with their biases) of length 1, the length moved to the columns, in groups behind homogeneous functions of one layer."""
    for group in groups:
        writers = {axis.parameter.rpartition(".")[0] for axis in group.axes if axis.role == "out"}
        plain = all(part.kind in ("out", "in") for part in parts[group.name])
        if not plain or len(writers) != 1 or not set(group.functions) <= HOMOGENEOUS:
            continue
        rows = [
            axis.rows(torch.from_numpy(tensors[axis.parameter]), group.n) for axis in group.axes if axis.role == "out"
        ]
        length = torch.cat(rows, 1).norm(dim=1)
        length = torch.where(length > 0, length, torch.ones_like(length))[:, None]
        for axis in group.axes:
            old = torch.from_numpy(tensors[axis.parameter])
            own = axis.rows(old, group.n)
            tensors[axis.parameter] = axis.put(
                own / length if axis.role == "out" else own * length, old, group.n
            ).numpy()


def _check(beta: float, max_ratio: float, *options: str) -> None:
    known = (
        ("fold", "exact", "official"),
        ("in+out", "in", "out"),
        ("round-robin", "layerwise"),
        ("sum", "average"),
        ("merges", "sweeps"),
    )
    if not (0 <= beta <= 1 and 0 <= max_ratio <= 1):
        raise InputError(f"beta is {beta} and max_ratio {max_ratio}, numbers from 0 to 1 are needed")
    for given, allowed in zip(options, known, strict=True):
        if given not in allowed:
            raise InputError(f"{given!r} was given, expected one of {', '.join(allowed)}")


def _require_finite(tensors: Mapping[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(f"'{name}' holds NaN or infinity; repair the network first")
