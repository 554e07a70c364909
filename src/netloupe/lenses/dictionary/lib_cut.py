"""The part of a network between two of its sites, as a function that torch can differentiate.

Source: Bushnaq et al., "The Local Interaction Basis", arXiv 2405.10928 (node layers; LayerNorm in two of them).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from netloupe.core.batches import Batch, batches_of, moved, prepare
from netloupe.core.capture import tap
from netloupe.core.errors import InputError
from netloupe.core.forward import run
from netloupe.core.intervene import intervene, replace_with
from netloupe.lenses.dictionary.lib_metric import Map


def cut(
    model: nn.Module, sites: Sequence[str], inputs: Any, *, dtype: torch.dtype = torch.float64, batch_size: int = 256
) -> tuple[list[Tensor], list[Map]]:
    """Activations at ``sites`` and the maps between them, of any network, for ``interaction_basis``.

    A map runs a copy of the network (``dtype``, evaluation mode) on one fixed input with its own site replaced, and reads the
    next: what depends on anything but the site shows, for the map then does not give the next layer.

    Args:
        sites: names of sites in the order they run, each ``(sample, unit)`` or ``(sample, position, unit)``. inputs: arrays,
            ``(inputs, labels)`` or batches, as ``capture`` takes them.

    Returns ``(acts, maps)``; gradients flow through maps, and a module may be its own map where it stands between two sites.
    Cost: one pass for the activations; a map costs a pass of the whole network. Not for several threads at once. Raises
    SiteError for unknown sites; InputError for fewer than two, other shapes, or a map that does not give the next site: a
    bypass around the site (a skip), or a site that comes after the next.
    """
    names = list(sites)
    if isinstance(sites, str) or len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"sites are {sites}, at least two different names are needed, in the order they run")
    own = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    acts: dict[str, list[Tensor]] = {name: [] for name in names}
    first: Batch | None = None
    for raw in batches_of(inputs, batch_size):
        batch = _as(prepare(raw, own), dtype)
        first = first or batch
        with tap(own, names) as seen, torch.no_grad():
            run(own, batch)
        for name in names:
            acts[name].append(_readable(seen, name, batch.n_samples))
    if first is None:
        raise InputError("the data holds no batch, at least one is needed")
    joined = [torch.cat(acts[name]) for name in names]
    maps = [_between(own, a, b, first) for a, b in pairwise(names)]
    for a, b, f, x, y in zip(names, names[1:], maps, joined, joined[1:]):
        rows = slice(-min(batch_size, len(x)), None)  # the last ones: the fixed input is the first
        with torch.no_grad():
            off = float((f(x[rows]) - y[rows]).abs().max() / y[rows].abs().max().clamp_min(1e-300))
        if not off <= (1e-8 if dtype == torch.float64 else 1e-3):
            raise InputError(
                f"'{b}' does not follow from '{a}' alone (off by {off:.2g} of its largest value): something goes around the "
                "site, such as a skip; choose sites that hold all that flows"
            )
    return joined, maps


def _between(model: nn.Module, site: str, following: str, batch: Batch) -> Map:
    def f(x: Tensor) -> Tensor:
        fixed = _repeated(batch, len(x))
        with intervene(model, replace_with(site, lambda _: x)), tap(model, following) as seen:
            run(model, fixed)
        return seen[following]

    return f


def _readable(seen: dict[str, Tensor], name: str, n_samples: int) -> Tensor:
    if name not in seen:
        raise InputError(f"site '{name}' stands for several tensors or none; name one")
    value = seen[name]
    if value.ndim not in (2, 3) or len(value) != n_samples or not value.is_floating_point():
        raise InputError(
            f"site '{name}' holds {tuple(value.shape)}, expected (sample, unit) or (sample, position, unit) of real numbers"
        )
    return value.detach()


def _as(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its real numbers as ``dtype``."""

    def change(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return Batch(moved(batch.args, change), moved(batch.kwargs, change), batch.labels, batch.mask, batch.n_samples)


def _repeated(batch: Batch, n: int) -> Batch:
    """The batch's first sample, ``n`` times."""

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch.n_samples:
            return value
        return value[:1].expand(n, *value.shape[1:]).clone()

    return Batch(moved(batch.args, change), moved(batch.kwargs, change), None, None, n)
