"""Asking lenses of a network in memory: once, or at every so many steps of its training.

found = netloupe.ask(model, (images, labels), ["sparsity", "neural_collapse"], ["act*"])
history = netloupe.train(model, data, steps=500, watch=watching((images, labels), ["sparsity"]), watch_every=50)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from netloupe.core.batches import batches_of, prepare
from netloupe.core.capture import CaptureOptions, Sites, capture, class_labels, feed
from netloupe.core.errors import InputError, NetloupeError
from netloupe.core.finding import Finding
from netloupe.core.lens import Lens, find_lenses, get_lens
from netloupe.core.reading import Pool, pool
from netloupe.core.statistics import Statistic
from netloupe.core.training import Watch

NETWORK = "(network)"  # the place of an answer that is about no single site


@dataclass(frozen=True)
class Asked:
    """One lens asked at one site: its finding, or the sentence why there is none."""

    lens: Lens
    site: str
    other: str | None = None
    finding: Finding | None = None
    refusal: str = ""

    @property
    def place(self) -> str:
        """The site, or both sites with a bar between."""
        return self.site if self.other is None else f"{self.site} | {self.other}"


def ask_site(
    lens: Lens,
    site: str,
    features: Any,
    labels: Any,
    statistics: Mapping[str, Statistic],
    classifier: tuple[Any, Any] | None = None,
) -> Asked:
    """One lens at one site. ``statistics`` are those of the site by ``<lens>/<name>``, ``classifier`` weight and bias of
    the linear layer that the site feeds."""
    try:
        if lens.conclude is not None and "labels" in lens.needs and labels is None:
            return Asked(lens, site, refusal=f"{lens.name} needs labels, which this data does not have")
        if lens.conclude is not None:
            own = {name: statistics[f"{lens.name}/{name}"] for name in lens.statistics}
            return Asked(lens, site, None, lens.conclude(own))
        given: dict[str, Any] = {"features": features}
        if "labels" in (*lens.needs, *lens.optional):
            given["labels"] = labels
        if "weight" in lens.optional and classifier is not None:
            given["weight"], given["bias"] = classifier
        missing = [name for name in lens.needs if given.get(name) is None]
        if missing:
            return Asked(lens, site, refusal=f"{lens.name} needs {', '.join(missing)}, which this data does not have")
        return Asked(lens, site, None, lens.function(**given))
    except NetloupeError as error:
        return Asked(lens, site, refusal=str(error))


def ask_pair(lens: Lens, one: tuple[str, Any], two: tuple[str, Any], **options: Any) -> Asked:
    """One lens that compares, asked of two sites, each its name and its ``(sample, unit)`` activations."""
    try:
        finding = lens.function(one[1], two[1], **options)
        placed = finding.in_context(site=f"{one[0]} | {two[0]}", n_samples=one[1].shape[0])
        return Asked(lens, one[0], two[0], placed)
    except NetloupeError as error:
        return Asked(lens, one[0], two[0], refusal=str(error))


def ask_network(lens: Lens, model: nn.Module, batches: Iterable[Any]) -> Asked:
    """One lens that asks the network itself; it reads ``batches`` as often as it needs."""
    try:
        return Asked(lens, NETWORK, None, lens.function(model=model, data=batches))
    except NetloupeError as error:
        return Asked(lens, NETWORK, refusal=str(error))


def statistics_of(lenses: Iterable[Lens], labelled: bool) -> dict[str, Any]:
    """Factories of everything that the one-pass lenses need, by ``<lens>/<name>``; without labels, of those that need none."""
    possible = [lens for lens in lenses if labelled or "labels" not in lens.needs]
    return {f"{lens.name}/{name}": factory for lens in possible for name, factory in lens.statistics.items()}


def has_classes(model: nn.Module, batches: Iterable[Any]) -> bool:
    """Whether the first batch comes with labels that name classes."""
    first = next(iter(batches), None)
    return first is not None and class_labels(prepare(first, model).labels) is not None


def ask(
    model: nn.Module,
    data: Any,
    lenses: Sequence[str] | str | None = None,
    sites: Sites = None,
    *,
    strict: bool = False,
    **options: Unpack[CaptureOptions],
) -> list[Asked]:
    """Every lens at every site of a network, in one pass over ``data``, with nothing written to disk.

    Parameters
    ----------
    model, data, sites, options : as in :func:`netloupe.capture`. ``pool`` (``mean`` by default) is what becomes of
        positions for lenses that need all rows at once; one-pass lenses see every position.
    lenses : names; None asks all that look at one site or at the network. Lenses of two sites are asked by
        ``netloupe.lenses.<name>(one, other)``.
    strict : raise the first refusal instead of listing it.

    Holds ``samples x units`` numbers a site in memory where a lens needs all rows; for more than memory holds, record and
    ask the store. Raises InputError for lenses of two sites, and the errors of :func:`netloupe.capture`.
    """
    wanted = [get_lens(name) for name in ([lenses] if isinstance(lenses, str) else lenses or find_lenses())]
    pairs = [lens.name for lens in wanted if lens.compares]
    if pairs and lenses is not None:
        raise InputError(f"lens '{pairs[0]}' compares two sites; call it with the activations of both")
    singles = [lens for lens in wanted if not lens.compares and not lens.of_network]
    policy: Pool = options.get("pool", "mean")
    batches = data if _can_be_read_again(data) else list(batches_of(data, options.get("batch_size", 64)))
    named: dict[str, dict[str, Statistic]] = {}
    rows: dict[str, list[Tensor]] = {}
    labels: list[Tensor | None] = []
    if singles:
        labelled = has_classes(model, batches_of(batches, options.get("batch_size", 64)))
        statistics, keeps = statistics_of(singles, labelled), any(lens.conclude is None for lens in singles)
        for captured in capture(model, batches, sites, **{**options, "pool": "none"}):
            feed(named, captured, statistics)
            labels.append(class_labels(captured.labels))
            for site, values in captured.activations.items():
                kept = rows.setdefault(site, [])
                if keeps:
                    kept.append(pool(values, captured.masks[site], policy).cpu())
    known = None if not labels or None in labels else torch.cat([one for one in labels if one is not None])
    answers = [ask_network(lens, model, batches_of(batches)) for lens in wanted if lens.of_network]
    for site, kept in rows.items():
        features = torch.cat(kept) if kept else None
        answers += [ask_site(lens, site, features, known, named.get(site, {})) for lens in singles]
    refused = next((one for one in answers if one.finding is None), None)
    if strict and refused is not None:
        raise InputError(f"{refused.lens.name} at {refused.site}: {refused.refusal}")
    return answers


def watching(
    data: Any, lenses: Sequence[str] | str | None = None, sites: Sites = None, **options: Unpack[CaptureOptions]
) -> Watch:
    """``watch=`` of :func:`netloupe.train`: the numbers of lenses at sites, under ``<site>/<lens>/<number>``.

    Arguments as in :func:`ask`; ``data`` stays the same during the run. A lens that refuses at a step leaves a gap there.
    """
    if not _can_be_read_again(data):
        data = list(batches_of(data, options.get("batch_size", 64)))

    def watch(model: nn.Module, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in ask(model, data, lenses, sites, **options):
            short = one.lens.name.rpartition(".")[2]
            if one.finding is not None:
                found |= {f"{one.site}/{short}/{name}": value for name, value in one.finding.summary().items()}
        return {name: float(value) if value is not None else math.nan for name, value in found.items()}

    return watch


def _can_be_read_again(data: Any) -> bool:
    return not (hasattr(data, "__next__") or (hasattr(data, "__iter__") and iter(data) is data))
