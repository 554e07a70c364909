"""Running a network to read it: ``capture`` yields activations, ``observe`` feeds statistics, ``tap`` keeps gradients.

``record`` (in :mod:`netloupe.core.recording`) writes what ``capture`` yields to a store. All leave the network as it
was after every batch: hooks, train/eval flags, buffers, gradients and the random state, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.batches import Batch, batches_of, count_batches, default_batch_axis, prepare
from netloupe.core.errors import InputError, SiteError
from netloupe.core.hooks import Visit, attach, require_readable, unpack_packed, unwrap
from netloupe.core.isolation import Mode, device_of
from netloupe.core.progress import track
from netloupe.core.reading import POOLS, Fired, Pool, Reader, pool, require_finite, site_mask
from netloupe.core.sites import SiteInfo, select
from netloupe.core.statistics import Statistic, update_all
from netloupe.core.values import entries_of, exchange, main_key

if TYPE_CHECKING:
    from netloupe.core.engine import Engine

Sites = str | Sequence[str] | None
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CaptureOptions(TypedDict, total=False):
    """What ``capture``, ``observe``, ``record`` and the engines take alike; every key is optional.

    batch_size : rows per forward call when ``data`` is arrays (64).
    pool : ``none`` (default), ``mean``, ``max``, ``cls``, ``last``, ``flatten``: what becomes of positions.
    dtype : ``float32``, ``float16``, ``bfloat16`` or ``float64``; default as the network computes.
    mode : ``eval`` (default), ``train`` (dropout on, batch statistics; buffers are put back) or ``keep``.
    seed : random state of each pass, so that dropout and resumed recordings repeat (0); None leaves it alone.
    batch_axis : axis of the inputs that holds samples: 0, or 1 where time comes first. The default is 0, and 1 for
        torch's own recurrent and attention networks that were built with time first.
    unit_axis : glob -> axis of the raw tensor that holds units, where the convention guesses wrong.
    nonfinite : ``raise`` (default) stops at NaN or infinity and names site and sample; ``allow`` passes them on.
    progress : whether to draw a bar on a terminal (False).
    """

    batch_size: int
    pool: Pool
    dtype: str | torch.dtype | None
    mode: Mode
    seed: int | None
    batch_axis: int
    unit_axis: dict[str, int] | None
    nonfinite: Literal["raise", "allow"]
    progress: bool


@dataclass(frozen=True)
class Captured:
    """The labelled activations of one batch.

    ``captured[site]`` is ``(sample, position, unit)`` or, pooled or without positions, ``(sample, unit)``.
    ``masks[site]`` is ``(sample, position)`` where padding was declared, else None; ``samples`` are the global
    indices of the rows; ``output`` is what the network returned.
    """

    activations: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    infos: dict[str, SiteInfo]
    labels: Tensor | None
    samples: Tensor
    batch: Batch
    output: Any

    def __getitem__(self, site: str) -> Tensor:
        try:
            return self.activations[site]
        except KeyError:
            raise SiteError(f"site '{site}' was not captured; there are {', '.join(self.activations)}") from None

    def __len__(self) -> int:
        return len(self.samples)


def capture(model: nn.Module, data: Any, sites: Sites = None, **options: Unpack[CaptureOptions]) -> Iterator[Captured]:
    """Runs ``model`` over ``data`` and yields the activations of ``sites`` batch by batch.

    Parameters
    ----------
    model : any ``torch.nn.Module``; it is run where it lies and left as it was.
    data : an array, ``(inputs, labels)``, a dictionary of arrays, or an iterable of batches.
    sites : names or globs (:mod:`netloupe.core.sites`); None takes every distinct tensor.
    options : see :class:`CaptureOptions`.

    Raises
    ------
    SiteError for unknown or unreadable sites and for a site that changes between batches; NonFiniteError for NaN
    or infinity; InputError for unusable data, also when there is none.
    """
    session = Session(model, sites, **options)
    batches = session.batches(data)
    n_seen = 0
    for index, raw in enumerate(track(batches, "capturing", count_batches(batches), session.progress)):
        batch = session.prepare(raw)
        if batch.n_samples:
            yield session.read(batch, index, n_seen)
        n_seen += batch.n_samples
    if n_seen == 0:
        raise InputError("the data held no samples; at least one is needed")


class Session:
    """A network made ready to be read batch by batch; what ``capture`` and the engines share."""

    def __init__(self, model: nn.Module, sites: Sites = None, **options: Unpack[CaptureOptions]) -> None:
        unknown = set(options) - set(CaptureOptions.__annotations__)
        if unknown:
            raise InputError(f"unknown option {sorted(unknown)}; there are {sorted(CaptureOptions.__annotations__)}")
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
        self.model = unwrap(model)
        self.batch_size = options.get("batch_size", 64)
        self.pool: Pool = _one_of("pool", options.get("pool", "none"), POOLS)
        self.nonfinite = _one_of("nonfinite", options.get("nonfinite", "raise"), ("raise", "allow"))
        self.batch_axis = batch_axis_of(self.model, options)
        self.dtype = _dtype(options.get("dtype"))
        self.progress = options.get("progress", False)
        seed = options.get("seed", 0)
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise InputError(f"seed is {seed!r}, expected a whole number or None")
        self.reader = Reader(
            self.model,
            sites,
            mode=_one_of("mode", options.get("mode", "eval"), ("eval", "train", "keep")),
            seed=None if seed is None else int(seed),
            unit_axis=options.get("unit_axis"),
            batch_axis=self.batch_axis,
        )
        self.device = device_of(self.model)

    @property
    def repeats(self) -> bool:
        """Whether a second pass over the same data gives the same numbers."""
        return self.reader.seed is not None or self.reader.mode == "eval"

    def batches(self, data: Any) -> Iterable[Any]:
        """``data`` as raw batches."""
        return batches_of(data, self.batch_size, self.batch_axis)

    def prepare(self, raw: Any) -> Batch:
        """One raw batch as the network takes it, on the network's device."""
        return prepare(raw, self.model, self.batch_axis).to(self.device)

    def read(self, batch: Batch, index: int, first_sample: int) -> Captured:
        """One pass, turned into activations: layout, mask, finiteness, pooling, dtype - in this order."""
        fired, output = self.reader.read(batch, index)
        activations, masks, infos = {}, {}, {}
        for target in self.reader.targets:
            name, seen = target.info.name, fired[target.info.name]
            values = self.reader.layout(target, seen.raw, batch).to_activations(seen.raw)
            mask = self._mask(seen, batch, target.info, values)
            if self.nonfinite == "raise":
                require_finite(name, values, mask, first_sample)
            pooled = pool(values, mask, self.pool)
            activations[name] = (
                pooled if self.dtype is None or not pooled.is_floating_point() else pooled.to(self.dtype)
            )
            masks[name] = mask if pooled.ndim == 3 else None
            infos[name] = target.info
        samples = torch.arange(first_sample, first_sample + batch.n_samples)
        return Captured(activations, masks, infos, batch.labels, samples, batch, output)

    @staticmethod
    def _mask(seen: Fired, batch: Batch, info: SiteInfo, values: Tensor) -> Tensor | None:
        if seen.mask is not None and values.ndim == 3:
            return seen.mask
        return site_mask(batch.mask, info, values)


@dataclass(frozen=True)
class Observation:
    """Statistics of every site after one pass over the data: ``observation[site][name]``."""

    statistics: dict[str, dict[str, Statistic]]
    infos: dict[str, SiteInfo]
    n_samples: int

    def __getitem__(self, site: str) -> dict[str, Statistic]:
        try:
            return self.statistics[site]
        except KeyError:
            raise SiteError(f"site '{site}' was not observed; there are {', '.join(self.statistics)}") from None

    def result(self, site: str, name: str) -> Any:
        """The result of one statistic."""
        return self[site][name].result()

    def merge(self, other: Observation) -> Observation:
        """Both observations as one; neither is kept. The sites and statistics must be the same."""
        if self.statistics.keys() != other.statistics.keys():
            raise InputError("the observations are of different sites, so they cannot be merged")
        for site, named in self.statistics.items():
            for name, statistic in named.items():
                statistic.merge(other.statistics[site][name])
        return Observation(self.statistics, self.infos, self.n_samples + other.n_samples)


Statistics = Mapping[str, Callable[[], Statistic]]


def observe(
    model: nn.Module,
    data: Any,
    statistics: Statistics,
    sites: Sites = None,
    *,
    engine: Engine | None = None,
    **options: Unpack[CaptureOptions],
) -> Observation:
    """Feeds statistics at every site in one pass; nothing is kept but the statistics.

    Parameters
    ----------
    statistics : name -> factory, for example ``{"moments": Moments, "top": lambda: TopK(8)}``; one object is made
        for each site. Padding that an attention mask declares is left out of all of them.
    engine : where the work is done; None is this process.
    model, data, sites, options : as in :func:`capture`.
    """
    if engine is not None:
        return engine.observe(model, data, statistics, sites, **options)
    require_factories(statistics)
    named: dict[str, dict[str, Statistic]] = {}
    infos: dict[str, SiteInfo] = {}
    n_samples = 0
    if statistics:
        options["nonfinite"] = "allow"  # every statistic refuses NaN and infinity itself: one look at the data less
    for captured in capture(model, data, sites, **options):
        feed(named, captured, statistics)
        infos, n_samples = captured.infos, n_samples + len(captured)
    return Observation(named, infos, n_samples)


def feed(named: dict[str, dict[str, Statistic]], captured: Captured, statistics: Statistics) -> None:
    """Updates (and at first makes) the statistics of every captured site."""
    labels = class_labels(captured.labels)
    for site, values in captured.activations.items():
        if not statistics:
            continue
        if site not in named:
            named[site] = {name: factory() for name, factory in statistics.items()}
        try:
            update_all(
                list(named[site].values()), values, mask=captured.masks[site], labels=labels, samples=captured.samples
            )
        except InputError as error:
            raise type(error)(f"site '{site}': {error}") from error


def class_labels(labels: Tensor | None) -> Tensor | None:
    """Labels that name classes, as int64; measured values are no classes and belong to no statistic."""
    if labels is None or labels.is_complex():
        return None
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        return None
    return labels.to(torch.int64)


def require_factories(statistics: Any) -> None:
    """InputError unless ``statistics`` is a mapping of names to what makes a new statistic."""
    if not isinstance(statistics, Mapping) or not all(callable(factory) for factory in statistics.values()):
        raise InputError(
            "statistics are given as a dictionary of name -> class or function that makes one, "
            "for example {'moments': Moments, 'top': lambda: TopK(8)}"
        )


def list_sites(model: nn.Module, data: Any, sites: Sites = None, **options: Unpack[CaptureOptions]) -> list[SiteInfo]:
    """The sites of ``model`` in the order they fire, with shapes, from one pass over the first batch of ``data``."""
    for captured in capture(model, data, sites, **{**options, "nonfinite": "allow"}):
        return list(captured.infos.values())
    return []


@contextmanager
def tap(model: nn.Module, sites: Sites) -> Iterator[dict[str, Tensor]]:
    """Collects the raw tensors of ``sites`` while the caller runs the network, gradients and all.

    ``with tap(model, "layer3") as values: loss = model(x).sum()`` leaves ``values["layer3"]``, a tensor inside the
    graph in the network's own layout: ``torch.autograd.grad(loss, values["layer3"])`` works, so lenses that
    differentiate need no hook. A module called again adds ``#1``, ``#2`` and so on; the dictionary starts empty with
    each block.
    """
    model = unwrap(model)
    chosen = [address for address, _ in select(model, sites)]
    values: dict[str, Tensor] = {}

    def visit(seen: Visit) -> Any:
        value, _ = unpack_packed(seen.value)
        found = dict(entries_of(value, seen.side))
        answer = None
        for address in chosen:
            if (address.path, address.side) != (seen.path, seen.side) or address.call not in (None, seen.call):
                continue
            key = address.key if address.key is not None else main_key(list(found.items()))
            if key is None or key not in found:
                continue
            suffix = f"#{seen.call}" if seen.call and address.call is None else ""
            values[address.name + suffix] = found[key]
            if value is seen.value:  # the network goes on with a copy: it may overwrite it in place
                answer = exchange(seen.value if answer is None else answer, seen.side, key, found[key].clone())
        return answer

    for address in chosen:
        require_readable(model, address.path)
    with attach(model, list(dict.fromkeys((address.path, address.side) for address in chosen)), visit):
        yield values


def batch_axis_of(model: nn.Module, options: CaptureOptions) -> int:
    """The axis of samples that was asked for, or the one that goes with the network."""
    asked = options.get("batch_axis")
    if asked not in (None, 0, 1):
        raise InputError(f"batch_axis is {asked!r}, expected 0, or 1 where time comes first")
    return default_batch_axis(unwrap(model)) if asked is None else asked


def _one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    if value not in choices:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    return value


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype is '{dtype}', expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def run_all(model: nn.Module, data: Any, **options: Unpack[CaptureOptions]) -> Iterable[tuple[Any, Batch]]:
    """The network's output and its batch, for every batch, as a guest and without gradients."""
    session = Session(model, ".", **options)
    for index, raw in enumerate(session.batches(data)):
        batch = session.prepare(raw)
        if batch.n_samples:
            yield session.reader.read(batch, index)[1], batch
