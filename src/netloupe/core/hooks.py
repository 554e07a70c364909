"""The one place that attaches to a network's modules; :mod:`capture` reads through it, :mod:`intervene` writes.

``attach`` calls a visitor at every input or output that was asked for and hands its answer back to the
network. It copes with the cases in which an ordinary hook stays silent: the fused path of
``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer``, compiled modules, and modules called several times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from netloupe.core.errors import SiteError
from netloupe.core.sites import module_paths
from netloupe.core.values import Side


@dataclass(frozen=True)
class Visit:
    """One moment of a pass: a module's inputs ``(args, kwargs)`` or its output, with the call's index."""

    path: str
    side: Side
    call: int
    module: nn.Module
    value: Any
    source: Any  # for an output: the inputs that led to it


Visitor = Callable[[Visit], Any]


def unwrap(model: nn.Module) -> nn.Module:
    """The network as its author wrote it: without ``torch.compile`` or data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def require_readable(model: nn.Module, path: str) -> None:
    """Refuses a site inside a scripted module: its parts run outside Python and are never announced."""
    if hidden_by_script(module_paths(model), path):
        raise SiteError(
            f"site '{path}' lies inside a scripted module, whose parts cannot be read or changed; "
            "pass the network as it was before torch.jit.script or torch.jit.trace"
        )


def hidden_by_script(paths: dict[str, nn.Module], path: str) -> bool:
    """Whether a proper ancestor of ``path`` is a TorchScript module."""
    parts = path.split(".") if path else []
    ancestors = [".".join(parts[:length]) for length in range(len(parts))]
    return any(isinstance(paths.get(ancestor), torch.jit.ScriptModule) for ancestor in ancestors)


@contextmanager
def attach(
    model: nn.Module,
    targets: Sequence[tuple[str, Side]],
    visitor: Visitor,
    paths: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Calls ``visitor`` at each target while the block runs; what it returns (unless None) replaces the value.

    For ``"in"`` the value is ``(args, kwargs)`` and so must be the replacement. Hooks are removed on exit,
    also after an exception, and the fused attention path and compilation are off only inside the block. ``paths`` saves
    the walk over the network where many blocks follow each other.
    """
    paths = module_paths(model) if paths is None else paths
    wanted: dict[str, set[Side]] = {}
    for path, side in targets:
        wanted.setdefault(path, set()).add(side)
    calls = _Calls()
    with ExitStack() as stack:
        stack.enter_context(_eager())
        # calls are counted anew in each pass, also where the block holds several
        handle = nn.Module.register_forward_pre_hook(model, calls.reset)
        stack.callback(handle.remove)
        for path, sides in wanted.items():
            owner = paths.get(path.rpartition(".")[0])
            if isinstance(owner, nn.MultiheadAttention) and path.endswith("out_proj"):
                _attach_projection(stack, owner, path, sides, visitor, calls)
            else:
                _attach_module(stack, paths[path], path, sides, visitor, calls)
        yield


@contextmanager
def _eager() -> Iterator[None]:
    """Turns the fused attention path and compiled graphs off: neither announces its parts."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Calls:
    """How often each module was called in the current pass."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, Side], int] = {}

    def reset(self, *_: Any) -> None:
        self._counts.clear()

    def next(self, module: nn.Module, side: Side) -> int:
        """The index of the call that begins (or ends) now."""
        key = (id(module), side)
        self._counts[key] = self._counts.get(key, -1) + 1
        return self._counts[key]


def _attach_module(
    stack: ExitStack, module: nn.Module, path: str, sides: set[Side], visitor: Visitor, calls: _Calls
) -> None:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return visitor(Visit(path, "in", calls.next(module, "in"), module, (args, kwargs), None))

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return visitor(Visit(path, "out", calls.next(module, "out"), module, output, (args, kwargs)))

    if "in" in sides:
        handle = nn.Module.register_forward_pre_hook(module, before, with_kwargs=True)
        stack.callback(handle.remove)
    if "out" in sides:
        # unbound: a scripted module forbids the method but obeys the hook
        handle = nn.Module.register_forward_hook(module, after, with_kwargs=True)
        stack.callback(handle.remove)


@dataclass(frozen=True, eq=False)
class _Listener:
    """One block's wish to see the output projection of an attention module."""

    path: str
    sides: set[Side]
    visitor: Visitor


class _ProjectionMode(TorchFunctionMode):
    """Sees the output projection inside attention, which never calls the module ``out_proj``.

    The fused function is run with an identity in place of the projection, which gives the projection's input
    unchanged (products with 1 and sums with 0 are exact); then the projection is done here, between two visits.
    Listeners are shown ``(sample, time, unit)``, those of outer blocks first.
    """

    def __init__(self, attention: nn.MultiheadAttention, listeners: list[_Listener], call: int) -> None:
        super().__init__()
        self.attention, self.listeners, self.call = attention, listeners, call

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        projection = self.attention.out_proj
        if func is not F.multi_head_attention_forward:
            return func(*args, **kwargs)
        bound = _ATTENTION_SIGNATURE.bind(*args, **kwargs)
        if bound.arguments.get("out_proj_weight") is not projection.weight:
            return func(*args, **kwargs)
        weight = projection.weight
        bound.arguments["out_proj_weight"] = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        bound.arguments["out_proj_bias"] = None
        heads, attention_weights = func(*bound.args, **bound.kwargs)
        rows = self._visit("in", heads)
        # the same flat shape as in the fused function, so that the numbers are the same to the last bit
        flat = F.linear(rows.reshape(-1, rows.shape[-1]), weight, projection.bias)
        return self._visit("out", flat.view(*rows.shape[:-1], flat.shape[-1])), attention_weights

    def _visit(self, side: Side, rows: Tensor) -> Tensor:
        for listener in self.listeners:
            if side not in listener.sides:
                continue
            shown = rows.transpose(0, 1) if rows.ndim == 3 else rows[None]
            value = ((shown,), {}) if side == "in" else shown
            answer = listener.visitor(Visit(listener.path, side, self.call, self.attention.out_proj, value, None))
            if answer is not None:
                changed = answer[0][0] if side == "in" else answer
                rows = changed.transpose(0, 1) if rows.ndim == 3 else changed[0]
        return rows


_ATTENTION_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


_LISTENERS: WeakKeyDictionary[nn.Module, list[_Listener]] = WeakKeyDictionary()


def _attach_projection(
    stack: ExitStack, attention: nn.MultiheadAttention, path: str, sides: set[Side], visitor: Visitor, calls: _Calls
) -> None:
    """Adds a listener; the first block around an attention module also installs the mode, the last to leave removes it."""
    listeners = _LISTENERS.setdefault(attention, [])
    listener = _Listener(path, sides, visitor)
    if not listeners:
        _install_mode(stack, attention, listeners, calls)
    listeners.append(listener)
    stack.callback(listeners.remove, listener)


def _install_mode(
    stack: ExitStack, attention: nn.MultiheadAttention, listeners: list[_Listener], calls: _Calls
) -> None:
    open_modes: list[_ProjectionMode] = []

    def before(*_: Any) -> None:
        mode = _ProjectionMode(attention, listeners, calls.next(attention, "in"))
        mode.__enter__()
        open_modes.append(mode)

    def after(*_: Any) -> None:
        if open_modes:
            open_modes.pop().__exit__(None, None, None)

    first = attention.register_forward_pre_hook(before)
    last = attention.register_forward_hook(after, always_call=True)
    stack.callback(first.remove)
    stack.callback(last.remove)


def unpack_packed(value: Any) -> tuple[Any, Tensor | None]:
    """A packed sequence as a padded ``(sample, time, unit)`` tensor and its mask; other values unchanged."""
    packed = value[0] if isinstance(value, tuple) and value and isinstance(value[0], PackedSequence) else value
    if not isinstance(packed, PackedSequence):
        return value, None
    padded, lengths = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    return (padded if packed is value else (padded, *value[1:])), mask.to(padded.device)
