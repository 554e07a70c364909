"""A small gate in every block that rescales and shifts what its MLP says, token by token.

Source: Gao et al., "Tuning Pre-trained Model via Moment Probing", arXiv 2307.11342 (partially shared recalibration).
The network stays frozen and as it was written: the gates live beside it and are in force inside a ``with`` block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import list_sites
from netloupe.core.errors import InputError, SiteError
from netloupe.core.intervene import Edit, intervene, replace_with
from netloupe.core.isolation import device_of
from netloupe.core.isolation import random_state as seeded


class RecalibratingAdapter(nn.Module):
    """``scale, shift`` for each token: ``u = relu(D x)``, ``scale = U_s u``, ``shift = U_b u``, none with a bias.

    Args:
        dim: units of a token.
        reduction: width of the bottleneck that both share, 16 as published.
        zero_init: start ``U_s`` and ``U_b`` at 0, so that nothing changes at first. As published they start at torch's
            default for linear layers, so the network is disturbed a little before any training.

    ``3 dim reduction`` parameters. Raises InputError for sizes below 1.
    """

    def __init__(self, dim: int, reduction: int = 16, zero_init: bool = False) -> None:
        super().__init__()
        if min(dim, reduction) < 1:
            raise InputError(f"dim is {dim} and reduction {reduction}, expected at least 1 of each")
        self.down = nn.Linear(dim, reduction, bias=False)
        self.up_scale = nn.Linear(reduction, dim, bias=False)
        self.up_shift = nn.Linear(reduction, dim, bias=False)
        if zero_init:
            nn.init.zeros_(self.up_scale.weight)
            nn.init.zeros_(self.up_shift.weight)

    def forward(self, x: Float[Tensor, "... dim"]) -> tuple[Float[Tensor, "... dim"], Float[Tensor, "... dim"]]:
        """``(scale, shift)``: the site becomes ``shift + (1 + scale) * value``."""
        inner = torch.relu(self.down(x))
        return self.up_scale(inner), self.up_shift(inner)


class Recalibration(nn.Module):
    """The adapters of several sites; ``adapters.parameters()`` is what an optimiser is to train."""

    def __init__(self, widths: Mapping[str, int], reduction: int = 16, zero_init: bool = False) -> None:
        super().__init__()
        self.sites = tuple(widths)
        self.adapters = nn.ModuleList(RecalibratingAdapter(dim, reduction, zero_init) for dim in widths.values())


@contextmanager
def attach_recalibration(
    model: nn.Module,
    sites: str | Sequence[str],
    example: Any,
    *,
    sources: Sequence[str] | None = None,
    adapters: Recalibration | None = None,
    reduction: int = 16,
    zero_init: bool = False,
    random_state: int | None = None,
) -> Iterator[Recalibration]:
    """Runs the block with an adapter at each site: ``value <- shift + (1 + scale) * value``.

    Args:
        model: any network; no weight or module of it is changed, and after the block it is as it was.
        sites: the MLPs' outputs, names or globs, such as ``"blocks.*.mlp"``.
        example: data for one pass, from which the sites' widths are read (see ``netloupe.capture``).
        sources: for each site, the site that its scale and shift are computed from; it must come earlier in the pass
            and have the same width. Transformers as published take the residual stream before the MLP's norm
            (``"blocks.0.norm2:in"``, ...). None takes the MLP's output itself, as published for ConvNeXt.
        adapters: those of an earlier block, to go on with; by default new ones are made.
        reduction, zero_init: as in :class:`RecalibratingAdapter`.
        random_state: seed of new adapters, which leaves the global random state alone; None draws from it.

    Yields the adapters. Freeze the network's own parameters (``requires_grad_(False)``) to train the adapters alone.
    Raises SiteError for unknown sites and sources that did not run before, InputError for widths that do not fit.
    """
    infos = list_sites(model, example, sites)
    widths = {info.name: info.n_units for info in infos}
    if sources is not None and len(sources) != len(widths):
        raise InputError(
            f"{len(sources)} sources were given for {len(widths)} sites ({', '.join(widths)}); one each is needed"
        )
    if adapters is None:
        with seeded(random_state):
            adapters = Recalibration(widths, reduction, zero_init)
        adapters.to(device_of(model))
    if adapters.sites != tuple(widths):
        raise InputError(f"the adapters are for {', '.join(adapters.sites)}, the sites are {', '.join(widths)}")
    edits: list[Edit] = []
    for index, site in enumerate(widths):
        adapter = adapters.adapters[index]
        if sources is None:
            edits.append(replace_with(site, _from_itself(adapter)))
        else:
            keep, change = _from_source(adapter, site, sources[index])
            edits += [replace_with(sources[index], keep), replace_with(site, change)]
    with intervene(model, *edits):
        yield adapters


def _from_itself(adapter: nn.Module) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        scale, shift = adapter(value)
        return shift + (1 + scale) * value

    return change


def _from_source(
    adapter: nn.Module, site: str, source: str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Two changes: one that only remembers what passes at the source, one that uses it at the site."""
    held: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        held[:] = [value]
        return value

    def change(value: Tensor) -> Tensor:
        if not held:
            raise SiteError(f"source '{source}' did not run before site '{site}'; name a site that comes earlier")
        scale, shift = adapter(held.pop())
        if scale.shape != value.shape:
            raise InputError(
                f"source '{source}' gives {tuple(scale.shape)} and site '{site}' {tuple(value.shape)}; the same is needed"
            )
        return shift + (1 + scale) * value

    return keep, change
