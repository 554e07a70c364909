"""Changing activations while a network runs.

``with intervene(model, ablate("layer2.relu", units=[3]), steer("layer3", direction, 2.0)): model(x)``

Each edit is a small frozen object; edits compose in the order given, blocks nest (the inner one sees what the
outer one made), gradients flow through, and leaving the block restores the network. A site may be a glob and
may name one call (``block#1``). An edit works on activations, the unit axis last, whatever the raw layout is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, SiteError
from netloupe.core.hooks import Visit, attach, require_readable, unpack_packed, unwrap
from netloupe.core.sites import (
    Address,
    Layout,
    LayoutTracker,
    NotPerSample,
    Side,
    entries_of,
    exchange,
    infer_layout,
    inner_lengths,
    is_sequence_first,
    main_key,
    main_tensor,
    module_paths,
    select,
)

Index = int | slice | Sequence[int] | Tensor | None
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Edit:
    """A change to one site (or to all that a glob names).

    ``change`` maps activations ``(sample, position, unit)`` or ``(sample, unit)`` to activations of the same
    shape; only ``units``, ``positions`` and ``samples`` (each an index, slice or list; None is all) take the
    new values. ``prepare`` is called with the network when a block is entered.
    """

    site: str
    change: Change
    units: Index = None
    positions: Index = None
    samples: Index = None
    prepare: Callable[[nn.Module], Change] | None = None

    def apply(self, activations: Tensor) -> Tensor:
        """The changed activations; what is not selected keeps its value and its gradient."""
        changed = self.change(activations).to(activations.dtype)
        if changed.shape != activations.shape:
            changed = _broadcast(changed, activations, self.site)
        if self.units is None and self.positions is None and self.samples is None:
            return changed
        chosen = torch.ones(activations.shape, dtype=torch.bool, device=activations.device)
        chosen &= _selection(self.samples, activations, 0, "sample", self.site)
        chosen &= _selection(self.units, activations, -1, "unit", self.site)
        if self.positions is not None and activations.ndim != 3:
            raise InputError(f"site '{self.site}' has no position axis, so positions cannot be chosen there")
        if self.positions is not None:
            chosen &= _selection(self.positions, activations, 1, "position", self.site)
        return torch.where(chosen, changed, activations)


def _selection(index: Index, activations: Tensor, axis: int, word: str, site: str) -> Tensor:
    size = activations.shape[axis]
    if index is None:
        return torch.ones((), dtype=torch.bool, device=activations.device)
    flags = torch.zeros(size, dtype=torch.bool, device=activations.device)
    try:
        flags[index if isinstance(index, (int, slice, Tensor)) else list(index)] = True
    except IndexError:
        raise InputError(f"{word} {index} was chosen at site '{site}', which has {size} {word}s") from None
    shape = [1] * activations.ndim
    shape[axis] = size
    return flags.reshape(shape)


def _broadcast(changed: Tensor, activations: Tensor, site: str) -> Tensor:
    try:
        return changed.expand(activations.shape)
    except RuntimeError:
        raise InputError(
            f"new values of shape {tuple(changed.shape)} do not fit site '{site}' of shape {tuple(activations.shape)}"
        ) from None


def ablate(
    site: str,
    to: Literal["zero", "mean", "resample"] = "zero",
    reference: Tensor | None = None,
    *,
    units: Index = None,
    positions: Index = None,
    samples: Index = None,
    random_state: int = 0,
) -> Edit:
    """Removes what a site says.

    ``zero`` sets it to 0; ``mean`` to ``reference`` (``(unit,)`` or ``(position, unit)``) or, without one, to the
    mean over the batch's samples and positions; ``resample`` to the values of other samples: rows of ``reference``
    ``(m, [position,] unit)`` drawn at random, or a random permutation of the batch.
    """
    if to not in ("zero", "mean", "resample"):
        raise InputError(f"to is '{to}', expected zero, mean or resample")
    generator = torch.Generator().manual_seed(random_state)

    def change(activations: Tensor) -> Tensor:
        if to == "zero":
            return torch.zeros_like(activations)
        if to == "mean":
            if reference is not None:
                return reference.to(activations)
            return activations.mean(tuple(range(activations.ndim - 1)), keepdim=True)
        pool = activations if reference is None else reference.to(activations)
        n = len(activations)
        rows = (
            torch.randperm(n, generator=generator)
            if reference is None
            else torch.randint(len(pool), (n,), generator=generator)
        )
        return pool[rows.to(pool.device)]

    return Edit(site, change, units, positions, samples)


def clamp(
    site: str,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    units: Index = None,
    positions: Index = None,
    samples: Index = None,
) -> Edit:
    """Limits activations to ``[minimum, maximum]``; both equal sets them to that value."""
    if minimum is None and maximum is None:
        raise InputError("clamp needs a minimum, a maximum or both")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise InputError(f"clamp has minimum {minimum} above maximum {maximum}")
    return Edit(site, lambda a: a.clamp(minimum, maximum), units, positions, samples)


def scale(
    site: str, factor: float | Tensor, *, units: Index = None, positions: Index = None, samples: Index = None
) -> Edit:
    """Multiplies activations by ``factor`` (a number, or ``(unit,)``)."""
    return Edit(site, lambda a: a * (factor.to(a) if isinstance(factor, Tensor) else factor), units, positions, samples)


def steer(
    site: str,
    direction: Float[Tensor, " unit"],
    strength: float,
    by: Literal["norm", "std", "raw"] = "norm",
    std: float | None = None,
    *,
    positions: Index = None,
    samples: Index = None,
) -> Edit:
    """Adds ``strength`` times a direction.

    ``norm``: the direction is brought to length 1 first. ``std``: to length 1, and strength counts in standard
    deviations of the activations along it: ``std`` where given, else measured on the batch. ``raw``: as it is.
    """
    vector = torch.as_tensor(direction).detach()
    if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
        raise InputError(f"a steering direction has shape {tuple(vector.shape)}; one finite vector (unit,) is expected")
    if by != "raw" and float(vector.norm()) == 0:
        raise InputError("a steering direction of length 0 points nowhere; give another or use by='raw'")
    if by not in ("norm", "std", "raw"):
        raise InputError(f"by is '{by}', expected norm, std or raw")

    def change(activations: Tensor) -> Tensor:
        _require_units(vector, activations, site, "direction")
        step = vector.to(activations)
        if by != "raw":
            step = step / step.norm()
        size = strength
        if by == "std":
            along = activations.detach() @ step
            size = strength * (std if std is not None else float(along.std(correction=0)))
        return activations + size * step

    return Edit(site, change, None, positions, samples)


def project_out(
    site: str, basis: Float[Tensor, "direction unit"], *, positions: Index = None, samples: Index = None
) -> Edit:
    """Removes the subspace spanned by the rows of ``basis`` (they need not be orthogonal): ``a - a Q Q^T``."""
    given = torch.atleast_2d(torch.as_tensor(basis)).detach()
    rows = given.double()
    if not bool(torch.isfinite(rows).all()) or rows.numel() == 0:
        raise InputError(
            "the subspace to project out holds NaN, infinity or nothing; finite rows (direction, unit) are expected"
        )
    # rows that depend on each other do so only to the precision they were given in
    eps = torch.finfo(given.dtype if given.is_floating_point() else torch.float64).eps
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    span = right[singular > singular.max() * max(rows.shape) * eps]

    def change(activations: Tensor) -> Tensor:
        _require_units(span[0], activations, site, "basis")
        q = span.to(activations)
        return activations - (activations @ q.T) @ q

    return Edit(site, change, None, positions, samples)


def patch(
    site: str,
    source: Any = None,
    *,
    inputs: Any = None,
    rows: Index = None,
    units: Index = None,
    positions: Index = None,
    samples: Index = None,
) -> Edit:
    """Puts activations from elsewhere in place.

    ``source`` is a tensor of activations (one row is used for all samples) or a stored site, of which ``rows``
    are taken; ``inputs`` instead runs the network once on another input and takes what the site says there.
    """
    if (source is None) == (inputs is None):
        raise InputError("patch needs either source (activations) or inputs (another input to run), and not both")

    def values(found: Any) -> Change:
        taken = (
            found
            if isinstance(found, Tensor)
            else found.rows(list(rows))
            if isinstance(rows, Sequence)
            else found[rows or slice(None)]
        )
        tensor = torch.as_tensor(taken)
        return lambda activations: tensor.to(activations)

    if inputs is None:
        return Edit(
            site,
            values(source if rows is None or not isinstance(source, Tensor) else source[rows]),
            units,
            positions,
            samples,
        )

    def prepare(model: nn.Module) -> Change:
        captured = next(
            capture(model, [inputs] if isinstance(inputs, (Tensor, dict)) else inputs, site, nonfinite="allow")
        )
        return values(next(iter(captured.activations.values())))

    return Edit(site, lambda a: a, units, positions, samples, prepare)


def replace_with(
    site: str, change: Change, *, units: Index = None, positions: Index = None, samples: Index = None
) -> Edit:
    """Puts ``change(activations)`` in place: a reconstruction spliced back in, a user's own edit."""
    return Edit(site, change, units, positions, samples)


def _require_units(vector: Tensor, activations: Tensor, site: str, word: str) -> None:
    if vector.shape[-1] != activations.shape[-1]:
        raise InputError(f"the {word} has {vector.shape[-1]} units, site '{site}' has {activations.shape[-1]}")


@contextmanager
def intervene(model: nn.Module, *edits: Edit, unit_axis: dict[str, int] | None = None) -> Iterator[None]:
    """Runs the block with ``edits`` in force.

    Raises
    ------
    SiteError at once for unknown sites, and on leaving the block when the network ran but an edit's site never
    did; InputError from inside the network's call for values that do not fit.
    """
    model = unwrap(model)
    placed = [(address, is_glob, dataclasses.replace(edit, change=edit.prepare(model) if edit.prepare else edit.change))
              for edit in edits for address, is_glob in select(model, edit.site)]  # fmt: skip
    for address, is_glob, _ in placed:
        if not is_glob:
            require_readable(model, address.path)
    writer = _Writer(model, placed, unit_axis)
    with attach(model, writer.targets, writer.visit):
        yield
    writer.require_all_applied()


class _Writer:
    """The visitor behind :func:`intervene`: finds each tensor's layout on the fly and applies the edits."""

    def __init__(
        self, model: nn.Module, placed: list[tuple[Address, bool, Edit]], unit_axis: dict[str, int] | None
    ) -> None:
        self.placed, self.paths = placed, module_paths(model)
        self.tracker = LayoutTracker(unit_axis)
        self.n_samples: int | None = None
        self.lengths: frozenset[int] = frozenset()
        self.ran = False
        self.applied: set[int] = set()
        wanted: list[tuple[str, Side]] = [(address.path, address.side) for address, _, _ in placed]
        everything: list[tuple[str, Side]] = [(path, "out") for path, _ in model.named_modules()]
        start: list[tuple[str, Side]] = [("", "in")]
        self.targets = list(dict.fromkeys([*start, *wanted, *everything]))

    def visit(self, seen: Visit) -> Any:
        """Learns the layout of what passes and, at an edited site, returns the changed value."""
        value, packed = unpack_packed(seen.value)
        found = dict(entries_of(value, seen.side))
        if (seen.path, seen.side) == ("", "in"):
            main, self.lengths = main_tensor(seen.value), inner_lengths(seen.value)
            self.n_samples, self.ran = (main.shape[0] if main is not None and main.ndim else None), True
        source = main_tensor(seen.source) if seen.source is not None else None
        axes: dict[str, int | None] = {}
        for key, raw in found.items():
            module = seen.module if seen.side == "out" and key in ("", "0") else nn.Identity()
            name = Address(seen.path, seen.side).name
            axes[key] = self.tracker.unit_axis(name, module, raw, source)
            self.tracker.learn(raw, axes[key])
        answer = None
        for position, (address, is_glob, edit) in enumerate(self.placed):
            if (address.path, address.side) != (seen.path, seen.side) or address.call not in (None, seen.call):
                continue
            if packed is not None:
                raise SiteError(f"site '{address.name}' is a packed sequence, which cannot be changed; pad it instead")
            key = address.key if address.key is not None else main_key(list(found.items()))
            if key is None or key not in found:
                continue
            changed = self._changed(seen, address, is_glob, edit, found[key], axes[key])
            if changed is None:
                continue
            self.applied.add(position)
            found[key] = changed
            self.tracker.learn(changed, axes[key])
            answer = exchange(seen.value if answer is None else answer, seen.side, key, changed)
        return answer

    def _changed(
        self, seen: Visit, address: Address, is_glob: bool, edit: Edit, raw: Tensor, axis: int | None
    ) -> Tensor | None:
        n_samples = self.n_samples if self.n_samples is not None else (raw.shape[0] if raw.ndim else 0)
        first = is_sequence_first(self.paths, address.path) and not (
            seen.source is None and address.path.endswith("out_proj")
        )
        try:
            layout: Layout = infer_layout(raw, axis, n_samples, first, self.lengths)
        except NotPerSample as reason:
            if is_glob:
                return None
            raise SiteError(f"site '{address.name}' cannot be changed: it {reason}") from None
        return layout.from_activations(edit.apply(layout.to_activations(raw)), raw)

    def require_all_applied(self) -> None:
        """An edit that never took place would be a silent lie about the network."""
        for position, (address, is_glob, _) in enumerate(self.placed):
            if self.ran and not is_glob and position not in self.applied:
                raise SiteError(f"site '{address.name}' was not reached in the block, so its edit did nothing")
