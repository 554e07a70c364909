"""A recording that is killed, interrupted or spread over processes ends with the bytes of an unbroken one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from store_helpers import NURSERY, RANGE, SITES, files, rows, script

from netloupe.core.errors import StoreError
from netloupe.core.store import ShardRangeWriter, SiteSpec, Store, StoreWriter, finalize, open_store

SETTINGS = {"rows_per_shard": 16, "subject": {"model": "sine"}, "seed": 3}


def interrupted(folder, samples, digests=()):
    """A recording that an exception ends; ``digests`` are (rows, digest) of the batches, else there is one batch."""
    writer, start = StoreWriter(folder, SITES, **SETTINGS), 0
    for count, digest in digests or [(samples, None)]:
        writer.append(rows(start, start + count), digest=digest)
        start += count
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError("the network failed")


def write(folder, start, stop, batch=11, **options):
    with StoreWriter(folder, SITES, **SETTINGS, **options) as writer:
        for first in range(start, stop, batch):
            writer.append(rows(first, min(first + batch, stop)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "s"
    write(folder, 0, 200)
    return files(folder)


@pytest.fixture(scope="module")
def nursery():
    """Starts recorders in processes of their own: a folder, a total and a pause in, a process id out."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script(NURSERY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def start_recorder(nursery, folder, total, pause, changes=None):
    print(f"{folder}|{total}|{pause}|{changes}", file=nursery.stdin, flush=True)
    return int(nursery.stdout.readline())


def exit_status(nursery):
    return int(nursery.stdout.readline())


def test_a_chain_of_thirty_kills_ends_byte_identical(tmp_path, nursery):
    total, generator = 3000, random.Random(0)
    write(tmp_path / "unbroken", 0, total)
    expected, folder, killed = files(tmp_path / "unbroken"), tmp_path / "killed", 0
    while killed < 30:
        recorder = start_recorder(nursery, folder, total, 0.002)
        time.sleep(generator.uniform(0, 0.1))
        with suppress(ProcessLookupError):
            os.kill(recorder, signal.SIGKILL)
        killed += exit_status(nursery) == -signal.SIGKILL
        if (folder / "manifest.json").exists():  # finished: begin a new chain
            assert files(folder).items() >= expected.items()
            shutil.rmtree(folder)
    start_recorder(nursery, folder, total, 0)
    assert exit_status(nursery) == 0
    assert files(folder) == expected


def test_dying_before_any_single_change_to_the_disk_can_be_resumed(tmp_path, nursery):
    """Every system call that changes the disk is, once, the one that never happens, from opening to closing."""
    write(tmp_path / "unbroken", 0, 20)
    expected, changes, status, committed = files(tmp_path / "unbroken"), 0, 9, set()
    while status == 9:
        folder = tmp_path / f"died{changes}"
        start_recorder(nursery, folder, 20, 0, changes)
        status = exit_status(nursery)
        with StoreWriter(folder, SITES, **SETTINGS, resume=True) as writer:
            committed.add(writer.samples_committed)
            if writer.samples_committed < 20:
                writer.append(rows(writer.samples_committed, 20))
        assert files(folder) == expected, changes
        shutil.rmtree(folder)
        changes += 1
    assert status == 0
    assert committed == {0, 16, 20}
    assert changes > 60


def test_an_exception_keeps_whole_shards_and_removes_the_rest(tmp_path, whole):
    folder = tmp_path / "s"
    interrupted(folder, 50)
    assert not list(folder.rglob("*.partial"))
    assert not (folder / "lock").exists()
    part = Store(folder, partial=True)
    assert (part.samples, part.complete) == (48, False)
    assert torch.equal(part["labels"][:], torch.arange(48))
    assert part.verify() == []
    assert "unfinished" in str(part)
    write(folder, 48, 200, resume=True)
    assert files(folder) == whole


def test_bytes_do_not_depend_on_the_batches(tmp_path, whole):
    write(tmp_path / "s", 0, 200, batch=1)
    assert files(tmp_path / "s") == whole
    write(tmp_path / "t", 0, 200, batch=200)
    assert files(tmp_path / "t") == whole


def test_resuming_a_complete_store_changes_nothing(tmp_path, whole):
    write(tmp_path / "s", 0, 200)
    with StoreWriter(tmp_path / "s", SITES, **SETTINGS, resume=True) as writer:
        assert writer.complete
        assert writer.samples_committed == 200
        with pytest.raises(StoreError, match="closed"):
            writer.append(rows(200, 201))
    assert files(tmp_path / "s") == whole


def test_a_short_last_shard_is_written_anew(tmp_path, whole):
    """Killed between the last commit and the manifest: more data than before may follow."""
    folder = tmp_path / "s"
    open_store(folder, SITES, **SETTINGS).close()
    with ShardRangeWriter(folder) as writer:
        writer.append(rows(0, 150))
    assert len(list((folder / "commits").iterdir())) == 10
    with StoreWriter(folder, SITES, **SETTINGS, resume=True) as writer:
        assert writer.samples_committed == 144
        writer.append(rows(144, 200))
    assert files(folder) == whole


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_committed_shard_that_lost_bytes_is_recorded_again(tmp_path, whole, damage):
    folder = tmp_path / "s"
    interrupted(folder, 100)
    shard = folder / "sites" / "02-labels" / "000003.safetensors"
    if damage == "missing":
        shard.unlink()
    else:
        os.truncate(shard, 50)
    with StoreWriter(folder, SITES, **SETTINGS, resume=True) as writer:
        assert writer.samples_committed == 48
        writer.append(rows(48, 200))
    assert files(folder) == whole


def test_digests_tell_whether_the_data_are_the_same(tmp_path):
    folder = tmp_path / "s"
    interrupted(folder, 40, [(10, 7), (10, "ab" * 16), (20, b"0123456789abcdef")])
    with StoreWriter(folder, SITES, **SETTINGS, resume=True) as writer:
        assert writer.samples_committed == 32
        assert [(d.start, d.rows) for d in writer.expected_digests()] == [(0, 10), (10, 10), (20, 20)]
        assert writer.expected_digests()[0].digest == f"{7:032x}"
        assert writer.check_digest(10, 10, "ab" * 16)
        assert writer.check_digest(20, 20, b"0123456789abcdef")
        assert not writer.check_digest(0, 11, 7)
        with pytest.raises(StoreError, match="samples 0 to 10 are not the data"):
            writer.check_digest(0, 10, 8)
        for wrong in ("xyz", b"short", -1, 2**128):
            with pytest.raises(StoreError, match="16 bytes"):
                writer.check_digest(0, 10, wrong)
        writer.append(rows(32, 40))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows_per_shard": 8}, "rows_per_shard was 16 and is now 8"),
        ({"subject": {"model": "cosine"}}, "subject.model was 'sine' and is now 'cosine'"),
        ({"subject": {"model": "sine", "data": 1}}, "subject.data is new"),
        ({"pooling": "mean"}, "pooling was None and is now 'mean'"),
        ({"seed": 4}, "seed was 3 and is now 4"),
        ({"versions": {"torch": "1"}}, "versions.torch is new"),
        ({"sites": {**SITES, "new": SiteSpec((1,))}}, "sites.new is new"),
        ({"sites": {"labels": SITES["labels"]}}, "sites.layer1:in is only in the recording"),
        ({"sites": {**SITES, "layer1:in": SiteSpec((3, 5))}}, "dtype was 'bfloat16' and is now 'float32'"),
        ({"sites": {**SITES, "layer1:in": SiteSpec((5, 3), "bfloat16")}}, "row_shape was [3, 5] and is now [5, 3]"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, named):
    for folder, complete in ((tmp_path / "part", False), (tmp_path / "whole", True)):
        if complete:
            write(folder, 0, 20)
        else:
            open_store(folder, SITES, **SETTINGS).close()
        before = files(folder)
        with pytest.raises(StoreError) as error:
            StoreWriter(folder, **{"sites": SITES, **SETTINGS, **change}, resume=True)
        assert named in str(error.value)
        assert files(folder) == before
    # the order of sites and a shard size that is not given are not settings
    again = dict(reversed(SITES.items()))
    open_store(tmp_path / "part", again, subject={"model": "sine"}, seed=3, resume=True).close()


def test_two_processes_write_one_store(tmp_path, whole):
    folder = tmp_path / "s"
    with open_store(folder, SITES, **SETTINGS) as store:
        ranges = [(0, 5), (5, 13)]
        workers = [
            subprocess.Popen([sys.executable, "-c", script(RANGE), str(folder), str(first), str(stop), "200"])
            for first, stop in ranges
        ]
        assert [worker.wait() for worker in workers] == [0, 0]
        assert store.committed() == {**dict.fromkeys(range(12), 16), 12: 8}
        store.finalize(samples=200)
    assert files(folder) == whole


def test_ranges_may_end_in_any_order_and_missing_ones_are_named(tmp_path, whole):
    folder = tmp_path / "s"
    open_store(folder, SITES, **SETTINGS).close()
    with ShardRangeWriter(folder, 8) as writer:
        writer.append(rows(128, 200))
    with pytest.raises(StoreError, match=r"shard 0 of .* is missing"):
        finalize(folder)
    with ShardRangeWriter(folder, 0, 8) as writer:
        writer.append(rows(0, 100))
    with pytest.raises(StoreError, match=r"shard 6 of .* has 4 of 16 rows and is not the last"):
        finalize(folder)
    with ShardRangeWriter(folder, 0, 8) as writer:
        assert writer.samples_committed == 96
        with pytest.raises(StoreError, match="beyond this writer's shards 0 to 8"):
            writer.append(rows(96, 129))
        writer.append(rows(96, 128))
    with pytest.raises(StoreError, match="holds 200 samples instead of 201"):
        finalize(folder, samples=201)
    finalize(folder, samples=200)
    assert files(folder) == whole
    finalize(folder)


def test_two_writers_of_one_shard_and_early_finalizing_are_refused(tmp_path):
    folder = tmp_path / "s"
    with open_store(folder, SITES, **SETTINGS) as store:
        with ShardRangeWriter(folder, 0, 2) as first:
            first.append(rows(0, 20))
            while not (folder / "commits" / "000000.json").exists():
                time.sleep(0.01)
            second = ShardRangeWriter(folder, 1, 2)
            second.append(rows(16, 20))
            with pytest.raises(StoreError, match="range of shards of its own"):
                second.close()
            with pytest.raises(StoreError, match="another writer is recording"):
                store.finalize()
        store.finalize(20)
    assert Store(folder).verify() == []


def test_a_second_writer_is_refused_here_and_from_another_process(tmp_path, nursery):
    folder = tmp_path / "s"
    with StoreWriter(folder, SITES, **SETTINGS) as writer:
        writer.append(rows(0, 20))
        with pytest.raises(StoreError, match="another writer is recording"):
            StoreWriter(folder, SITES, **SETTINGS, resume=True)
        start_recorder(nursery, folder, 20, 0)
        assert exit_status(nursery) == 2
        assert "another writer is recording" in nursery.stderr.readline()
    assert Store(folder).samples == 20


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    folder = tmp_path / "s"
    writer = StoreWriter(folder, SITES, **SETTINGS)
    (read, write_end), (begun, started) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(started, b"x")
        os.read(read, 1)  # lives on, as a data loader's worker would
        os._exit(0)
    try:
        os.read(begun, 1)
        lock = writer._store._lock
        assert lock is not None
        assert lock._descriptor is not None
        os.close(lock._descriptor)  # what the kernel does when the parent dies
        lock._descriptor = None
        with StoreWriter(folder, SITES, **SETTINGS, resume=True) as again:
            again.append(rows(0, 5))
    finally:
        os.write(write_end, b"x")
        os.waitpid(child, 0)
        for descriptor in (read, write_end, begun, started):
            os.close(descriptor)
    writer.abort()
    assert Path(folder / "manifest.json").exists()
