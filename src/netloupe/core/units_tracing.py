"""The tracer behind :func:`netloupe.core.units.unit_groups`: labels of axes carried through a torch.fx graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from netloupe.core.errors import InputError
from netloupe.core.isolation import device_of, guest
from netloupe.core.units import Role, UnitAxis, UnitGroup, UnitSite, Unknown
from netloupe.core.values import flatten


@dataclass(frozen=True)
class Factor:
    """A part of an axis: ``size`` entries that are the units of ``group``, or no units at all (None)."""

    size: int
    group: int | None


Layout = tuple[Factor, ...]  # one axis, row-major, without factors of size 1
Label = tuple[Layout, ...]  # one tensor


def plain(size: int) -> Layout:
    """An axis of places: pixels, tokens, samples, classes."""
    return () if size == 1 else (Factor(size, None),)


@dataclass(frozen=True)
class _Member:
    parameter: str
    axis: int
    role: Role
    outer: int
    inner: int
    group: int


class Groups:
    """Which axes are one (union-find), which are fixed, and what belongs to each."""

    def __init__(self, unknown: Unknown) -> None:
        self.unknown = unknown
        self.parent: list[int] = []
        self.pinned: set[int] = set()
        self.members: list[_Member] = []
        self.sites: list[tuple[UnitSite, int]] = []
        self.functions: list[tuple[str, int]] = []
        self.mixed: list[tuple[str, int]] = []
        self.place = ""  # the node at work, for messages

    def new(self, size: int) -> Layout:
        """An axis of units of their own."""
        if size == 1:
            return ()
        self.parent.append(len(self.parent))
        return (Factor(size, len(self.parent) - 1),)

    def find(self, group: int) -> int:
        while self.parent[group] != group:
            self.parent[group] = group = self.parent[self.parent[group]]
        return group

    def pin(self, *labels: Sequence[Layout]) -> None:
        """Fixes all groups of these labels."""
        self.pinned |= {part.group for label in labels for axis in label for part in axis if part.group is not None}

    def refuse(self, what: str, *labels: Sequence[Layout]) -> None:
        """Something is not understood: an error, or its groups are fixed."""
        if self.unknown == "refuse":
            raise InputError(
                f"units cannot be traced through {self.place}: {what}; use unknown='pin' to leave them alone"
            )
        self.pin(*labels)

    def join(self, one: Layout, other: Layout) -> Layout:
        """The two axes are indexed alike."""
        if [part.size for part in one] != [part.size for part in other]:
            self.refuse("two axes with units of unlike arrangement meet", [one], [other])
            size = 1
            for part in one:
                size *= part.size
            return plain(size)
        for a, b in zip(one, other, strict=True):
            if a.group is not None and b.group is not None:
                self.parent[self.find(max(a.group, b.group))] = self.find(min(a.group, b.group))
            else:
                self.pin([(a,), (b,)])
        return tuple(a if a.group is not None else b for a, b in zip(one, other, strict=True))

    def own(self, parameter: str, axis: int, layout: Layout, role: Role) -> None:
        """A parameter's axis belongs to the groups of ``layout``."""
        outer = 1
        total = 1
        for part in layout:
            total *= part.size
        for part in layout:
            inner = total // (outer * part.size)
            if part.group is not None:
                self.members.append(_Member(parameter, axis, role, outer, inner, part.group))
            outer *= part.size

    def role(self, parameter: str, axis: int, role: Role) -> None:
        """What a parameter that the forward uses by itself turned out to be for."""
        self.members = [
            replace(each, role=role) if (each.parameter, each.axis) == (parameter, axis) else each
            for each in self.members
        ]

    def seen(self, path: str, label: Label) -> None:
        """A site's output."""
        for axis, layout in enumerate(label):
            total, outer = 1, 1
            for part in layout:
                total *= part.size
            for part in layout:
                if part.group is not None:
                    self.sites.append((UnitSite(path, axis, outer, total // (outer * part.size)), part.group))
                outer *= part.size

    def noted(self, where: list[tuple[str, int]], name: str, label: Sequence[Layout]) -> None:
        """``name`` was done to all groups of ``label``."""
        where += [(name, part.group) for axis in label for part in axis if part.group is not None]

    def collect(self, tensors: dict[str, Tensor]) -> list[UnitGroup]:
        """Free groups with at least one axis that computes them, in order of appearance."""
        fixed = {self.find(group) for group in self.pinned}
        found: dict[int, list[_Member]] = {}
        for member in self.members:
            found.setdefault(self.find(member.group), []).append(member)
        groups = []
        for root, members in found.items():
            writers = [m for m in members if m.role == "out"]
            if root in fixed or not writers:
                continue
            first = writers[0]
            n = tensors[first.parameter].shape[first.axis] // (first.outer * first.inner)
            axes = dict.fromkeys(UnitAxis(m.parameter, m.axis, m.role, m.outer, m.inner) for m in members)
            groups.append(
                UnitGroup(
                    first.parameter.rpartition(".")[0] or first.parameter, n, tuple(axes),
                    tuple(dict.fromkeys(site for site, group in self.sites if self.find(group) == root)),
                    tuple(dict.fromkeys(name for name, group in self.functions if self.find(group) == root)),
                    tuple(dict.fromkeys(name for name, group in self.mixed if self.find(group) == root)),
                )
            )  # fmt: skip
        return groups


def traced(model: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    """The network as a graph, for these inputs; its parts are ``model``'s own. Raises InputError where torch.fx cannot trace it."""
    try:
        return fx.GraphModule(model, _Tracer(inputs).trace(model))
    except Exception as error:  # whatever a forward does when given proxies in place of tensors
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"the network cannot be traced ({reason}); its forward may not depend on the data it sees"
        ) from error


def inputs_of(model: nn.Module, example: Any) -> tuple[Any, ...]:
    """An example (a tensor, an array, or a tuple of these) on the network's device."""
    device = device_of(model)
    return tuple(torch.as_tensor(value).to(device) for value in (example if isinstance(example, tuple) else (example,)))


def trace_units(model: nn.Module, example: Any, unknown: Unknown) -> list[UnitGroup]:
    """See :func:`netloupe.core.units.unit_groups`."""
    twin = copy.deepcopy(model)
    _refuse_shared(twin)
    inputs = inputs_of(twin, example)
    with guest(twin, "eval"), torch.no_grad():
        walker = _Walker(traced(twin, inputs), Groups(unknown))
        walker.extra_traceback = False  # it would add lines to our sentences
        walker.run(*inputs)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return walker.groups.collect({name: value.detach() for name, value in named.items()})


def _refuse_shared(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise InputError(
                f"'{name}' and '{seen[id(parameter)]}' are one parameter; units of shared weights are not told apart: untie them first"
            )
        seen[id(parameter)] = name


class _Known(fx.Proxy):
    """A proxy that knows what it stands for, so that lengths, shapes and number types are numbers to a forward."""

    value: Any = None

    def __len__(self) -> int:
        return len(self.value)

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.value, Tensor) and name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"):
            return getattr(self.value, name)
        return super().__getattr__(name)

    def size(self, *axis: int) -> Any:
        """As a tensor's."""
        return self.value.size(*axis)

    def dim(self) -> int:
        """As a tensor's."""
        return self.value.dim()

    def is_floating_point(self) -> bool:
        """As a tensor's."""
        return self.value.is_floating_point()


class _Tracer(fx.Tracer):
    """Computes every value on the way: control flow by shapes and options is followed, only by data it is refused."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.inputs = list(inputs)
        self.running = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Ours."""
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Proxy:
        """As usual, with its value."""
        found: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        self.running = True
        try:
            found.value = self._value(kind, target, _valued(args), _valued(kwargs))
        finally:
            self.running = False
        return found

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.inputs.pop(0) if self.inputs else (args[0] if args else None)
        if kind == "get_attr":
            path, _, name = target.rpartition(".")
            return getattr(self.root.get_submodule(path), name)
        if kind == "call_module":
            return self.root.get_submodule(target).forward(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs) if kind == "call_function" else None

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Parts of a layer that is computed as a whole are not traced."""
        return forward(*args, **kwargs) if self.running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Nor are its parameters."""
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: Any) -> bool:
        """Decisions by numbers are followed."""
        return super().to_bool(obj) if isinstance(obj.value, Tensor) else bool(obj.value)

    def iter(self, obj: Any) -> Any:
        """Several outputs, one by one."""
        return iter([obj[index] for index in range(len(obj.value))])


def _valued(arguments: Any) -> Any:
    if isinstance(arguments, _Known):
        return arguments.value
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_valued(each) for each in arguments)
    if isinstance(arguments, dict):
        return {key: _valued(each) for key, each in arguments.items()}
    if isinstance(arguments, slice):
        return slice(_valued(arguments.start), _valued(arguments.stop), _valued(arguments.step))
    return arguments


class _Walker(fx.Interpreter):
    """Runs the graph and labels every tensor on the way."""

    def __init__(self, traced: fx.GraphModule, groups: Groups) -> None:
        super().__init__(traced)
        self.groups = groups
        self.labels: dict[fx.Node, Any] = {}
        self.called: set[str] = set()
        self.by_itself: dict[str, Label] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value as usual; its label on the side."""
        from netloupe.core.units_rules import label_of

        value = super().run_node(n)
        what = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
        self.groups.place = (
            f"'{n.name}' ({type(self.fetch_attr(str(n.target))).__name__ if n.op == 'call_module' else what})"
        )
        self.labels[n] = label_of(self, n, value)
        if n.op == "call_module" and isinstance(value, Tensor):
            self.groups.seen(str(n.target), self.labels[n])
        return value

    def label(self, node: Any) -> Label:
        """The label of an argument; numbers have none."""
        found = self.labels.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, tuple) else ()

    def value(self, argument: Any) -> Any:
        """What an argument was."""
        return map_arg(argument, lambda node: self.env[node])

    def unknown(self, value: Any, n: fx.Node, what: str) -> Any:
        """Everything that goes into a node is fixed, and what comes out has no units."""
        self.groups.refuse(
            what, *[self.labels[node] for node in n.all_input_nodes if isinstance(self.labels.get(node), tuple)]
        )
        return places(value)


def places(value: Any) -> Any:
    """The label of a tensor without units; of several tensors, their labels in a list."""
    if isinstance(value, Tensor):
        return tuple(plain(size) for size in value.shape)
    if isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for _, part in flatten(value)):
        return [places(part) for part in value]
    return None
