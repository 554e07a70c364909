"""One forward pass, read: which tensors fire, what their axes mean, and whether they can be trusted.

The first pass discovers (names, calls, layouts); later ones check that the network still does the same.
"""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.forward import Holders, run, with_own_inputs
from netloupe.core.hooks import Visit, attach, hidden_by_script, require_readable, unpack_packed
from netloupe.core.isolation import Buffers, Mode, guest
from netloupe.core.sites import (
    Address,
    Layout,
    LayoutTracker,
    NotPerSample,
    SiteInfo,
    declared_time_first,
    dtype_name,
    infer_layout,
    module_paths,
    select,
)
from netloupe.core.values import Side, entries_of, flatten, inner_lengths, main_key, main_tensor, unreadable

Pool = Literal["none", "mean", "max", "cls", "last", "flatten"]
Place = tuple[str, Side, str, int]  # path, side, key, call
Axes = tuple[int | None, bool]  # the unit axis, and whether time stands before samples
POOLS: tuple[Pool, ...] = ("none", "mean", "max", "cls", "last", "flatten")


@dataclass(frozen=True)
class Fired:
    """A raw tensor as a pass showed it, and what is needed to see whether it was overwritten since."""

    raw: Tensor
    version: int
    mask: Tensor | None
    source: Tensor | None
    copied: bool

    @property
    def overwritten(self) -> bool:
        """Whether the network has changed the tensor in place after it was seen."""
        return not self.copied and self.raw._version != self.version


@dataclass(frozen=True)
class Target:
    """A site settled by the first pass."""

    address: Address  # with its key; ``call`` is the index in a pass
    info: SiteInfo
    n_calls: int | None  # None where this one call was asked for: how many others there are does not matter


class Reader:
    """Runs ``model`` on prepared batches and hands out the raw tensors of the selected sites.

    Nothing is recorded for backward (:func:`netloupe.tap` keeps the graph). A network on any device is read where it is.
    """

    _turn = threading.RLock()

    def __init__(
        self,
        model: nn.Module,
        sites: Any = None,
        *,
        mode: Mode = "eval",
        seed: int | None = 0,
        unit_axis: dict[str, int] | None = None,
        batch_axis: int = 0,
    ) -> None:
        self.model, self.seed, self.batch_axis = model, seed, batch_axis
        self.mode: Mode = mode
        self.paths = module_paths(model)
        self.selected = select(model, sites)
        self.overrides = unit_axis or {}
        self.targets: list[Target] = []
        self._copy: set[Place] = set()
        self._buffers = Buffers(model)
        self._silent: set[tuple[str, Side]] = set()  # called, but with nothing that holds a tensor
        owned = [tensor for tensor in [*model.parameters(), *model.buffers()] if not is_lazy(tensor)]
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        for address, is_glob in self.selected:
            if not is_glob:
                require_readable(model, address.path)

    def read(self, batch: Batch, index: int = 0) -> tuple[dict[str, Fired], Any]:
        """One pass: raw tensors by site name in the order they fired, and the network's output.

        A tensor that the network later overwrites in place is noticed and the pass repeated with a copy of it.
        """
        for _ in range(2):
            fired, output = self._run(batch, index)
            if not self.targets:
                self.targets = self._settle(fired, batch)
            overwritten = {key for key, seen in fired.items() if self._is_wanted(key) and seen.overwritten}
            if not overwritten:
                break
            self._copy |= overwritten
        return self._check(self._safe(fired, output)), output

    def layout(self, target: Target, raw: Tensor, batch: Batch) -> Layout:
        """The axes of ``raw``, which may have another length than in the first batch but not another meaning."""
        known, n_samples = target.info.layout, batch.n_samples
        try:
            if (
                known.unit_axis is not None
                and raw.ndim > known.sample_axis
                and raw.shape[known.sample_axis] == n_samples
            ):
                return Layout(known.sample_axis, known.unit_axis)
            lengths = inner_lengths((batch.args, batch.kwargs))
            return infer_layout(raw, known.unit_axis, n_samples, known.sample_axis == 1, lengths)
        except (NotPerSample, IndexError) as error:
            raise SiteError(f"site '{target.info.name}' changed between batches: it now {error}") from None

    def _run(self, batch: Batch, index: int) -> tuple[dict[Place, Fired], Any]:
        fired: dict[Place, Fired] = {}
        discovering = not self.targets
        keys = {(t.address.path, t.address.side, t.address.key) for t in self.targets}

        def visit(seen: Visit) -> None:
            value, mask = unpack_packed(seen.value)
            entries = entries_of(value, seen.side)
            source = main_tensor(seen.source) if discovering and seen.source is not None else None
            for key, raw in entries:
                if discovering or (seen.path, seen.side, key) in keys:
                    own = mask if key in ("", "0") else None  # the states of a packed pass are not padded
                    fired[seen.path, seen.side, key, seen.call] = self._keep(raw, own, source, seen, key)
            if not entries:
                self._silent.add((seen.path, seen.side))

        seed = None if self.seed is None else self.seed * 1_000_003 + index
        with (
            self._turn,
            guest(self.model, self.mode, seed, self._buffers),
            torch.no_grad(),
            attach(self.model, self._sides(), visit, self.paths),
        ):
            output = run(self.model, with_own_inputs(batch))
        return fired, output

    def _sides(self) -> list[tuple[str, Side]]:
        """What to listen to: everything in the first pass, later what was settled."""
        if self.targets:
            return list(dict.fromkeys((t.address.path, t.address.side) for t in self.targets))
        hidden = {path for path in self.paths if hidden_by_script(self.paths, path)}
        wanted: list[tuple[str, Side]] = [
            (address.path, address.side) for address, _ in self.selected if address.path not in hidden
        ]
        everything: list[tuple[str, Side]] = [
            (path, "out") for path, _ in self.model.named_modules() if path not in hidden
        ]
        return list(dict.fromkeys([*wanted, *everything]))

    def _safe(self, fired: dict[Place, Fired], output: Any) -> dict[Place, Fired]:
        """The same tensors, copied where the network keeps their memory for itself and may fill it anew."""
        kept = [tensor for seen in fired.values() for tensor in (seen.raw, seen.source) if tensor is not None]
        holders = Holders(self.model, [*kept, *(tensor for _, tensor in flatten(output))])
        return {
            place: dataclasses.replace(seen, raw=seen.raw.clone(), copied=True)
            if not seen.copied and self._is_wanted(place) and holders.outlives(seen.raw)
            else seen
            for place, seen in fired.items()
        }

    def _keep(self, raw: Tensor, mask: Tensor | None, source: Tensor | None, seen: Visit, key: str) -> Fired:
        place = (seen.path, seen.side, key, seen.call)
        # A view of a weight or buffer, or a tensor without a version counter, may change without notice.
        if unreadable(raw):
            return Fired(raw, 0, mask, source, True)
        copy = place in self._copy or raw.is_inference() or raw.untyped_storage().data_ptr() in self._owned
        kept = raw.clone() if copy else raw
        return Fired(kept, 0 if kept.is_inference() else kept._version, mask, source, copy)

    def _is_wanted(self, key: Place) -> bool:
        return any((t.address.path, t.address.side, t.address.key, t.address.call) == key for t in self.targets)

    def _settle(self, fired: dict[Place, Fired], batch: Batch) -> list[Target]:
        tracker = LayoutTracker(self.overrides, self.batch_axis == 1)
        axes: dict[Place, Axes] = {}
        for place, seen in fired.items():
            path, side, key, _ = place
            name = Address(path, "in" if side == "in" else "out").name
            module = self.paths[path] if side == "out" and key in ("", "0") else nn.Identity()
            axis = tracker.unit_axis(name, module, seen.raw, seen.source)
            tracker.learn(seen.raw, axis)
            # packed sequences are unpacked with samples first
            opinion = False if seen.mask is not None else declared_time_first(self.paths, path, side, key)
            axes[place] = axis, tracker.time_first(opinion, self.paths[path], seen.raw, seen.source)
        found: list[tuple[int, Target]] = []
        taken: set[int] = set()
        order = {place: position for position, place in enumerate(fired)}
        for address, is_glob in self.selected:
            for place, target in self._targets_of(address, is_glob, fired, axes, batch):
                if is_glob and id(fired[place].raw) in taken:
                    continue
                taken.add(id(fired[place].raw))
                found.append((order[place], target))
        if not found:
            names = ", ".join(repr(address.name) for address, _ in self.selected[:4])
            raise SiteError(f"none of the selected sites ({names}) gives one value per sample in the forward pass")
        return [target for _, target in sorted(found, key=lambda item: item[0])]

    def _targets_of(
        self,
        address: Address,
        is_glob: bool,
        fired: dict[Place, Fired],
        axes: dict[Place, Axes],
        batch: Batch,
    ) -> list[tuple[Place, Target]]:
        calls = sorted({place[3] for place in fired if place[:2] == (address.path, address.side)})
        problem = "" if calls else "was never called in the forward pass"
        if (address.path, address.side) in self._silent:
            problem = "gives nothing that holds a tensor"
        chosen = []
        for call in calls if address.call is None else [c for c in calls if c == address.call]:
            entries = [
                (p[2], seen.raw) for p, seen in fired.items() if p[:2] == (address.path, address.side) and p[3] == call
            ]
            key = address.key if address.key is not None else main_key(entries)
            place = (address.path, address.side, key or "", call)
            if place not in fired:
                problem = f"has no tensor '{key}'; it holds {[name for name, _ in entries]}"
                continue
            raw = fired[place].raw
            try:
                axis, time_first = axes[place]
                lengths = inner_lengths((batch.args, batch.kwargs))
                layout = infer_layout(raw, axis, batch.n_samples, time_first, lengths)
            except NotPerSample as reason:
                problem = str(reason)
                continue
            label = dataclasses.replace(address, call=call if len(calls) > 1 or address.call is not None else None)
            settled = dataclasses.replace(address, key=key or "", call=call)
            n_calls = len(calls) if address.call is None else None
            chosen.append((place, Target(settled, self._info(label.name, settled, raw, layout), n_calls)))
        if address.call is not None and calls and address.call not in calls:
            problem = f"was called {len(calls)} times in the forward pass, so '#{address.call}' does not exist"
        if problem and not chosen and not is_glob:
            raise SiteError(f"site '{address.name}' {problem}")
        return chosen

    def _info(self, name: str, address: Address, raw: Tensor, layout: Layout) -> SiteInfo:
        shape = tuple(layout.to_activations(raw).shape[1:])
        module = type(self.paths[address.path]).__name__
        return SiteInfo(name, module, shape, layout.position_shape(raw), dtype_name(raw.dtype), layout)

    def _check(self, fired: dict[Place, Fired]) -> dict[str, Fired]:
        found: dict[str, Fired] = {}
        for target in self.targets:
            address = target.address
            place = (address.path, address.side, address.key or "", address.call or 0)
            n_calls = len({other[3] for other in fired if other[:3] == place[:3]})
            if n_calls != (target.n_calls or n_calls) or place not in fired:
                raise SiteError(
                    f"site '{target.info.name}' was called {target.n_calls or (address.call or 0) + 1} times in the "
                    f"first batch and {n_calls} times in a later one; select single calls that always happen"
                )
            seen = fired[place]
            axis = target.info.layout.unit_axis
            if axis is not None and (axis >= seen.raw.ndim or seen.raw.shape[axis] != target.info.n_units):
                raise SiteError(
                    f"site '{target.info.name}' changed between batches: it had {target.info.n_units} units, "
                    f"its tensor now has shape {tuple(seen.raw.shape)}"
                )
            found[target.info.name] = seen
        return found


def site_mask(mask: Tensor | None, info: SiteInfo, activations: Tensor) -> Tensor | None:
    """The padding mask ``(sample, time)`` as ``(sample, position)`` of one site, where its positions are times.

    A site over pairs of times (attention weights) keeps a pair when both are real; a site with other
    positions has no mask.
    """
    if mask is None or activations.ndim != 3 or mask.ndim != 2:
        return None
    time, positions = mask.shape[1], activations.shape[1]
    if positions == time:
        return mask
    if positions == time * time and len(info.position_shape) == 2:
        return (mask[:, :, None] & mask[:, None, :]).reshape(len(mask), -1)
    return None


def pool(activations: Tensor, mask: Tensor | None, policy: Pool) -> Tensor:
    """One row per sample from ``(sample, position, unit)``; padded positions take no part.

    ``mean`` and ``max`` over positions, ``cls`` the first, ``last`` the last real one, ``flatten`` all of them
    side by side; ``none`` changes nothing.
    """
    if policy not in POOLS:
        raise InputError(f"pool is '{policy}', expected one of {', '.join(POOLS)}")
    if policy == "none" or activations.ndim == 2:
        return activations
    if policy == "flatten":
        return activations.flatten(1)
    if policy == "cls":
        return activations[:, 0]
    if policy == "max" and activations.is_complex():
        raise InputError("complex numbers have no largest, so they cannot be pooled by 'max'; use mean, cls or last")
    wide = torch.promote_types(activations.dtype, torch.float32)
    kept = activations.dtype if activations.is_floating_point() else wide
    if mask is None:
        if policy == "last":
            return activations[:, -1]
        return activations.mean(1, dtype=wide).to(kept) if policy == "mean" else activations.amax(1)
    real = mask.to(activations.device)
    if not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise InputError(f"sample {row} of a batch has no unmasked position, so it cannot be pooled by '{policy}'")
    if policy == "last":
        index = real.shape[1] - 1 - real.flip(1).int().argmax(1)
        return activations[torch.arange(len(activations), device=activations.device), index]
    if policy == "max":
        return activations.to(kept).masked_fill(~real[..., None], float("-inf")).amax(1)
    total = activations.to(wide).masked_fill(~real[..., None], 0.0).sum(1)
    return (total / real.sum(1, keepdim=True)).to(kept)


def require_finite(name: str, activations: Tensor, mask: Tensor | None, first_sample: int) -> None:
    """Raises :class:`NonFiniteError` naming site, sample and unit of the first NaN or infinity."""
    number = activations.is_floating_point() or activations.is_complex()
    if not number or activations.numel() == 0 or bool(torch.isfinite(activations.sum())):
        return
    bad = ~torch.isfinite(activations)
    if mask is not None and activations.ndim == 3:
        bad &= mask.to(bad.device)[..., None]
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        value = activations[tuple(place)].item()
        where = f"sample {first_sample + place[0]}" + (f", position {place[1]}" if len(place) == 3 else "")
        raise NonFiniteError(
            f"site '{name}' is {value} at {where}, unit {place[-1]}; "
            "look for a division by zero or an overflow there, or pass nonfinite='allow'"
        )
