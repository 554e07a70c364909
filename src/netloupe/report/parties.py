"""The two sides of a comparison: a network run on some data, or a recording, each with what a page shows of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import Observation
from netloupe.core.errors import InputError, SubjectError
from netloupe.core.progress import track
from netloupe.core.sites import Layout, SiteInfo
from netloupe.core.statistics import Moments, Statistic, TopK
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


def is_store(argument: str) -> bool:
    """Whether an argument names a recording."""
    return (Path(argument) / "manifest.json").is_file()


def load_parties(
    one: str,
    two: str,
    data: str | None = None,
    sites: tuple[str, ...] = (),
    n_samples: int | None = None,
    batch_size: int = 64,
    download: bool = False,
    cache: Path | None = None,
    progress: bool = False,
) -> tuple[Party, Party]:
    """Both sides on the same samples.

    ``one`` and ``two`` are recordings or networks. Networks are run on ``data``, by default that of the first network; a recording
    beside a network says how many samples are read. Raises InputError where the samples are not the same.
    """
    stores = {argument: Store(argument) for argument in (one, two) if is_store(argument)}
    if stores:
        n_samples = min(len(store) for store in stores.values())
    subjects = [
        None if argument in stores else load_model(argument, None, download, progress) for argument in (one, two)
    ]
    default = next((subject.default_data for subject in subjects if subject is not None and subject.default_data), None)
    parties = []
    for argument, subject in zip((one, two), subjects, strict=True):
        if subject is None:
            parties.append(_of_store(argument, stores[argument], data, sites, batch_size, progress))
        else:
            shown = load_data(data or default, subject, n_samples or _default_samples(subject), batch_size)
            parties.append(_of_network(subject, shown, sites, cache, progress))
    _same_samples(*parties)
    return parties[0], parties[1]


def _default_samples(subject: Subject) -> int:
    return 256 if subject.tokenizer is not None else 2000


def _of_network(subject: Subject, data: Data, sites: tuple[str, ...], cache: Path | None, progress: bool) -> Party:
    chosen = tuple(sites) if sites else subject.default_sites
    batches = within_memory(data.batches, subject.model, chosen)
    store, observation = recorded(subject, data, batches, chosen, [], cache, progress)
    return Party(subject, data, store, observation, tuple(observation.infos.values()), subject.model)


def _of_store(
    argument: str, store: Store, data: str | None, sites: tuple[str, ...], batch_size: int, progress: bool
) -> Party:
    """A recording; its samples are shown where ``data`` names pictures or text that need no network to be read."""
    names = [name for name in store.sites if name not in RESERVED]
    chosen = [name for name in names if not sites or any(fnmatchcase(name, pattern) for pattern in sites)]
    if not chosen:
        raise InputError(f"no site of '{argument}' matches {', '.join(sites)}; there are {', '.join(names[:12])}")
    subject = Subject(argument, nn.Identity(), identity={"recording": argument, **_flat(store.subject)})
    shown = Data(data or argument, (), "other", len(store), store.labels)
    if data is not None:
        with suppress(SubjectError):  # text, which needs a network's tokenizer
            shown = load_data(data, subject, len(store), batch_size)
    infos = {name: _info(store[name], name) for name in chosen}
    statistics = {name: _observed(store, name) for name in track(chosen, "reading", len(chosen), progress)}
    return Party(subject, shown, store, Observation(statistics, infos, len(store)), tuple(infos.values()), None)


def _info(site: StoredSite, name: str) -> SiteInfo:
    shape = tuple(site.shape[1:])
    return SiteInfo(name, "recorded", shape, shape[:-1], str(site.dtype).removeprefix("torch."), Layout(0, len(shape)))


def _observed(store: Store, name: str) -> dict[str, Statistic]:
    site, mask = store[name], store.mask
    found: dict[str, Statistic] = {"moments": Moments(), "top": TopK(TOP_SAMPLES)}
    for start in range(0, len(store), _CHUNK):
        values = site[start : start + _CHUNK]
        real: Tensor | None = None
        if mask is not None and values.ndim == 3 and mask.shape[1] == values.shape[1]:
            real = mask[start : start + _CHUNK]
        for statistic in found.values():
            statistic.update(values, mask=real, samples=np.arange(start, start + len(values)))
    return found


def _flat(subject: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{part} {key}": value
        for part, inner in subject.items()
        if isinstance(inner, dict)
        for key, value in inner.items()
    }


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
