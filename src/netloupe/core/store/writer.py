"""Beginning, resuming and completing a store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from netloupe.core.errors import StoreError
from netloupe.core.store.files import FolderLock, read_json, saying, sync_folder, write_json
from netloupe.core.store.layout import Layout, first_difference
from netloupe.core.store.ranges import _QUEUE_BYTES, InputDigest, ShardRangeWriter, remove_files
from netloupe.core.store.shardfile import held_by_a_writer
from netloupe.core.store.spec import SiteSpec

_BEFORE_OPENING = {"lock", "open.json.tmp"}  # all that a folder holds if its writer was killed at once


def _refuse_unless_free(path: Path, resume: bool) -> None:
    """StoreError, with nothing touched, where ``path`` is not a place for this recording."""
    with saying(f"look into {path}"):
        if not path.exists():
            return
        if not path.is_dir():
            raise StoreError(f"{path} is a file; a store needs a folder of its own")
        names = {entry.name for entry in path.iterdir()} - _BEFORE_OPENING
    if names & {"manifest.json", "open.json"}:
        if not resume:
            raise StoreError(f"{path} already holds a store; pass resume=True to continue it or choose another folder")
    elif names:
        raise StoreError(f"{path} is not empty and holds no store; choose a new or an empty folder")


def _refuse_other_settings(begun: Layout, now: Layout, given: set[str]) -> None:
    own = {key: begun.settings.get(key) for key in now.settings if key in given}
    difference = first_difference(own, {key: value for key, value in now.settings.items() if key in given})
    if difference:
        raise StoreError(
            f"{begun.path} was begun with other settings: {difference}; "
            f"resume with the same ones or record into another folder"
        )


class OpenStore:
    """A recording in progress: holds the folder's lock, and completes the store once all shards are written.

    Made by ``open_store``; used alone by the process that coordinates several ``ShardRangeWriter``s. ``rows_per_shard``
    tells where to split the data.
    """

    def __init__(self, layout: Layout, complete: bool, lock: FolderLock | None) -> None:
        self.layout, self.complete, self._lock = layout, complete, lock

    @property
    def rows_per_shard(self) -> int:
        return self.layout.rows_per_shard

    def committed(self) -> dict[int, int]:
        """Rows of every committed shard, by shard number."""
        return {index: record["rows"] for index, record in self.layout.records().items()}

    def finalize(self, samples: int | None = None) -> None:
        """Writes the manifest and removes what only an unfinished store needs.

        StoreError, with nothing changed, where shards are missing, one before the last is short, a writer is still
        at work, or the store does not hold ``samples`` samples, if given.
        """
        if self.complete:
            return
        with saying(f"complete the store {self.layout.path}"):
            shards = self._whole_run_of_shards(samples)
            self.clear_leftovers({record["shard"] for record in shards})
            content = {
                **self.layout.settings,
                "samples": sum(record["rows"] for record in shards),
                "complete": True,
                "shards": [{"rows": record["rows"], "files": record["files"]} for record in shards],
            }
            write_json(self.layout.manifest, content)
            self.complete = True
            _remove_scaffolding(self.layout)
        self.close()

    def _whole_run_of_shards(self, samples: int | None) -> list[dict[str, Any]]:
        path, records = self.layout.path, self.layout.records()
        if not records:
            raise StoreError(f"no sample was recorded into {path}; append at least one before closing")
        shards = [records.get(index) for index in range(max(records) + 1)]
        for index, record in enumerate(shards):
            if record is None:
                raise StoreError(
                    f"shard {index} of {path} is missing; record its range of samples, then finalize again"
                )
            if record["rows"] != self.rows_per_shard and index != max(records):
                raise StoreError(
                    f"shard {index} of {path} has {record['rows']} of {self.rows_per_shard} rows and is not the last; "
                    f"record its range of samples again, then finalize again"
                )
        total = sum(record["rows"] for record in records.values())
        if samples is not None and total != samples:
            raise StoreError(f"{path} holds {total} samples instead of {samples}; record the rest, then finalize again")
        return [record for record in shards if record is not None]

    def clear_leftovers(self, committed: set[int]) -> None:
        """Removes what killed writers left; StoreError, with nothing removed, where a writer still lives."""
        found = self.layout.leftovers(committed)
        for path in found:
            if path.suffix == ".partial" and held_by_a_writer(path):
                raise StoreError(f"another writer is recording {path}; let all writers end, then try again")
        remove_files(found)

    def close(self) -> None:
        """Gives up the lock; an unfinished store can be resumed."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove_scaffolding(layout: Layout) -> None:
    """Removes what only an unfinished store needs; the order lets a killed removal be taken up again."""
    remove_files([*layout.commits.glob("*"), layout.path / "open.json.tmp", layout.path / "manifest.json.tmp"])
    with suppress(FileNotFoundError):
        layout.commits.rmdir()
    remove_files([layout.opening])


def open_store(
    path: str | Path,
    sites: Mapping[str, SiteSpec],
    *,
    rows_per_shard: int | None = None,
    subject: Mapping[str, Any] | None = None,
    pooling: Any = None,
    seed: int | None = None,
    versions: Mapping[str, str] | None = None,
    resume: bool = False,
) -> OpenStore:
    """Begins a recording, or continues one, without writing samples: the coordinator's side of a cluster's recording.

    ``sites`` maps a site's name to the shape and type of its rows; the names ``labels`` (int64) and ``mask`` (bool) are
    reserved for arrays that belong to the samples. ``rows_per_shard`` is the number of samples that are committed at a
    time, by default the power of two for which the widest site's shard takes at most 64 MiB. ``subject`` (which model,
    which data), ``pooling``, ``seed`` and ``versions`` are kept in the manifest; a resumed recording must agree in all.

    With ``resume`` an unfinished recording is continued, a complete one left alone (``complete`` is True) and a missing
    one begun. StoreError where the folder holds something else, other settings, or another writer.
    """
    folder = Path(path)
    identity = {"subject": dict(subject or {}), "pooling": pooling, "seed": seed, "versions": dict(versions or {})}
    wanted = Layout.new(folder, sites, rows_per_shard, **identity)
    given = set(wanted.settings) - (set() if rows_per_shard is not None else {"rows_per_shard"})
    _refuse_unless_free(folder, resume)
    if (folder / "manifest.json").exists():
        return _complete_store(folder, wanted, given)
    with saying(f"create the store {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    try:
        _refuse_unless_free(folder, resume)  # another writer may have come and gone before we had the lock
        if (folder / "manifest.json").exists():
            lock.release()
            return _complete_store(folder, wanted, given)
        return OpenStore(_begin(wanted, given), False, lock)
    except BaseException:
        lock.release()
        raise


def _begin(wanted: Layout, given: set[str]) -> Layout:
    """Writes the opening settings, or reads and compares them, and makes the folders."""
    layout = wanted
    if wanted.opening.exists():
        layout = Layout.from_json(wanted.opening, read_json(wanted.opening))
        _refuse_other_settings(layout, wanted, given)
    with saying(f"create the store {layout.path}"):
        if layout is wanted:
            write_json(layout.opening, layout.settings)
            sync_folder(layout.path.absolute().parent)
        for folder in (layout.commits, *(layout.folder(name) for name in layout.sites)):
            folder.mkdir(parents=True, exist_ok=True)
        sync_folder(layout.path / "sites")
        sync_folder(layout.path)
    return layout


def _complete_store(folder: Path, wanted: Layout, given: set[str]) -> OpenStore:
    """A complete store; a writer killed right after the manifest may have left its scaffolding, which goes now."""
    layout = Layout.from_json(folder / "manifest.json", read_json(folder / "manifest.json"))
    _refuse_other_settings(layout, wanted, given)
    scaffolding = (layout.opening, layout.commits, folder / "lock")
    if any(path.exists() for path in scaffolding):
        with saying(f"complete the store {folder}"):
            lock = FolderLock(folder)
            try:
                _remove_scaffolding(layout)
            finally:
                lock.release()
    return OpenStore(layout, True, None)


def finalize(path: str | Path, samples: int | None = None) -> None:
    """Completes a store whose ranges are all recorded when its coordinator is gone; see ``OpenStore.finalize``."""
    folder = Path(path)
    if (folder / "manifest.json").exists():
        settings = Layout.from_json(folder / "manifest.json", read_json(folder / "manifest.json"))
        _complete_store(folder, settings, set())
        return
    if not (folder / "open.json").exists():
        raise StoreError(f"{folder} holds no recording in progress; begin one with open_store() first")
    layout = Layout.from_json(folder / "open.json", read_json(folder / "open.json"))
    with saying(f"complete the store {folder}"):
        lock = FolderLock(folder)
    with OpenStore(layout, False, lock) as store:
        store.finalize(samples)


class StoreWriter(ShardRangeWriter):
    """Records a whole store from one process::

        with StoreWriter(folder, {"relu": SiteSpec((512,))}, subject={...}) as writer:
            for batch in batches:
                writer.append({"relu": activations})

    Takes the arguments of ``open_store``. With ``resume=True`` go on from sample ``samples_committed``; where
    ``complete`` is True there is nothing to do. When the ``with`` block is left by an exception, or the process is
    killed, the committed shards stay and the recording can be resumed; the result is byte for byte that of an unbroken
    one.

    ``append`` costs the caller only a queue entry: a thread hashes and writes the bytes at the disk's speed.
    """

    def __init__(
        self,
        path: str | Path,
        sites: Mapping[str, SiteSpec],
        *,
        rows_per_shard: int | None = None,
        subject: Mapping[str, Any] | None = None,
        pooling: Any = None,
        seed: int | None = None,
        versions: Mapping[str, str] | None = None,
        resume: bool = False,
        queue_bytes: int = _QUEUE_BYTES,
    ) -> None:
        self._store = open_store(
            path,
            sites,
            rows_per_shard=rows_per_shard,
            subject=subject,
            pooling=pooling,
            seed=seed,
            versions=versions,
            resume=resume,
        )
        self._pump = None
        self._layout = self._store.layout
        if self._store.complete:
            self._next = self._layout.settings["samples"]
            return
        try:
            self._begin(self._layout, 0, None, queue_bytes)
            with saying(f"continue the recording in {self._layout.path}"):
                self._store.clear_leftovers(set(range(len(self._records))))
        except BaseException:
            self._end_threads()
            self._store.close()
            raise

    @property
    def complete(self) -> bool:
        """Whether the store is finished, so that nothing is left to record."""
        return self._store.complete

    @property
    def samples_committed(self) -> int:
        """The sample to go on from: all before it were safe on disk when this writer began."""
        return self._next if self.complete else super().samples_committed

    def expected_digests(self) -> list[InputDigest]:
        """As for a range; a complete store keeps no digests of its inputs."""
        return [] if self.complete else super().expected_digests()

    def close(self) -> None:
        """Commits the rest and completes the store; StoreError where no sample was recorded."""
        if self._pump is None:
            return
        try:
            super().close()
            self._store.finalize(self._next)
        finally:
            self._store.close()

    def abort(self) -> None:
        """Stops recording; the committed shards stay and the recording can be resumed."""
        super().abort()
        self._store.close()
