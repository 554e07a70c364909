"""Writing what a network's sites say into a store, so that it can be asked anything later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from netloupe.core.batches import Batch, count_batches
from netloupe.core.capture import (
    Captured,
    CaptureOptions,
    Observation,
    Session,
    Sites,
    Statistics,
    feed,
    require_factories,
)
from netloupe.core.errors import InputError, StoreError
from netloupe.core.finding import library_versions
from netloupe.core.identity import describe_model
from netloupe.core.progress import track
from netloupe.core.reading import Pool, pool
from netloupe.core.statistics import Statistic
from netloupe.core.store import SiteSpec, Store, StoreWriter

if TYPE_CHECKING:
    from netloupe.core.engine import Engine


def record(
    model: nn.Module,
    data: Any,
    sites: Sites = None,
    *,
    to: str | Path,
    resume: bool = False,
    rows_per_shard: int | None = None,
    subject: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    **options: Unpack[CaptureOptions],
) -> Store:
    """Records the activations of ``sites`` over ``data`` into the folder ``to`` and opens it.

    Labels and the padding mask are stored beside the activations. The network runs while the disk writes. A recording
    that is interrupted keeps its whole shards; ``resume=True`` with the same arguments continues it, checks that the
    data that was already recorded is the same, and ends byte for byte as if it had never been interrupted.

    Parameters
    ----------
    model, data, sites, options : as in :func:`netloupe.capture`.
    to : a new or empty folder, or with ``resume`` the interrupted (or finished) recording.
    rows_per_shard : samples that are committed together; by default as many as make about 64 MiB.
    subject : what the manifest says about model and data beside what is known.
    engine : where the work is done; None is this process.

    Raises
    ------
    StoreError for folders that cannot be used and full disks; the errors of :func:`netloupe.capture`.
    """
    if engine is not None:
        return engine.record(
            model, data, sites, to=to, resume=resume, rows_per_shard=rows_per_shard, subject=subject, **options
        )
    return record_and_observe(
        model, data, {}, sites, to=to, resume=resume, rows_per_shard=rows_per_shard, subject=subject, **options
    )[0]


def record_and_observe(
    model: nn.Module,
    data: Any,
    statistics: Statistics,
    sites: Sites = None,
    *,
    to: str | Path,
    resume: bool = False,
    rows_per_shard: int | None = None,
    subject: Mapping[str, Any] | None = None,
    **options: Unpack[CaptureOptions],
) -> tuple[Store, Observation]:
    """:func:`record` and :func:`netloupe.observe` in one pass: statistics see every position, the store what ``pool`` leaves.

    With statistics to fill, a resumed recording runs the network over all data again and writes only what is missing.
    """
    check_folder(Path(to), resume)
    require_factories(statistics)
    session, policy = unpooled_session(model, sites, options)
    named: dict[str, dict[str, Statistic]] = {}
    batches = session.batches(data)
    writer: StoreWriter | None = None
    start, captured, first = 0, None, None
    try:
        for index, raw in enumerate(track(batches, "recording", count_batches(batches), session.progress)):
            batch = session.prepare(raw)
            stop = start + batch.n_samples
            if batch.n_samples == 0:
                continue
            if writer is None or statistics or stop > writer.samples_committed:
                captured = session.read(batch, index, start)
                feed(named, captured, statistics)
            if writer is None:
                writer = StoreWriter(
                    to, specs(rows_of(captured, policy)), rows_per_shard=rows_per_shard, resume=resume,
                    **manifest_of(model, options, policy, subject),
                )  # fmt: skip
                first = captured if writer.complete and session.repeats else None
            _append(writer, batch, captured, policy, start, stop)
            start = stop
        if writer is None or captured is None:
            raise InputError("the data held no samples; at least one is needed")
        _finish(writer, Path(to), start, first, policy)
    except BaseException as error:
        if writer is not None:
            writer.__exit__(type(error), error, error.__traceback__)
        raise
    return Store(to), Observation(named, captured.infos, start)


def _append(writer: StoreWriter, batch: Batch, captured: Captured | None, policy: Pool, start: int, stop: int) -> None:
    """Appends the rows of a batch that are not yet safe on disk; for those that are, the inputs must be the same."""
    if writer.complete:
        return
    digest = batch.digest()
    if start < writer.samples_committed:
        _require_same_data(writer, start, stop, digest)
    if stop <= writer.samples_committed:
        return
    rows = rows_of(captured, policy)
    keep = max(0, writer.samples_committed - start)
    writer.append({name: values[keep:] for name, values in rows.items()}, digest if keep == 0 else None)


def _require_same_data(writer: StoreWriter, start: int, stop: int, digest: bytes) -> None:
    known = writer.check_digest(start, stop - start, digest)
    if not known and writer.expected_digests():  # the workers of a cluster leave no digests
        raise StoreError(
            f"samples {start} to {stop} were recorded in batches of another size; "
            "resume with batches as they were or record into another folder"
        )


def _finish(writer: StoreWriter, folder: Path, n_samples: int, first: Captured | None, policy: Pool) -> None:
    if writer.complete and writer.samples_committed != n_samples:
        raise StoreError(f"{folder} is complete with {writer.samples_committed} samples, but the data has {n_samples}")
    if writer.complete:
        if first is not None:
            _require_same_rows(Store(folder), rows_of(first, policy))
    elif writer.samples_committed > n_samples:
        raise StoreError(
            f"{folder} already holds {writer.samples_committed} samples, but the data has {n_samples}; "
            "resume with the data it was begun with or record into another folder"
        )
    else:
        writer.close()


def _require_same_rows(store: Store, rows: Mapping[str, Tensor]) -> None:
    """A complete recording keeps no digests: its first samples must be what the network says of the data."""
    for name, values in rows.items():
        stored = store[name][: len(values)]
        # another machine may round otherwise
        if not torch.allclose(stored.double(), values.double(), rtol=1e-2, atol=1e-3, equal_nan=True):
            raise StoreError(
                f"{store.path} is complete, but its samples are not what site '{name}' says of this data; "
                "record into another folder"
            )


def unpooled_session(model: nn.Module, sites: Sites, options: CaptureOptions) -> tuple[Session, Pool]:
    """A session that keeps positions, and the pooling to apply before writing."""
    session = Session(model, sites, **options)
    policy, session.pool = session.pool, "none"
    return session, policy


def rows_of(captured: Captured | None, policy: Pool) -> dict[str, Tensor]:
    """What one batch adds to a store: a contiguous tensor on the CPU for each site, labels and mask."""
    assert captured is not None
    rows = {
        name: pool(values, captured.masks[name], policy).cpu().contiguous()
        for name, values in captured.activations.items()
    }
    if captured.labels is not None and not captured.labels.is_floating_point():
        rows["labels"] = captured.labels.to(torch.int64).cpu()
    if policy == "none" and captured.batch.mask is not None:
        rows["mask"] = captured.batch.mask.cpu().contiguous()
    reserved = {"labels", "mask"} & set(captured.activations)
    if reserved:
        raise StoreError(f"a site is called {sorted(reserved)}, a name that stores keep for themselves; leave it out")
    return rows


def specs(rows: Mapping[str, Tensor]) -> dict[str, SiteSpec]:
    """The store's sites from its first rows."""
    return {name: SiteSpec.like(values) for name, values in rows.items()}


def manifest_of(
    model: nn.Module, options: CaptureOptions, policy: Pool, subject: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The part of the manifest that says what was recorded and how; a resumed recording must agree with it."""
    how = {"batch_size": options.get("batch_size", 64), "mode": options.get("mode", "eval")}
    return {
        "subject": {"model": describe_model(model), "capture": how, **dict(subject or {})},
        "pooling": policy,
        "seed": options.get("seed", 0),
        "versions": library_versions(),
    }


def check_folder(folder: Path, resume: bool) -> None:
    """Refuses a folder that is in use before the network is run at all."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"'{folder}' is a file, a recording needs a folder")
    begun = any((folder / name).exists() for name in ("manifest.json", "open.json"))
    if begun and not resume:
        raise StoreError(f"{folder} already holds a recording; resume it or choose another folder")
    if folder.exists() and not begun and any(entry.name not in ("lock", "open.json.tmp") for entry in folder.iterdir()):
        raise StoreError(f"{folder} is not empty and holds no recording; choose a new or an empty folder")
