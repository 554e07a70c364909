"""Recording a run of consecutive shards: the part that a one-process writer and a cluster's workers share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from netloupe.core.errors import StoreError
from netloupe.core.store.files import read_json, saying, sync_folder
from netloupe.core.store.layout import Layout
from netloupe.core.store.names import near_misses
from netloupe.core.store.pump import Pump
from netloupe.core.store.shardfile import PartialShard
from netloupe.core.store.spec import payload

_QUEUE_BYTES = 256 * 2**20


class InputDigest(NamedTuple):
    """What a recorded batch was computed from: a hash of the input samples ``start`` to ``start + rows``."""

    start: int
    rows: int
    digest: str


class _Batch(NamedTuple):
    payloads: dict[str, np.ndarray]
    start: int
    rows: int
    digest: str | None


def hex_digest(digest: bytes | int | str) -> str:
    """A digest as 32 lower-case hexadecimal characters; StoreError where it is not 16 bytes."""
    with suppress(ValueError, OverflowError):
        value = digest if isinstance(digest, int) else int(digest, 16) if isinstance(digest, str) else None
        raw = bytes(digest) if value is None else value.to_bytes(16, "big")  # type: ignore[arg-type]
        if len(raw) == 16:
            return raw.hex()
    raise StoreError(f"a digest must be 16 bytes, as bytes, an integer or hexadecimal text, not {digest!r}")


class ShardRangeWriter:
    """Records shards ``first_shard`` to ``stop_shard`` of a store that ``open_store`` has begun.

    Samples are appended from sample ``first_shard * rows_per_shard`` on, or, where an earlier writer of this range was
    killed, from ``samples_committed`` on. Every writer needs a range of its own; only the one with the
    last range may leave ``stop_shard`` out. Once all are closed, ``finalize`` completes the store; its bytes are
    those of a one-process recording.

    Appending hands the batch to a background thread and waits only while more than ``queue_bytes`` are on their way to
    the disk. Batches are kept by reference until written: do not change them in place after appending.
    """

    def __init__(
        self, path: str | Path, first_shard: int = 0, stop_shard: int | None = None, *, queue_bytes: int = _QUEUE_BYTES
    ) -> None:
        folder = Path(path)
        if not (folder / "open.json").exists():
            raise StoreError(f"{folder} holds no recording in progress; begin one with open_store() first")
        layout = Layout.from_json(folder / "open.json", read_json(folder / "open.json"))
        self._begin(layout, first_shard, stop_shard, queue_bytes)

    def _begin(self, layout: Layout, first: int, stop: int | None, queue_bytes: int) -> None:
        if first < 0 or (stop is not None and stop <= first):
            raise StoreError(f"shards {first} to {stop} are no range; give 0 <= first_shard < stop_shard")
        self._layout, self._first, self._stop = layout, first, stop
        with saying(f"continue the recording in {layout.path}"):
            self._records = self._keep_whole_shards()
        self._next = self.samples_committed
        self._shard: PartialShard | None = None
        self._shard_index = first + len(self._records)
        self._committing: Future[None] | None = None
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netloupe-commit")
        self._pump: Pump[_Batch] | None = Pump(self._write, queue_bytes, "netloupe-write")

    def _keep_whole_shards(self) -> list[dict[str, Any]]:
        """Records of the unbroken run of full shards at the range's start; forgets what comes after it.

        A short shard is the end of a recording that was about to close: it is written anew, since more may follow.
        """
        layout, kept = self._layout, []
        records = layout.records()
        while (record := records.get(self._first + len(kept))) and record["rows"] == layout.rows_per_shard:
            if self._stop is not None and self._first + len(kept) >= self._stop:
                break
            kept.append(record)
        for path in layout.commits.glob("[0-9]*.json"):
            index = int(path.stem)
            if index >= self._first + len(kept) and (self._stop is None or index < self._stop):
                path.unlink()
        sync_folder(layout.commits)
        return kept

    @property
    def rows_per_shard(self) -> int:
        return self._layout.rows_per_shard

    @property
    def samples_committed(self) -> int:
        """The sample to go on from: all before it, from the range's start, were safe on disk when this writer began."""
        return (self._first + len(self._records)) * self.rows_per_shard

    @property
    def samples(self) -> int:
        """The number of the next sample to append."""
        return self._next

    def expected_digests(self) -> list[InputDigest]:
        """Digests given with the batches that this range's committed shards came from, in order of their start."""
        entries = [InputDigest(*entry) for record in self._records for entry in record["inputs"]]
        return sorted(entries)

    def check_digest(self, start: int, rows: int, digest: bytes | int | str) -> bool:
        """Compares inputs that need not be recorded again with those recorded before the interruption.

        True if samples ``start`` to ``start + rows`` were one recorded batch with this digest, False if no such batch
        was recorded; StoreError if it was and its digest differs.
        """
        expected = self._digests.get((start, rows))
        if expected is None:
            return False
        if expected != hex_digest(digest):
            raise StoreError(
                f"samples {start} to {start + rows} are not the data that {self._layout.path} was begun with; "
                f"resume with the same data in the same order or record into another folder"
            )
        return True

    @cached_property
    def _digests(self) -> dict[tuple[int, int], str]:
        return {(entry.start, entry.rows): entry.digest for entry in self.expected_digests()}

    def append(self, batch: Mapping[str, Any], digest: bytes | int | str | None = None) -> None:
        """Adds the next ``n`` samples: for every site a tensor or array of shape ``(n, *row_shape)``.

        ``digest``, 16 bytes that identify the input samples, lets a resumed recording check that it reads the same
        data. Raises StoreError, with nothing written, where sites, shapes, types or ``n`` do not fit, and where
        writing an earlier batch failed.
        """
        if self._pump is None:
            raise StoreError(f"the recording in {self._layout.path} is closed; nothing can be added to it")
        payloads, rows = self._payloads(batch)
        if self._stop is not None and self._next + rows > self._stop * self.rows_per_shard:
            raise StoreError(
                f"samples {self._next} to {self._next + rows} reach beyond this writer's shards {self._first} to "
                f"{self._stop} of {self.rows_per_shard} samples; split the data at the ranges"
            )
        if rows == 0:
            return
        item = _Batch(payloads, self._next, rows, None if digest is None else hex_digest(digest))
        self._pump.put(item, sum(len(data) for data in payloads.values()))
        self._next += rows

    def _payloads(self, batch: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
        sites = self._layout.sites
        for name in batch:
            if name not in sites:
                raise StoreError(f"site '{name}' is not part of this store; {near_misses(name, sites)}")
        payloads, counts = {}, {}
        for name, spec in sites.items():
            if name not in batch:
                raise StoreError(
                    f"site '{name}' is missing from the batch; every append must hold all sites of the store"
                )
            counts[name], payloads[name] = payload(name, spec, batch[name])
        first = next(iter(counts))
        for name, count in counts.items():
            if count != counts[first]:
                raise StoreError(
                    f"site '{name}' has {count} samples but site '{first}' has {counts[first]}; "
                    f"all sites of a batch must hold the same samples"
                )
        return payloads, counts[first]

    def _write(self, batch: _Batch) -> None:
        """On the background thread: spreads a batch over shards and sends full ones to be committed."""
        done = 0
        while done < batch.rows:
            if self._shard is None:
                self._shard = PartialShard(self._layout, self._shard_index).open()
            if done == 0 and batch.digest is not None:
                self._shard.inputs.append((batch.start, batch.rows, batch.digest))
            rows = min(batch.rows - done, self.rows_per_shard - self._shard.rows)
            self._shard.write(batch.payloads, done, rows)
            done += rows
            if self._shard.rows == self.rows_per_shard:
                self._commit()

    def _commit(self) -> None:
        # one shard is synced while the next is written, so that the disk never waits for the network
        assert self._shard is not None
        self._await_commit()
        shard, self._shard = self._shard, None
        self._shard_index += 1
        self._committing = self._committer.submit(shard.commit)

    def _await_commit(self) -> None:
        if self._committing is not None:
            committing, self._committing = self._committing, None
            committing.result()

    def close(self) -> None:
        """Waits for the disk and commits the rest as a short shard, which only the store's last shard may be."""
        if self._pump is None:
            return
        try:
            self._pump.drain()
            if self._shard is not None:
                self._commit()
            self._await_commit()
        finally:
            self._end_threads()

    def abort(self) -> None:
        """Stops recording: committed shards stay, the unfinished one is removed; safe to call twice."""
        self._end_threads()

    def _end_threads(self) -> None:
        if self._pump is None:
            return
        self._pump.join()
        self._pump = None
        self._committer.shutdown(wait=True)
        if self._shard is not None:
            self._shard.discard()
            self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def remove_files(paths: list[Path]) -> None:
    """Unlinks files and makes their folders remember it."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)
    for folder in {path.parent for path in paths}:
        sync_folder(folder)
