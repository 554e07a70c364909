"""Which axes of which parameters and sites of a network must be indexed alike: its groups of units.

A unit of a layer is a row of its weight and bias, an entry of the norm behind it, a column of every layer that reads it, and
through a residual addition also a row of every layer that writes to the same stream. Matching, merging, pruning and ablation
of units all stand on knowing these together. The network is traced with torch.fx; what cannot be proved is refused by its name,
or (``unknown="pin"``) fixed: a fixed group is never offered, so that whatever reads it stays right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.errors import InputError

Role = Literal["out", "in", "unit"]
Unknown = Literal["refuse", "pin"]


@dataclass(frozen=True)
class UnitAxis:
    """One axis of one parameter or buffer that is indexed by a group's units.

    The axis has ``outer * n * inner`` entries, row-major: unit ``u`` owns ``[:, u, :]``. A linear layer behind a flattened convolution
    has ``inner`` = height x width. ``role``: ``out`` for what computes the units (rows of a weight, its bias), ``in`` for what reads them
    (columns), ``unit`` for one number or filter a unit (norms, slopes, depthwise filters).
    """

    parameter: str
    axis: int
    role: Role
    outer: int = 1
    inner: int = 1

    def rows(self, tensor: Tensor, n: int) -> Float[Tensor, "unit rest"]:
        """``(n, rest)``: what belongs to each unit, a copy where memory order asks for one."""
        return self._split(tensor, n).reshape(n, -1)

    def put(self, rows: Float[Tensor, "unit rest"], like: Tensor, n: int) -> Tensor:
        """A tensor as ``like``, which has ``n`` units on this axis, with ``rows`` in place of them; their number may be another."""
        split = self._split(like, n)
        moved = rows.reshape(len(rows), *split.shape[1:]).movedim(0, self.axis + 1)
        shape = [*like.shape]
        shape[self.axis] = self.outer * len(rows) * self.inner
        return moved.reshape(shape)

    def _split(self, tensor: Tensor, n: int) -> Tensor:
        shape = [*tensor.shape]
        if shape[self.axis] != self.outer * n * self.inner:
            raise InputError(
                f"'{self.parameter}' has {shape[self.axis]} entries on axis {self.axis}, but {n} units need "
                f"{self.outer * n * self.inner}"
            )
        whole = tensor.reshape([*shape[: self.axis], self.outer, n, self.inner, *shape[self.axis + 1 :]])
        return whole.movedim(self.axis + 1, 0)


@dataclass(frozen=True)
class UnitSite:
    """A module whose output is indexed by a group along ``axis``, in the same way as :class:`UnitAxis`."""

    path: str
    axis: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """``n`` units that must be indexed alike in all of ``axes`` and at all of ``sites``.

    ``name``: the layer that computes them first. ``functions``: what is done to their activations one by one, in order of appearance.
    ``mixed``: names of what computes over all units without telling them apart (layer norm, mean over units): permuting units is
    exact there, removing or merging some changes the others.
    """

    name: str
    n: int
    axes: tuple[UnitAxis, ...]
    sites: tuple[UnitSite, ...] = ()
    functions: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()

    def weights(self, tensors: Mapping[str, Tensor]) -> list[UnitAxis]:
        """The axes of tensors with at least two axes: rows that compute the units and columns that read them."""
        return [axis for axis in self.axes if tensors[axis.parameter].ndim >= 2]

    def matrix(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "unit weight"]:
        """``(n, rest)``: all weights of each unit beside each other, incoming and outgoing."""
        return torch.cat([axis.rows(tensors[axis.parameter], self.n) for axis in self.weights(tensors)], 1)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, detached and shared with the network."""
    return {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def unit_groups(
    model: nn.Module,
    example: Any,
    unknown: Unknown = "refuse",
) -> list[UnitGroup]:
    """Every group of units of ``model`` that is free to be permuted, in the order of the layers that compute them.

    Outputs and inputs of the whole network are fixed and not listed. Understood: linear, convolutional (also transposed and
    depthwise) and embedding layers, batch, layer, instance and group norms, elementwise functions, pooling, reductions, residual
    additions and gating by products, flatten and reshape, permute, squeeze, indexing and concatenation along other axes.

    Args:
        example: an input of the network (a tensor, or a tuple of its positional inputs) to trace shapes with; not changed.
        unknown: ``refuse`` what is not understood; ``pin`` fixes the groups that it touches and goes on.

    Cost: one forward pass on the example, and the tracing. Raises InputError where torch.fx cannot trace the network (control flow that
    depends on data), parameters are shared, a layer is called twice, or something is not understood, each with its name.
    """
    from netloupe.core.units_tracing import trace_units

    if unknown not in ("refuse", "pin"):
        raise InputError(f"unknown is {unknown!r}, expected 'refuse' or 'pin'")
    return trace_units(model, example, unknown)


def selected(
    tensors: Mapping[str, Tensor], group: UnitGroup, units: Int[Tensor, " kept"] | Sequence[int]
) -> dict[str, Tensor]:
    """``tensors`` with only these units of ``group``, in this order: a permutation, or a pruned layer; repeats are copies.

    Tensors of other groups are shared with the input. Raises InputError for units that do not exist, or none.
    """
    index = torch.as_tensor(units, dtype=torch.long)
    if index.ndim != 1 or not len(index) or int(index.min()) < 0 or int(index.max()) >= group.n:
        raise InputError(f"units of '{group.name}' are 0 to {group.n - 1}; at least one of these is needed")
    found = dict(tensors)
    for axis in group.axes:
        old = found[axis.parameter]
        found[axis.parameter] = axis.put(axis.rows(old, group.n)[index.to(old.device)], old, group.n)
    return found


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``model`` with these parameters and buffers, of other sizes than before where units were taken out or merged.

    Sizes that modules keep (``out_features``, ``in_channels``, ``num_features``, ...) follow. Raises InputError for a name that the
    network does not have.
    """
    known = tensors_of(model)
    strange = [name for name in tensors if name not in known]
    if strange:
        raise InputError(f"the network has no parameter '{strange[0]}'")
    found = copy.deepcopy(model)
    for name, value in tensors.items():
        path, _, own = name.rpartition(".")
        module = found.get_submodule(path)
        kept = getattr(module, own)
        value = value.to(kept.dtype).to(kept.device).contiguous().clone()
        if isinstance(kept, nn.Parameter):
            setattr(module, own, nn.Parameter(value, requires_grad=kept.requires_grad))
        else:
            module.register_buffer(own, value, persistent=own not in module._non_persistent_buffers_set)
        _resize(module, own, value)
    return found


def pruned(model: nn.Module, group: UnitGroup, units: Int[Tensor, " kept"] | Sequence[int]) -> nn.Module:
    """A copy of ``model`` with only these units of ``group`` (:func:`selected`)."""
    return with_tensors(model, selected(tensors_of(model), group, units))


def _resize(module: nn.Module, own: str, value: Tensor) -> None:
    """Sizes that a module keeps beside its tensors."""
    known: Any = module
    if isinstance(module, nn.Linear) and own == "weight":
        known.out_features, known.in_features = value.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd) and own == "weight":
        known.in_channels, known.out_channels = value.shape[:2]
    elif isinstance(module, nn.modules.conv._ConvNd) and own == "weight":
        if known.groups > 1 and known.groups == known.in_channels == known.out_channels:
            known.groups = known.in_channels = known.out_channels = value.shape[0]
        else:
            known.out_channels, known.in_channels = value.shape[0], value.shape[1] * known.groups
    elif (
        isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)) and value.ndim == 1
    ):
        known.num_features = len(value)
    elif isinstance(module, nn.LayerNorm):
        known.normalized_shape = tuple(value.shape)
    elif isinstance(module, nn.GroupNorm):
        per_unit = known.num_groups == known.num_channels
        known.num_channels = len(value)
        known.num_groups = len(value) if per_unit else known.num_groups
    elif isinstance(module, nn.Embedding) and own == "weight":
        known.embedding_dim = value.shape[1]
    elif isinstance(module, nn.PReLU):
        known.num_parameters = math.prod(value.shape)
