"""Changing activations while a network runs.

``with intervene(model, ablate("layer2.relu", units=[3]), steer("layer3", direction, 2.0)): model(x)``

Each edit is a small frozen object; edits compose in the order given, blocks nest (the inner one sees what the
outer one made), gradients flow through, and leaving the block restores the network. A site may be a glob and
may name one call (``block#1``). An edit works on activations, the unit axis last, whatever the raw layout is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from netloupe.core.batches import default_batch_axis
from netloupe.core.edits import Edit, ablate, clamp, patch, project_out, replace_with, scale, steer
from netloupe.core.errors import InputError, SiteError
from netloupe.core.hooks import Visit, attach, require_readable, unpack_packed, unwrap
from netloupe.core.sites import (
    Address,
    LayoutTracker,
    NotPerSample,
    declared_time_first,
    infer_layout,
    module_paths,
    parse,
    select,
)
from netloupe.core.values import Side, entries_of, exchange, inner_lengths, main_key, main_tensor, unreadable

__all__ = ["Edit", "ablate", "clamp", "intervene", "patch", "project_out", "replace_with", "scale", "steer"]


@dataclass(frozen=True, eq=False)
class _Placed:
    """One edit at one address; ``edit`` with the change of this block, ``origin`` its position in the call."""

    address: Address
    edit: Edit
    origin: int
    is_glob: bool


@contextmanager
def intervene(
    model: nn.Module, *edits: Edit, unit_axis: dict[str, int] | None = None, batch_axis: int | None = None
) -> Iterator[None]:
    """Runs the block with ``edits`` in force.

    Parameters
    ----------
    unit_axis, batch_axis : as in :class:`netloupe.core.capture.CaptureOptions`.

    Raises
    ------
    SiteError at once for unknown sites, and on leaving the block when the network ran but no site of an edit ever
    did; InputError and SiteError from inside the network's call for values that do not fit and for sites that hold
    nothing that could be changed.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"an edit is a {type(edit).__name__}, expected what ablate, steer, patch and so on return")
    model = unwrap(model)
    placed = [one for origin, edit in enumerate(edits) for one in _place(model, edit, origin)]
    for one in placed:
        if not one.is_glob:
            require_readable(model, one.address.path)
    axis = default_batch_axis(model) if batch_axis is None else batch_axis
    writer = _Writer(model, placed, unit_axis, axis)
    with attach(model, writer.targets, writer.visit):
        yield
    writer.require_all_applied(edits)


def _place(model: nn.Module, edit: Edit, origin: int) -> list[_Placed]:
    """The addresses of an edit; one that must look at the network first says itself what goes where."""
    changes = edit.prepare(model) if edit.prepare else {edit.site: edit.change}
    is_glob = parse(edit.site)[1]
    return [
        _Placed(address, dataclasses.replace(edit, change=change), origin, is_glob)
        for site, change in changes.items()
        for address, _ in select(model, site)
    ]


class _Writer:
    """The visitor behind :func:`intervene`: finds each tensor's layout on the fly and applies the edits."""

    def __init__(
        self, model: nn.Module, placed: Sequence[_Placed], unit_axis: dict[str, int] | None, batch_axis: int
    ) -> None:
        self.placed, self.paths, self.batch_axis = placed, module_paths(model), batch_axis
        self.tracker = LayoutTracker(unit_axis, batch_axis == 1)
        self.n_samples: int | None = None
        self.lengths: frozenset[int] = frozenset()
        self.ran = False
        self.applied: set[tuple[int, Address | None]] = set()
        self._results: dict[int, WeakIdKeyDictionary] = {one.origin: WeakIdKeyDictionary() for one in placed}
        wanted: list[tuple[str, Side]] = [(one.address.path, one.address.side) for one in placed]
        everything: list[tuple[str, Side]] = [(path, "out") for path, _ in model.named_modules()]
        start: list[tuple[str, Side]] = [("", "in")]
        self.targets = list(dict.fromkeys([*start, *wanted, *everything]))

    def visit(self, seen: Visit) -> Any:
        """Learns the layout of what passes and, at an edited site, returns the changed value."""
        value, packed = unpack_packed(seen.value)
        found = dict(entries_of(value, seen.side))
        if (seen.path, seen.side) == ("", "in"):
            self._begin_pass(seen.value)
        axes = self._axes(seen, found)
        answer = None
        touched: list[tuple[int, str]] = []
        for one in self.placed:
            address = one.address
            if (address.path, address.side) != (seen.path, seen.side) or address.call not in (None, seen.call):
                continue
            if packed is not None:
                raise SiteError(f"site '{address.name}' is a packed sequence, which cannot be changed; pad it instead")
            key = address.key if address.key is not None else main_key(list(found.items()))
            if key is None or key not in found:
                self._refuse_missing(one, list(found))
                continue
            if one.is_glob and self._is_own_result(one.origin, found[key]):
                touched.append((one.origin, key))
                continue
            changed = self._changed(one, found[key], axes[key])
            if changed is None:
                continue
            self.applied |= {(one.origin, address), (one.origin, None)}
            touched.append((one.origin, key))
            found[key] = changed
            self.tracker.learn(changed, axes[key][0])
            answer = exchange(seen.value if answer is None else answer, seen.side, key, changed)
        for origin, key in touched:
            self._results[origin][found[key]] = _version(found[key])
        return answer

    def _begin_pass(self, inputs: Any) -> None:
        main, self.lengths, self.ran = main_tensor(inputs), inner_lengths(inputs), True
        has_samples = main is not None and not unreadable(main) and main.ndim > self.batch_axis
        self.n_samples = main.shape[self.batch_axis] if main is not None and has_samples else None

    def _axes(self, seen: Visit, found: dict[str, Tensor]) -> dict[str, tuple[int | None, bool]]:
        """Unit axis, and whether time stands before samples, of every tensor that passes."""
        source = main_tensor(seen.source) if seen.source is not None else None
        axes: dict[str, tuple[int | None, bool]] = {}
        for key, raw in found.items():
            module = seen.module if seen.side == "out" and key in ("", "0") else nn.Identity()
            axis = self.tracker.unit_axis(Address(seen.path, seen.side).name, module, raw, source)
            self.tracker.learn(raw, axis)
            opinion = declared_time_first(self.paths, seen.path, seen.side, key)
            axes[key] = axis, self.tracker.time_first(opinion, seen.module, raw, source)
        return axes

    def _is_own_result(self, origin: int, raw: Tensor) -> bool:
        """Whether a container only hands on what the same edit has changed: a glob takes each tensor once."""
        return self._results[origin].get(raw, -1) == _version(raw)

    def _changed(self, one: _Placed, raw: Tensor, axes: tuple[int | None, bool]) -> Tensor | None:
        n_samples = self.n_samples if self.n_samples is not None else (raw.shape[0] if raw.ndim else 0)
        try:
            layout = infer_layout(raw, axes[0], n_samples, axes[1], self.lengths)
        except NotPerSample as reason:
            if one.is_glob:
                return None
            raise SiteError(f"site '{one.address.name}' cannot be changed: it {reason}") from None
        return layout.from_activations(one.edit.apply(layout.to_activations(raw)), raw)

    @staticmethod
    def _refuse_missing(one: _Placed, keys: list[str]) -> None:
        if not one.is_glob and one.address.key is not None and keys:
            raise SiteError(f"site '{one.address.name}' has no tensor '{one.address.key}'; it holds {keys}")
        if not one.is_glob:
            raise SiteError(f"site '{one.address.name}' gives nothing that holds a tensor, so it cannot be changed")

    def require_all_applied(self, edits: Sequence[Edit]) -> None:
        """An edit that never took place would be a silent lie about the network."""
        for one in self.placed if self.ran else ():
            done = (one.origin, None if one.is_glob else one.address) in self.applied
            if not done:
                name = edits[one.origin].site if one.is_glob else one.address.name
                raise SiteError(f"site '{name}' was not reached in the block, so its edit did nothing")


def _version(raw: Tensor) -> int:
    """Counts changes in place; 0 where the tensor does not."""
    return 0 if raw.is_inference() else raw._version
