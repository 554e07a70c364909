"""Where the work is done: in this process, or on a Ray cluster. Lenses do not know which.

An engine cuts the data into jobs of consecutive batches, runs the network over each, and merges the statistics in
the order of the data, or has each job write its own shards of one store.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Unpack

from torch import nn

from netloupe.core.batches import batches_of, prepare
from netloupe.core.capture import (
    CaptureOptions,
    Observation,
    Session,
    Sites,
    Statistics,
    batch_axis_of,
    feed,
    observe,
    require_factories,
)
from netloupe.core.errors import InputError, MissingExtraError
from netloupe.core.hooks import unwrap
from netloupe.core.recording import check_folder, manifest_of, record, rows_of, specs, unpooled_session
from netloupe.core.statistics import Statistic
from netloupe.core.store import ShardRangeWriter, Store, open_store


class Engine(Protocol):
    """What an engine can do; the arguments are those of :func:`netloupe.observe` and :func:`netloupe.record`."""

    def observe(
        self,
        model: nn.Module,
        data: Any,
        statistics: Statistics,
        sites: Sites = None,
        **options: Unpack[CaptureOptions],
    ) -> Observation: ...

    def record(
        self,
        model: nn.Module,
        data: Any,
        sites: Sites = None,
        *,
        to: str | Path,
        resume: bool = False,
        rows_per_shard: int | None = None,
        subject: Mapping[str, Any] | None = None,
        **options: Unpack[CaptureOptions],
    ) -> Store: ...


class LocalEngine:
    """This process."""

    def observe(
        self,
        model: nn.Module,
        data: Any,
        statistics: Statistics,
        sites: Sites = None,
        **options: Unpack[CaptureOptions],
    ) -> Observation:
        """As :func:`netloupe.observe`."""
        return observe(model, data, statistics, sites, **options)

    def record(
        self,
        model: nn.Module,
        data: Any,
        sites: Sites = None,
        *,
        to: str | Path,
        resume: bool = False,
        rows_per_shard: int | None = None,
        subject: Mapping[str, Any] | None = None,
        **options: Unpack[CaptureOptions],
    ) -> Store:
        """As :func:`netloupe.record`."""
        return record(
            model, data, sites, to=to, resume=resume, rows_per_shard=rows_per_shard, subject=subject, **options
        )


@dataclass(frozen=True)
class Job:
    """Consecutive batches: their raw form, the index of the first, and the first one's first sample."""

    batches: list[Any]
    first_index: int
    first_sample: int


class RayEngine:
    """Workers of a Ray cluster; without an address a local one is started and stopped with the engine's block.

    Each worker holds a copy of the network. A worker that dies is replaced and its job done again, so nothing is
    lost and nothing counted twice. Integer statistics and TopK equal the local result to the last bit; floating-point
    ones to rounding, and always the same for the same ``batches_per_job``.

    Parameters
    ----------
    n_workers : jobs under way at once.
    address : of a running cluster; its workers must see the store's folder under the same path.
    batches_per_job : batches that travel together when statistics are merged.
    retries : how often a job is given to another worker after one died.
    """

    def __init__(
        self, n_workers: int = 2, address: str | None = None, batches_per_job: int = 8, retries: int = 5
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "scale", "the Ray engine") from error
        if n_workers < 1 or batches_per_job < 1:
            raise InputError(
                f"n_workers and batches_per_job are {n_workers} and {batches_per_job}, at least 1 is needed"
            )
        self.n_workers, self.batches_per_job, self.retries, self._ray = n_workers, batches_per_job, retries, ray
        self._own = not ray.is_initialized()
        if self._own:
            local = {} if address else {"num_cpus": n_workers, "include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)

    def close(self) -> None:
        """Stops the cluster if this engine started it."""
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, function: Any, model: nn.Module, jobs: Iterable[Any], *arguments: Any) -> Iterator[Any]:
        """``function(model, job, *arguments)`` for every job, answers in the order of the jobs.

        At most two jobs a worker are under way, so the data may be larger than memory.
        """
        remote = self._ray.remote(num_cpus=1, max_retries=self.retries)(function)
        shared = self._ray.put(model)
        waiting: deque[Any] = deque()
        for job in jobs:
            waiting.append(remote.remote(shared, job, *arguments))
            if len(waiting) >= 2 * self.n_workers:
                yield self._get(waiting.popleft())
        while waiting:
            yield self._get(waiting.popleft())

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None

    def observe(
        self,
        model: nn.Module,
        data: Any,
        statistics: Statistics,
        sites: Sites = None,
        **options: Unpack[CaptureOptions],
    ) -> Observation:
        """As :func:`netloupe.observe`, the statistics merged in the order of the data."""
        require_factories(statistics)
        model = unwrap(model)
        Session(model, sites, **options)  # wrong arguments are refused here, not by a worker
        jobs = self._jobs(model, data, options)
        total: Observation | None = None
        for part in self.map(_observe_job, model, jobs, dict(statistics), sites, options):
            total = part if total is None else total.merge(part)
        if total is None:
            raise InputError("the data held no samples; at least one is needed")
        return total

    def _jobs(self, model: nn.Module, data: Any, options: CaptureOptions) -> Iterator[Job]:
        batches: list[Any] = []
        start = first = index = -1
        seen = 0
        axis = batch_axis_of(model, options)
        for index, raw in enumerate(batches_of(data, options.get("batch_size", 64), axis)):
            if not batches:
                start, first = index, seen
            batches.append(raw)
            seen += prepare(raw, model, axis).n_samples
            if len(batches) == self.batches_per_job:
                yield Job(batches, start, first)
                batches = []
        if batches:
            yield Job(batches, start, first)

    def record(
        self,
        model: nn.Module,
        data: Any,
        sites: Sites = None,
        *,
        to: str | Path,
        resume: bool = False,
        rows_per_shard: int | None = None,
        subject: Mapping[str, Any] | None = None,
        **options: Unpack[CaptureOptions],
    ) -> Store:
        """As :func:`netloupe.record`: every job writes one shard of the same store, byte for byte as one process would."""
        check_folder(Path(to), resume)
        model = unwrap(model)
        session, policy = unpooled_session(model, sites, options)
        batches = session.batches(data)
        first = next((raw for raw in batches if session.prepare(raw).n_samples), None)
        if first is None:
            raise InputError("the data held no samples; at least one is needed")
        rows = rows_of(session.read(session.prepare(first), 0, 0), policy)
        settings = manifest_of(model, options, policy, subject)
        with open_store(to, specs(rows), rows_per_shard=rows_per_shard, resume=resume, **settings) as coordinator:
            if not coordinator.complete:
                size = coordinator.rows_per_shard
                done = {shard for shard, n_rows in coordinator.committed().items() if n_rows == size}
                jobs = (job for job in _shard_jobs(session, batches, size) if job[0] not in done)
                total = 0
                for stop in self.map(_record_job, model, jobs, str(Path(to).absolute()), sites, options):
                    total = max(total, stop)
                coordinator.finalize()
        return Store(to)


def _shard_jobs(session: Session, batches: Iterable[Any], size: int) -> Iterator[tuple[int, Job]]:
    """For every shard of ``size`` samples the batches that reach into it; one on a boundary is part of both."""
    held: list[tuple[int, int, Any]] = []  # (index, first sample, raw batch)
    shard = seen = 0
    for index, raw in enumerate(batches):
        n_samples = session.prepare(raw).n_samples
        if n_samples == 0:
            continue
        held.append((index, seen, raw))
        seen += n_samples
        while seen >= (shard + 1) * size:
            yield shard, _job_of(held)
            shard += 1
            held = held[-1:] if seen > shard * size else []
    if held:
        yield shard, _job_of(held)


def _job_of(held: list[tuple[int, int, Any]]) -> Job:
    return Job([raw for _, _, raw in held], held[0][0], held[0][1])


def _observe_job(
    model: nn.Module, job: Job, statistics: Statistics, sites: Sites, options: CaptureOptions
) -> Observation:
    session = Session(model, sites, **options)
    named: dict[str, dict[str, Statistic]] = {}
    infos, seen = {}, job.first_sample
    for offset, raw in enumerate(job.batches):
        batch = session.prepare(raw)
        if batch.n_samples:
            captured = session.read(batch, job.first_index + offset, seen)
            feed(named, captured, statistics)
            infos = captured.infos
        seen += batch.n_samples
    return Observation(named, infos, seen - job.first_sample)


def _record_job(model: nn.Module, numbered: tuple[int, Job], folder: str, sites: Sites, options: CaptureOptions) -> int:
    shard, job = numbered
    session, policy = unpooled_session(model, sites, options)
    with ShardRangeWriter(folder, shard, shard + 1) as writer:
        low, high = shard * writer.rows_per_shard, (shard + 1) * writer.rows_per_shard
        start = job.first_sample
        for offset, raw in enumerate(job.batches):
            batch = session.prepare(raw)
            captured = session.read(batch, job.first_index + offset, start)
            inside = slice(max(0, low - start), max(0, high - start))
            writer.append({name: values[inside] for name, values in rows_of(captured, policy).items()})
            start += batch.n_samples
    return min(start, high)
