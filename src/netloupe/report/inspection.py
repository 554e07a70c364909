"""Asking every lens that applies at every site of a network, after one pass over the data."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from netloupe.core.asking import NETWORK, Asked, ask_network, ask_pair, ask_site, has_classes, statistics_of
from netloupe.core.batches import prepare
from netloupe.core.capture import CaptureOptions, Observation, list_sites, tap
from netloupe.core.errors import InputError, NetloupeError, StoreError
from netloupe.core.finding import library_versions, plain
from netloupe.core.forward import last_linear
from netloupe.core.isolation import guest
from netloupe.core.lens import Lens, find_lenses, get_lens
from netloupe.core.progress import track
from netloupe.core.reading import Pool
from netloupe.core.recording import record_and_observe
from netloupe.core.sites import SiteInfo
from netloupe.core.statistics import Moments, Quantiles, Statistic, TopK, restore
from netloupe.core.store import Store
from netloupe.lenses.similarity.cka import CKA, cka, cka_matrix
from netloupe.models.recipes import cache_folder
from netloupe.report.batches import within_memory
from netloupe.subjects import Data, Subject

TOP_SAMPLES = 6
_NO_SEQUENCE = "needs samples that follow each other in time; say so with --sequence where they do"
MOST_COMPARED = 24  # sites in the similarity map; more are thinned evenly
MOST_NEIGHBOURS = 3  # sites, evenly over depth, of which neighbours are compared by every other comparing lens
ALWAYS: dict[str, Any] = {"moments": Moments, "quantiles": Quantiles, "top": lambda: TopK(TOP_SAMPLES)}


@dataclass(frozen=True)
class Inspection:
    """All that a report shows.

    ``observation[site]`` holds ``moments``, ``quantiles`` and ``top`` (the top-activating samples of every unit) over
    all positions; ``answers`` the findings; ``compared`` the sites of the similarity map, in order.
    """

    subject: Subject
    data: Data
    sites: tuple[SiteInfo, ...]
    observation: Observation
    answers: tuple[Asked, ...]
    compared: tuple[str, ...]
    store: Path
    n_samples: int
    seconds: float
    date: str
    versions: dict[str, str] = field(default_factory=library_versions)

    def document(self) -> dict[str, Any]:
        """The inspection as JSON, without the report's path."""
        return {
            "subject": {"model": self.subject.identity, "data": self.data.identity, "n_samples": self.n_samples},
            "sites": [{"name": site.name, "shape": list(site.shape)} for site in self.sites],
            "findings": [
                {"lens": a.lens.name, "site": a.place, "summary": plain(a.finding.summary()), "paragraph": a.finding.paragraph()}
                for a in self.answers if a.finding is not None
            ],
            "refused": [{"lens": a.lens.name, "site": a.site, "why": a.refusal} for a in self.answers if a.refusal],
        }  # fmt: skip

    def at(self, site: str) -> list[Asked]:
        """Every lens asked at one site alone; ``NETWORK`` for those that ask the whole network."""
        return [asked for asked in self.answers if asked.site == site and asked.other is None]

    def similarity(self) -> np.ndarray:
        """``(site, site)`` of ``similarity.cka`` between the compared sites: 1 with itself, NaN where not defined."""
        index = {site: position for position, site in enumerate(self.compared)}
        table = np.full((len(index), len(index)), np.nan)
        np.fill_diagonal(table, 1.0)
        for asked in self.answers:
            if asked.other is not None and asked.finding is not None and asked.lens.name == "similarity.cka":
                value = asked.finding.summary()["cka"]
                table[index[asked.site], index[asked.other]] = table[index[asked.other], index[asked.site]] = value
        return table


def inspect(
    subject: Subject,
    data: Data,
    sites: Sequence[str] | None = None,
    lenses: Sequence[str] | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> Inspection:
    """Records ``subject`` over ``data`` (once; the recording is reused) and asks lenses at every site.

    Positions are seen by the one-pass lenses; lenses that need all rows get samples with positions averaged. A lens
    that refuses a site (classes missing, nothing varies) is listed with its sentence, it does not end the inspection.
    Lenses that ask the network itself run it on the same batches, once.
    """
    started = time.perf_counter()
    asked = [get_lens(name) for name in lenses] if lenses else list(find_lenses().values())
    chosen = tuple(sites) if sites else subject.default_sites
    batches = within_memory(data.batches, subject.model, chosen)
    store, observation = recorded(subject, data, batches, chosen, asked, cache, progress)
    with_labels = store.labels
    answers: list[Asked] = []
    classifier = _classifier(subject.model, batches, list(observation.infos))
    names = list(observation.infos)
    for lens in (lens for lens in asked if lens.of_network):
        answers.append(ask_network(lens, subject.model, batches))
    singles = [lens for lens in asked if not lens.compares and not lens.of_network]
    unordered = [] if data.sequence else [lens for lens in singles if lens.sequence]
    answers += [Asked(lens, NETWORK, refusal=f"{lens.name} {_NO_SEQUENCE}") for lens in unordered]
    for site in track(names, "asking", len(names), progress):
        for lens in (lens for lens in singles if lens not in unordered):
            answers.append(ask_site(lens, site, store[site], with_labels, observation[site], classifier.get(site)))
    compared = thinned([name for name in names if observation[name]["moments"].result().variance.sum() > 0])
    for lens in (lens for lens in asked if lens.compares):
        # a map of all pairs for CKA, which computes them together; other lenses compare a few neighbours in depth
        few = thinned(compared, MOST_NEIGHBOURS)
        pairs = list(combinations(compared, 2) if lens.function is cka else pairwise(few))
        known = _similarities(compared, store) if lens.function is cka else {}
        for one, two in track(pairs, "comparing", len(pairs), progress):
            found = known.get((one, two))
            answers.append(
                Asked(lens, one, two, found) if found else ask_pair(lens, (one, store[one]), (two, store[two]))
            )
    context = {
        "subject": {"model": subject.identity, "data": data.identity}, "n_samples": observation.n_samples,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "seed": 0,
    }  # fmt: skip
    placed = tuple(_in_context(answer, context) for answer in answers)
    return Inspection(
        subject, data, tuple(observation.infos.values()), observation, placed, tuple(compared), store.path,
        observation.n_samples, time.perf_counter() - started, context["date"],
    )  # fmt: skip


def _in_context(asked: Asked, context: Mapping[str, Any]) -> Asked:
    if asked.finding is None:
        return asked
    return Asked(asked.lens, asked.site, asked.other, asked.finding.in_context(site=asked.place, **context))


def thinned(names: Sequence[str], most: int = MOST_COMPARED) -> list[str]:
    """At most ``most`` of the sites, evenly over the network's depth."""
    if len(names) <= most:
        return list(names)
    return [str(names[round(place)]) for place in np.linspace(0, len(names) - 1, most).tolist()]


def _similarities(compared: Sequence[str], store: Store) -> dict[tuple[str, str], CKA]:
    """Every pair at once; a pair that is not here is refused with its own sentence when it is asked alone."""
    try:
        found = cka_matrix([store[site] for site in compared])
    except NetloupeError:
        return {}
    return {(compared[i], compared[j]): finding for (i, j), finding in found.items()}


def _classifier(model: nn.Module, batches: Iterable[Any], names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """The site that feeds the network's last linear layer, with that layer's weight and bias, if there is one."""
    found = last_linear(model)
    if found is None:
        return {}
    path, head = found
    batch = prepare(next(iter(batches)), model)
    with guest(model), torch.no_grad(), tap(model, [*names, f"{path}:in"]) as values:
        model(*batch.args, **batch.kwargs)
    wanted = values.get(f"{path}:in")
    if wanted is None or wanted.ndim != 2:
        return {}
    feeding = [
        name
        for name in names
        if name in values and values[name].shape == wanted.shape and torch.equal(values[name], wanted)
    ]
    return {name: (head.weight.detach(), None if head.bias is None else head.bias.detach()) for name in feeding}


def recorded(
    subject: Subject,
    data: Data,
    batches: Iterable[Any],
    sites: Sequence[str] | None,
    lenses: Sequence[Lens],
    cache: Path | None,
    progress: bool,
    pooling: Pool = "mean",
) -> tuple[Store, Observation]:
    """The recording and its statistics, from the cache where the same question was asked before."""
    possible = [lens for lens in lenses if data.sequence or not lens.sequence]
    statistics = ALWAYS | statistics_of(possible, has_classes(subject.model, batches))
    key = {
        "model": subject.identity, "data": data.identity, "sites": list(sites or []), "statistics": sorted(statistics),
        "versions": library_versions(), "format": 2, "pooling": pooling,
    }  # fmt: skip
    digest = xxhash.xxh3_64_hexdigest(json.dumps(plain(key), sort_keys=True).encode())
    folder = (cache or cache_folder() / "inspections") / digest
    known = data.identity.get("digest")
    if known and (folder / "statistics.json").is_file():
        try:
            infos = {info.name: info for info in list_sites(subject.model, batches, list(sites) if sites else None)}
            return _load(folder, infos)
        except (NetloupeError, OSError, KeyError, ValueError):
            _forget(folder)  # a broken cache is made anew
    elif folder.exists():
        _forget(folder)
    options: CaptureOptions = {"pool": pooling, "progress": progress}
    named = {"model": subject.identity, "data": data.identity}
    store, observation = record_and_observe(
        subject.model,
        batches,
        statistics,
        list(sites) if sites else None,
        to=folder / "store",
        subject=named,
        **options,
    )
    _save(folder, observation)
    return store, observation


def _forget(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _save(folder: Path, observation: Observation) -> None:
    arrays: dict[str, np.ndarray] = {}
    rest: dict[str, dict[str, dict[str, Any]]] = {}
    for index, (site, named) in enumerate(observation.statistics.items()):
        rest[site] = {}
        for name, statistic in named.items():
            state = statistic.state()
            rest[site][name] = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
            arrays |= {f"{index}|{name}|{key}": value for key, value in state.items() if isinstance(value, np.ndarray)}
    try:
        np.savez(folder / "statistics.npz", allow_pickle=False, **arrays)
        partial = folder / "statistics.json.partial"
        partial.write_text(json.dumps({"n_samples": observation.n_samples, "states": rest}), encoding="utf-8")
        os.replace(partial, folder / "statistics.json")
    except OSError as error:
        raise StoreError(f"the statistics could not be written to '{folder}': {error.strerror or error}") from error


def _load(folder: Path, infos: dict[str, SiteInfo]) -> tuple[Store, Observation]:
    store = Store(folder / "store")
    saved = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    named: dict[str, dict[str, Statistic]] = {}
    with np.load(folder / "statistics.npz", allow_pickle=False) as arrays:
        stored: dict[str, dict[str, np.ndarray]] = {}
        for key in arrays.files:
            place, _, name = key.rpartition("|")
            stored.setdefault(place, {})[name] = arrays[key]
    for index, (site, states) in enumerate(saved["states"].items()):
        restored = {name: restore({**state, **stored.get(f"{index}|{name}", {})}) for name, state in states.items()}
        named[site] = {name: one for name, one in restored.items() if isinstance(one, Statistic)}
    if infos.keys() != named.keys():
        raise InputError("the cached sites do not agree")
    return store, Observation(named, infos, saved["n_samples"])
