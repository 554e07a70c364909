"""The two sides of a comparison: a network run on some data, or a recording, each with what a page shows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from netloupe.core.asking import statistics_of
from netloupe.core.batches import batches_of, prepare
from netloupe.core.capture import Observation, class_labels
from netloupe.core.errors import InputError, SubjectError
from netloupe.core.identity import describe_model
from netloupe.core.lens import Lens
from netloupe.core.progress import track
from netloupe.core.reading import Pool
from netloupe.core.sites import Layout, SiteInfo
from netloupe.core.statistics import Moments, Statistic, TopK, update_all
from netloupe.core.store import Store, StoredSite
from netloupe.report.batches import within_memory
from netloupe.report.inspection import TOP_SAMPLES, recorded
from netloupe.subjects import Data, Subject, load_data, load_model

RESERVED = ("labels", "mask")
_CHUNK = 4096


@dataclass(frozen=True)
class Party:
    """One side: ``store`` its activations, ``observation`` each unit's ``moments`` and ``top`` samples at every site.

    ``model`` is None for a recording. ``data`` shows samples to a person where it can.
    """

    subject: Subject
    data: Data
    store: Store
    observation: Observation
    sites: tuple[SiteInfo, ...]
    model: nn.Module | None

    @property
    def name(self) -> str:
        """What was given on the command line."""
        return self.subject.name

    def features(self) -> dict[str, Any]:
        """Every site that varies, as ``(sample, unit)``."""
        names = [info.name for info in self.sites]
        alive = [name for name in names if self.observation.result(name, "moments").variance.sum() > 0]
        return {name: pooled(self.store, name) for name in alive}


class Pooled:
    """A stored site with positions averaged (padding left out), read in slices like the site itself."""

    def __init__(self, site: StoredSite, mask: Any = None) -> None:
        self.site, self.mask = site, mask
        self.shape = (site.shape[0], site.shape[-1])

    def __getitem__(self, rows: slice) -> torch.Tensor:
        values = self.site[rows]
        if self.mask is None or self.mask.shape[1] != values.shape[1]:
            return values.to(torch.promote_types(values.dtype, torch.float32)).mean(1)
        real = torch.as_tensor(self.mask[rows]).to(values.device)[..., None]
        return values.float().masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1)


def pooled(store: Store, site: str) -> Any:
    """A stored site as ``(sample, unit)``."""
    found = store[site]
    return found if len(found.shape) == 2 else Pooled(found, store.mask)


def load_parties(
    one: str | Path | nn.Module,
    two: str | Path | nn.Module,
    data: Any = None,
    sites: tuple[str, ...] = (),
    n_samples: int | None = None,
    batch_size: int = 64,
    download: bool = False,
    lenses: Sequence[Lens] = (),
    averaged: bool = False,
    cache: Path | None = None,
    progress: bool = False,
) -> tuple[Party, Party]:
    """Both sides on the same samples.

    ``one`` and ``two`` are recordings, networks named as on the command line, or networks in memory. Networks are run on ``data``
    (its name, or for networks in memory arrays or batches), by default the data of the first; a recording beside a network says
    how many samples are read. The statistics of one-pass ``lenses`` are kept too. ``averaged``: positions
    will be averaged, so that a recording of them and one of their mean go together. Raises InputError where samples differ.
    """
    given = (one, two)
    stores = [Store(each) if isinstance(each, (str, Path)) and is_store(each) else None for each in given]
    known = [len(store) for store in stores if store is not None]
    n_samples = min(known) if known else n_samples
    subjects = [
        None if store is not None else _subject(each, download, progress)
        for each, store in zip(given, stores, strict=True)
    ]
    default = next((subject.default_data for subject in subjects if subject is not None and subject.default_data), None)
    parties = []
    pooling = _pooling((store for store in stores if store is not None), averaged)
    for each, store, subject in zip(given, stores, subjects, strict=True):
        if store is not None:
            shown = data if isinstance(data, str) else None
            parties.append(_of_store(str(each), store, shown, sites, batch_size, lenses, progress))
        elif subject is not None:
            shown = _data(data if data is not None else default, subject, n_samples, batch_size)
            parties.append(_of_network(subject, shown, sites, lenses, pooling, cache, progress))
    _same_samples(*parties)
    return parties[0], parties[1]


def is_store(argument: str | Path) -> bool:
    """Whether an argument names a recording."""
    return (Path(argument) / "manifest.json").is_file()


def _subject(given: str | Path | nn.Module, download: bool, progress: bool) -> Subject:
    if isinstance(given, nn.Module):
        name = type(given).__name__
        return Subject(name, given, identity={"name": name, **describe_model(given)})
    return load_model(str(given), None, download, progress)


def _data(data: Any, subject: Subject, n_samples: int | None, batch_size: int) -> Data:
    if data is None or isinstance(data, str):
        return load_data(data, subject, n_samples or (256 if subject.tokenizer is not None else 2000), batch_size)
    if isinstance(data, Data):
        return data
    batches = list(batches_of(data, batch_size))
    found = [class_labels(prepare(batch, subject.model).labels) for batch in batches]
    labels = torch.cat([each for each in found if each is not None]) if found and None not in found else None
    return Data("arrays in memory", batches, "other", labels=labels)


def _of_network(
    subject: Subject,
    data: Data,
    sites: tuple[str, ...],
    lenses: Sequence[Lens],
    pooling: Pool | None,
    cache: Path | None,
    progress: bool,
) -> Party:
    """A network; beside a recording it is read as that was, so that a mean over positions is never held against positions."""
    chosen = tuple(sites) if sites else subject.default_sites
    batches = within_memory(data.batches, subject.model, chosen)
    now = lenses if pooling is None else ()
    store, observation = recorded(subject, data, batches, chosen, now, cache, progress, pooling or "mean")
    if pooling is not None:
        observation = _observation(store, list(observation.infos), lenses, progress)
    return Party(subject, data, store, observation, tuple(observation.infos.values()), subject.model)


def _pooling(stores: Iterable[Store], averaged: bool) -> Pool | None:
    """How the recordings were pooled; None where there is none. Where positions are ``averaged`` later, a recording may hold
    them and the other their mean."""
    found: dict[Pool, str] = {(store.manifest.get("pooling") or "none"): str(store.path) for store in stores}
    if found.keys() == {"none", "mean"} and averaged:
        return "none"
    if len(found) > 1:
        said = " and ".join(f"'{path}' with '{name}'" for name, path in found.items())
        raise InputError(f"positions were pooled differently: {said}; record both alike")
    return next(iter(found), None)


def _of_store(
    argument: str,
    store: Store,
    data: str | None,
    sites: tuple[str, ...],
    batch_size: int,
    lenses: Sequence[Lens],
    progress: bool,
) -> Party:
    """A recording; its samples are shown where ``data`` names pictures, which need no network to be read."""
    names = [name for name in store.sites if name not in RESERVED]
    chosen = [name for name in names if not sites or any(fnmatchcase(name, pattern) for pattern in sites)]
    if not chosen:
        raise InputError(f"no site of '{argument}' matches {', '.join(sites)}; there are {', '.join(names[:12])}")
    subject = Subject(argument, nn.Identity(), identity={"recording": argument, **_flat(store.subject)})
    shown = Data(data or argument, (), "other", len(store), store.labels)
    if data is not None:
        with suppress(SubjectError):  # text, which needs a network's tokenizer
            shown = load_data(data, subject, len(store), batch_size)
    observation = _observation(store, chosen, lenses, progress)
    return Party(subject, shown, store, observation, tuple(observation.infos.values()), None)


def _observation(store: Store, sites: Sequence[str], lenses: Sequence[Lens], progress: bool) -> Observation:
    """What a pass over a recording's own numbers gives."""
    factories = {"moments": Moments, "top": lambda: TopK(TOP_SAMPLES)} | statistics_of(lenses, store.labels is not None)
    infos = {name: _info(store[name], name) for name in sites}
    statistics = {name: _observed(store, name, factories) for name in track(sites, "reading", len(sites), progress)}
    return Observation(statistics, infos, len(store))


def _info(site: StoredSite, name: str) -> SiteInfo:
    shape = tuple(site.shape[1:])
    dtype = str(site.dtype).removeprefix("torch.")
    return SiteInfo(name, "recorded", shape, shape[:-1], dtype, Layout(0, len(shape)))


def _observed(store: Store, name: str, factories: Mapping[str, Callable[[], Statistic]]) -> dict[str, Statistic]:
    site, mask, labels = store[name], store.mask, store.labels
    found = {key: factory() for key, factory in factories.items()}
    for start in range(0, len(store), _CHUNK):
        rows = slice(start, start + _CHUNK)
        values = site[rows]
        fits = mask is not None and values.ndim == 3 and mask.shape[1] == values.shape[1]
        update_all(
            list(found.values()), values, mask=mask[rows] if fits and mask is not None else None,
            labels=None if labels is None else labels[rows], samples=np.arange(start, start + len(values)),
        )  # fmt: skip
    return found


def _flat(subject: dict[str, Any]) -> dict[str, Any]:
    parts = {part: inner for part, inner in subject.items() if isinstance(inner, dict)}
    return {f"{part} {key}": value for part, inner in parts.items() for key, value in inner.items()}


def _same_samples(one: Party, two: Party) -> None:
    if len(one.store) != len(two.store):
        raise InputError(
            f"'{one.name}' holds {len(one.store)} samples and '{two.name}' {len(two.store)}; take both on the same data"
        )
    labels = one.store.labels, two.store.labels
    if labels[0] is not None and labels[1] is not None and not torch.equal(labels[0], labels[1]):
        raise InputError(
            f"'{one.name}' and '{two.name}' have different labels, so they are not of the same samples in the same order"
        )
