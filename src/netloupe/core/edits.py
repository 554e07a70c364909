"""Edits: what to change at a site, as small frozen objects; :mod:`netloupe.core.intervene` puts them in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError

Index = int | slice | Sequence[int] | np.ndarray | Tensor | None
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Edit:
    """A change to one site (or to all that a glob names).

    ``change`` maps activations ``(sample, position, unit)`` or ``(sample, unit)`` to activations of the same
    shape; only ``units``, ``positions`` and ``samples`` (each an index, slice or list; None is all) take the
    new values. ``prepare`` is called with the network when a block is entered and says which site takes which
    change in that block.
    """

    site: str
    change: Change
    units: Index = None
    positions: Index = None
    samples: Index = None
    prepare: Callable[[nn.Module], Mapping[str, Change]] | None = None

    def apply(self, activations: Tensor) -> Tensor:
        """The changed activations; what is not selected keeps its value and its gradient."""
        changed = self._values(activations)
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

    def _values(self, activations: Tensor) -> Tensor:
        """What ``change`` makes, in the type of the activations, which must be able to hold it."""
        made = self.change(activations)
        if not isinstance(made, (Tensor, np.ndarray, float, int)):
            raise InputError(
                f"the edit of site '{self.site}' gave a {type(made).__name__}, expected a tensor of activations"
            )
        given = torch.as_tensor(made, device=activations.device)
        changed = given.to(activations.dtype)
        whole = not activations.is_floating_point() and not activations.is_complex()
        if whole and given.is_floating_point() and not torch.equal(changed.to(given.dtype), given):
            raise InputError(
                f"site '{self.site}' holds {str(activations.dtype).removeprefix('torch.')} numbers, "
                "which cannot hold the fractions that this edit gives; change a later site"
            )
        return changed


def _selection(index: Index, activations: Tensor, axis: int, word: str, site: str) -> Tensor:
    size = activations.shape[axis]
    if index is None:
        return torch.ones((), dtype=torch.bool, device=activations.device)
    flags = torch.zeros(size, dtype=torch.bool, device=activations.device)
    try:
        flags[index if isinstance(index, (int, slice, Tensor)) else torch.as_tensor(np.asarray(_listed(index)))] = True
    except (IndexError, TypeError, ValueError):
        raise InputError(f"{word} {index} was chosen at site '{site}', which has {size} {word}s") from None
    shape = [1] * activations.ndim
    shape[axis] = size
    return flags.reshape(shape)


def _listed(index: Any) -> Any:
    """Positions as an array of integers, or flags; an empty list chooses nothing."""
    if isinstance(index, (np.ndarray, np.generic)):
        return index
    return np.array(list(index), dtype=np.int64) if not len(index) else list(index)


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
    given = None if reference is None else torch.as_tensor(reference)

    def change(activations: Tensor) -> Tensor:
        if to == "zero":
            return torch.zeros_like(activations)
        if given is not None:
            return given.to(activations.device)
        exact = activations if activations.is_floating_point() or activations.is_complex() else activations.double()
        return exact.mean(tuple(range(activations.ndim - 1)), keepdim=True)

    if to != "resample":
        return Edit(site, change, units, positions, samples)

    def begin(_: nn.Module | None) -> dict[str, Change]:
        return {site: _resampling(given, random_state)}

    return Edit(site, begin(None)[site], units, positions, samples, begin)


def _resampling(reference: Tensor | None, random_state: int) -> Change:
    """Draws rows anew in every pass, and the same ones in every block."""
    generator = torch.Generator().manual_seed(random_state)

    def change(activations: Tensor) -> Tensor:
        n = len(activations)
        if reference is None:
            return activations[torch.randperm(n, generator=generator).to(activations.device)]
        rows = torch.randint(len(reference), (n,), generator=generator)
        drawn = reference[rows.to(reference.device)].to(activations.device)
        return drawn[:, None] if drawn.ndim == 2 and activations.ndim == 3 else drawn

    return change


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
    vector = torch.as_tensor(direction)
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
        _require_units(rows[0], activations, site, "basis")
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

    ``source`` is a tensor of activations (one row is used for all samples; rows without positions for all positions)
    or a stored site, of which ``rows`` are taken; ``inputs`` instead runs the network once on another batch and takes
    what the site says there, each site that a glob names and each call of its own.
    """
    if (source is None) == (inputs is None):
        raise InputError("patch needs either source (activations) or inputs (another input to run), and not both")

    if inputs is None:
        return Edit(site, _patching(_taken(source, rows), site), units, positions, samples)

    def begin(model: nn.Module) -> dict[str, Change]:
        captured = next(capture(model, inputs if isinstance(inputs, list) else [inputs], site, nonfinite="allow"))
        return {name: _patching(_taken(found, rows), name) for name, found in captured.activations.items()}

    return Edit(site, lambda a: a, units, positions, samples, begin)


def _taken(found: Any, rows: Index) -> Tensor:
    """The chosen rows of activations or of a stored site."""
    if isinstance(rows, (int, np.integer)):
        rows = [int(rows)]
    if rows is None or isinstance(rows, slice):
        return torch.as_tensor(found[slice(None) if rows is None else rows])
    return torch.as_tensor(found[torch.as_tensor(rows)] if isinstance(found, Tensor) else found[np.asarray(rows)])


def _patching(values: Tensor, site: str) -> Change:
    def change(activations: Tensor) -> Tensor:
        if values.ndim != 2 or activations.ndim != 3:
            return values.to(activations.device)
        n_samples, n_positions, _ = activations.shape
        if len(values) == n_samples == n_positions > 1:
            raise InputError(
                f"{len(values)} rows to patch into site '{site}' may be samples or positions, as it has {n_samples} of "
                "each; give them as (sample, position, unit)"
            )
        return (values[:, None] if len(values) == n_samples else values).to(activations.device)

    return change


def replace_with(
    site: str, change: Change, *, units: Index = None, positions: Index = None, samples: Index = None
) -> Edit:
    """Puts ``change(activations)`` in place: a reconstruction spliced back in, a user's own edit."""
    return Edit(site, change, units, positions, samples)


def _require_units(vector: Tensor, activations: Tensor, site: str, word: str) -> None:
    if vector.shape[-1] != activations.shape[-1]:
        raise InputError(f"the {word} has {vector.shape[-1]} units, site '{site}' has {activations.shape[-1]}")
