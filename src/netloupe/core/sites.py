"""Names for the tensors inside a network, and how each is turned into activations.

A *site* is written ``PATH[:in|:out][.KEY][#CALL]``:

=====================  ==================================================================
``layer2.0.relu``      the module's output (the same as ``layer2.0.relu:out``)
``layer2.0.relu:in``   its first tensor input
``lstm:out.1.0``       an entry of a tuple, dictionary or dataclass output
``block.relu#1``       the second call of a module that runs several times in one pass
``.``                  the network itself: its output, or with ``:in`` its input
=====================  ==================================================================

Shell globs (``*``, ``?``, ``[...]``) select many. A glob takes each distinct tensor once; a plain name
always selects what it names or is an error that lists the near misses.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from netloupe.core.errors import SiteError
from netloupe.core.values import Side, unreadable

ROOT = "."
_NAME = re.compile(r"^(?P<path>[^:#]*)(?::(?P<side>in|out)(?:\.(?P<key>[^#:]+))?)?(?:#(?P<call>\d+|\*))?$")
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.modules.dropout.Dropout2d,
    nn.modules.dropout.Dropout3d,
)
_UNIT_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Address:
    """A parsed site name; ``call=None`` means every call, ``key=None`` the main tensor."""

    path: str
    side: Side = "out"
    key: str | None = None
    call: int | None = None

    @property
    def name(self) -> str:
        """The site's canonical name: ``:out`` is left out where it is implied."""
        middle = f":{self.side}.{self.key}" if self.key else (":in" if self.side == "in" else "")
        return f"{self.path or ROOT}{middle}" + ("" if self.call is None else f"#{self.call}")


@dataclass(frozen=True)
class SiteInfo:
    """One site of a network as a forward pass showed it.

    ``shape`` is that of one sample's activations: ``(unit,)`` or ``(position, unit)``; ``position_shape``
    is what the position axis was before flattening (``(height, width)``, ``(time,)``).
    """

    name: str
    module: str
    shape: tuple[int, ...]
    position_shape: tuple[int, ...]
    dtype: str
    layout: Layout = dataclasses.field(repr=False)

    @property
    def n_units(self) -> int:
        """Length of the unit axis."""
        return self.shape[-1]

    @property
    def n_positions(self) -> int:
        """Number of positions in a sample; 1 where there is no position axis."""
        return self.shape[0] if len(self.shape) == 2 else 1


@dataclass(frozen=True)
class Layout:
    """Where samples and units stand in a raw tensor: how to make activations of it, and back."""

    sample_axis: int
    unit_axis: int | None
    groups: int = 1  # rows of one sample that the network folded into the sample axis (windows, flattened tokens)

    def to_activations(self, raw: Tensor, keep_positions: bool = True) -> Tensor:
        """``raw`` as ``(sample, unit)`` or ``(sample, position, unit)``; a view where strides allow it."""
        if self.unit_axis is None:
            return raw.reshape(-1, 1)
        moved = raw.movedim((self.sample_axis, self.unit_axis), (0, -1))
        if moved.ndim == 2 and self.groups == 1:
            return moved
        return moved.reshape(moved.shape[0] // self.groups, -1, moved.shape[-1])

    def from_activations(self, activations: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`to_activations` for a raw tensor of the shape of ``like``."""
        if self.unit_axis is None:
            return activations.reshape(like.shape)
        moved = like.movedim((self.sample_axis, self.unit_axis), (0, -1))
        return activations.reshape(moved.shape).movedim((0, -1), (self.sample_axis, self.unit_axis))

    def position_shape(self, raw: Tensor) -> tuple[int, ...]:
        """The axes that are neither sample nor unit, before they are flattened to positions."""
        if self.unit_axis is None:
            return ()
        moved = raw.movedim((self.sample_axis, self.unit_axis), (0, -1))
        inner = tuple(moved.shape[1:-1])
        return inner if self.groups == 1 else (self.groups, *inner)


class NotPerSample(Exception):
    """A tensor that carries no value per sample (0-d, a parameter, a batch-independent table)."""


class LayoutTracker:
    """Decides sample and unit axes of each tensor of one pass, remembering what made it.

    Convolutions and batch norms put units second, linear layers last; an activation function inherits the
    layout of its input. Where the maker is unknown, the most recent tensor of the same shape decides, then
    the convention (four or more axes: second; else last). ``overrides`` maps globs to a unit axis.
    """

    def __init__(self, overrides: dict[str, int] | None = None, time_first_inputs: bool = False) -> None:
        self.overrides = overrides or {}
        self._by_identity = WeakIdKeyDictionary()  # an identity counts only while its tensor lives
        self._by_shape: dict[tuple[int, ...], int] = {}
        self._time_first = WeakIdKeyDictionary()
        self.time_first_inputs = time_first_inputs

    def time_first(self, opinion: bool | None, module: nn.Module, raw: Tensor, source: Tensor | None) -> bool:
        """Whether time stands before samples: as the module declares, else as in the tensor that it was made of.

        Only torch's own modules without parts are trusted to keep their input's order.
        """
        known = self._time_first.get(raw) if opinion is None else opinion
        keeps = type(module).__module__.startswith("torch.nn.") and next(module.children(), None) is None
        if known is None and keeps and source is not None:
            known = self._time_first.get(source)
        if known is None:
            known = self.time_first_inputs
        self._time_first[raw] = known
        return known

    def unit_axis(self, name: str, module: nn.Module, raw: Tensor, source: Tensor | None) -> int | None:
        """The axis of ``raw`` that holds units (None for a 1-d tensor: one unit)."""
        for pattern, axis in self.overrides.items():
            if fnmatch.fnmatchcase(name, pattern) and raw.ndim and not unreadable(raw):
                if not -raw.ndim <= axis < raw.ndim:
                    raise SiteError(f"unit_axis is {axis} for site '{name}', whose tensor has {raw.ndim} axes")
                return axis % raw.ndim
        if raw.ndim <= 1 or unreadable(raw):
            return None
        if raw.ndim == 2:
            return 1
        known = _axis_of_module(module, raw.ndim)
        if known is None:
            known = self._by_identity.get(raw)
        if known is None and source is not None and source.ndim == raw.ndim:
            known = self._by_identity.get(source)
        if known is None:
            known = self._by_shape.get(tuple(raw.shape))
        return known if known is not None else (1 if raw.ndim >= 4 else raw.ndim - 1)

    def learn(self, raw: Tensor, axis: int | None) -> None:
        """Remembers the layout of a tensor for the modules that follow."""
        if axis is not None and raw.ndim > 2 and not unreadable(raw):
            self._by_identity[raw] = axis
            self._by_shape[tuple(raw.shape)] = axis


def _axis_of_module(module: nn.Module, ndim: int) -> int | None:
    if isinstance(module, _CHANNELS_FIRST):
        return 1
    if isinstance(module, nn.LayerNorm):
        return ndim - len(module.normalized_shape) if len(module.normalized_shape) < ndim else ndim - 1
    if isinstance(module, _UNIT_LAST):
        return ndim - 1
    return None


def infer_layout(
    raw: Tensor, unit_axis: int | None, n_samples: int, sequence_first: bool, lengths: frozenset[int] = frozenset()
) -> Layout:
    """Finds the sample axis of ``raw`` for a batch of ``n_samples``.

    Several rows of one sample folded into the first axis (windows, flattened tokens) are taken to lie side by side. A
    matrix counts as folded only when a sample has as many rows as an axis of the inputs is long (``lengths``): other
    matrices with a multiple of the batch's rows are tables or routed tokens.

    Raises :class:`NotPerSample` when no axis can be the sample axis.
    """
    if reason := unreadable(raw):
        raise NotPerSample(reason)
    if raw.ndim == 0:
        raise NotPerSample("is 0-dimensional, it holds one number for the whole batch")
    if unit_axis is None:
        if raw.shape[0] != n_samples:
            raise NotPerSample(f"has shape {tuple(raw.shape)}, no axis has the batch's {n_samples} samples")
        return Layout(0, None)
    other = [axis for axis in range(min(raw.ndim, 2)) if axis != unit_axis]
    if sequence_first and raw.ndim >= 3 and raw.shape[1] == n_samples and unit_axis != 1:
        return Layout(1, unit_axis)
    for axis in other:
        if raw.shape[axis] == n_samples:
            return Layout(axis, unit_axis)
    folded = raw.shape[0] // max(n_samples, 1)
    is_folded = unit_axis != 0 and folded > 1 and folded * n_samples == raw.shape[0]
    if is_folded and (raw.ndim > 2 or folded in lengths):
        return Layout(0, unit_axis, groups=raw.shape[0] // n_samples)
    raise NotPerSample(f"has shape {tuple(raw.shape)}, no axis has the batch's {n_samples} samples")


def parse(pattern: str) -> tuple[Address, bool]:
    """Splits a site name; the flag says whether it is a glob."""
    if not isinstance(pattern, str):
        raise SiteError(f"a site is given as {pattern!r}, expected a name such as 'layer1.relu'")
    found = _NAME.match(pattern)
    if found is None:
        raise SiteError(
            f"'{pattern}' is not a site name; write PATH, PATH:in, PATH:out.KEY or PATH#CALL, for example 'layer1.relu'"
        )
    call = found["call"]
    address = Address(
        "" if found["path"] == ROOT else found["path"],
        "in" if found["side"] == "in" else "out",
        found["key"],
        int(call) if call not in (None, "*") else None,
    )
    return address, any(mark in found["path"] for mark in "*?[")


def module_paths(model: nn.Module) -> dict[str, nn.Module]:
    """Every module under every one of its paths; the root is ``""``."""
    return dict(model.named_modules(remove_duplicate=False))


def select(model: nn.Module, patterns: str | Iterable[str] | None) -> list[tuple[Address, bool]]:
    """The addresses that ``patterns`` name in ``model``, in the network's order, each with its glob flag.

    ``None`` is ``"*"``. A shared module answers to all its paths and is listed under the first.
    """
    wanted = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise SiteError("no site was asked for; give at least one name or glob, for example '*'")
    paths = module_paths(model)
    canonical = {id(module): path for path, module in reversed(paths.items())}
    chosen: dict[Address, bool] = {}
    for pattern in wanted:
        address, is_glob = parse(pattern)
        if is_glob:
            matches = [path for path in paths if path and fnmatch.fnmatchcase(path, address.path)]
            if not matches and len(paths) == 1 and address.path == "*":
                matches = [""]  # a network without parts is its own only site
        else:
            matches = [address.path] if address.path in paths else []
        if not matches:
            raise SiteError(unknown_site(pattern, [path for path in paths if path]))
        for path in dict.fromkeys(canonical[id(paths[match])] for match in matches):
            one = dataclasses.replace(address, path=path)
            chosen[one] = chosen.get(one, True) and is_glob
    order = {path: position for position, path in enumerate(paths)}
    return sorted(chosen.items(), key=lambda item: (order[item[0].path], item[0].side))


def unknown_site(name: str, known: Sequence[str]) -> str:
    """The sentence for a name that matches nothing, with the names that come closest."""
    close = difflib.get_close_matches(name.split(":")[0].split("#")[0], known, n=4, cutoff=0.4)
    close = close or [path for path in known if name.strip("*?") and name.strip("*?") in path][:4] or list(known[:4])
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "the network has no named parts."
    return f"no site matches '{name}' in a network of {len(known)} named parts; {hint}"


def declared_time_first(paths: dict[str, nn.Module], path: str, side: Side, key: str) -> bool | None:
    """Whether time stands before samples in one entry of a module's output; None where nobody says.

    The nearest enclosing module with a ``batch_first`` decides. States of recurrent modules are ``(layer, sample,
    unit)`` and attention weights ``(sample, ...)`` whatever it says.
    """
    module = paths[path]
    if isinstance(module, nn.RNNBase) and key not in ("", "0"):
        return True
    parts = path.split(".") if path else []
    inside_attention = isinstance(paths.get(".".join(parts[:-1])), nn.MultiheadAttention)
    if (isinstance(module, nn.MultiheadAttention) and (side, key) == ("out", "1")) or inside_attention:
        return False  # the projection inside attention is shown as (sample, time, unit)
    for length in range(len(parts), -1, -1):
        flag = getattr(paths.get(".".join(parts[:length])), "batch_first", None)
        if isinstance(flag, bool):
            return not flag
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
