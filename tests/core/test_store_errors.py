"""Everything that can go wrong is one sentence, and nothing that was safe is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import numpy as np
import pytest
import torch
from store_helpers import SITES, files, rows

from netloupe.core.errors import NetloupeError, StoreError
from netloupe.core.store import ShardRangeWriter, SiteSpec, Store, StoreWriter, finalize


def refused(action, *parts):
    with pytest.raises(StoreError) as caught:
        action()
    text = str(caught.value)
    assert isinstance(caught.value, NetloupeError)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


@pytest.fixture
def folder(tmp_path):
    with StoreWriter(tmp_path / "s", SITES, rows_per_shard=16) as writer:
        writer.append(rows(0, 40))
    return tmp_path / "s"


def unfinished(path, samples=40):
    writer = StoreWriter(path, SITES, rows_per_shard=16)
    writer.append(rows(0, samples))
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda b: {k: v for k, v in b.items() if k != "labels"}, ["'labels'", "missing"]),
        (lambda b: {**b, "layer1:im": b["labels"]}, ["'layer1:im'", "did you mean 'layer1:in'"]),
        (lambda b: {**b, "labels": b["labels"][:3]}, ["'labels' has 3 samples", "has 20"]),
        (lambda b: {**b, "labels": b["labels"].int()}, ["'labels' stores int64", "given int32"]),
        (lambda b: {**b, "layer1/β": b["layer1/β"].double().numpy()}, ["stores float32", "given float64"]),
        (lambda b: {**b, "layer1:in": b["layer1:in"][:, :2]}, ["(20, 2, 5)", "(n, 3, 5)"]),
        (lambda b: {**b, "labels": torch.tensor(1)}, ["shape ()", "(n)"]),
        (lambda b: {**b, "labels": "words"}, ["'labels' stores int64"]),
    ],
)
def test_batches_that_do_not_fit_are_refused_and_nothing_of_them_is_written(tmp_path, make, parts):
    with StoreWriter(tmp_path / "s", SITES) as writer:
        refused(lambda: writer.append(make(rows(0, 20))), *parts)
        writer.append(rows(0, 0))
        writer.append(rows(0, 5))
    assert Store(tmp_path / "s").samples == 5


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"sites": {}}, ["at least one site"]),
        ({"sites": {"": SiteSpec((1,))}}, ["non-empty string"]),
        ({"sites": {"a": (1,)}}, ["'a' needs a SiteSpec"]),
        ({"sites": {"labels": SiteSpec((), "float32")}}, ["'labels' holds int64"]),
        ({"rows_per_shard": 0}, ["at least 1"]),
        ({"subject": {"model": object()}}, ["plain JSON values"]),
        ({"subject": {"loss": float("nan")}}, ["plain JSON values"]),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, options, parts):
    refused(lambda: StoreWriter(tmp_path / "s", **{"sites": SITES, **options}), *parts)
    assert not (tmp_path / "s").exists()


def test_specs_that_cannot_be_are_refused():
    refused(lambda: SiteSpec((3, 0)), "(3, 0)")
    refused(lambda: SiteSpec((3,), "complex64"), "complex64", "float32")
    refused(lambda: SiteSpec((3,), torch.complex64), "complex64")
    refused(lambda: SiteSpec((3,), "nonsense"), "nonsense")
    refused(lambda: SiteSpec((3, 2), axes=("unit",)), "('unit',)", "(3, 2)")
    refused(lambda: SiteSpec((3,), axes=("sample",)), "sample")


def test_no_sample_at_all(tmp_path):
    writer = StoreWriter(tmp_path / "s", SITES)
    refused(writer.close, "no sample")
    assert not (tmp_path / "s" / "lock").exists()
    with StoreWriter(tmp_path / "s", SITES, resume=True) as again:
        again.append(rows(0, 3))
    assert Store(tmp_path / "s").samples == 3


def test_folders_that_hold_something_else_are_left_alone(tmp_path, folder):
    refused(lambda: StoreWriter(folder, SITES), "already holds a store", "resume=True")
    unfinished(tmp_path / "part")
    refused(lambda: StoreWriter(tmp_path / "part", SITES), "already holds a store")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        before = files(tmp_path)
        refused(lambda r=resume: StoreWriter(tmp_path / "other", SITES, resume=r), "not empty and holds no store")
        refused(lambda r=resume: StoreWriter(tmp_path / "other" / "thesis.txt", SITES, resume=r), "is a file")
        assert files(tmp_path) == before


def test_reading_what_is_not_there(tmp_path, folder):
    refused(lambda: Store(tmp_path / "nowhere"), "no store at")
    (tmp_path / "empty").mkdir()
    refused(lambda: Store(tmp_path / "empty"), "manifest.json is missing")
    refused(lambda: ShardRangeWriter(tmp_path / "empty"), "open_store()")
    refused(lambda: finalize(tmp_path / "empty"), "open_store()")
    unfinished(tmp_path / "part")
    refused(lambda: Store(tmp_path / "part"), "unfinished with 32 samples", "resume=True", "partial=True")
    store = Store(folder)
    refused(lambda: store["layer1:on"], "did you mean 'layer1:in'")
    refused(lambda: store.sites["zzz"], "no site 'zzz'", "it has 'layer1:in'")
    refused(lambda: store.to_xarray(["lables"]), "did you mean 'labels'")
    site = store["labels"]
    refused(lambda: site[40], "no row 40", "0 to 39")
    refused(lambda: site.rows([0, -41]), "no row -41")
    refused(lambda: site.rows([0.5]), "float64")
    refused(lambda: site.rows([[1]]), "flat array")
    refused(lambda: site[np.ones(3, bool)], "40 samples")
    refused(lambda: next(site.batches(0)), "at least 1 row")
    refused(lambda: next(site.shuffled(0, seed=0)), "batch_size >= 1")


def test_an_unfinished_store_without_a_whole_shard_is_empty(tmp_path):
    unfinished(tmp_path / "s", 5)
    store = Store(tmp_path / "s", partial=True)
    assert (store.samples, store.verify(), store["layer1:in"][:].shape) == (0, [], (0, 3, 5))
    assert list(store["labels"].shuffled(4, seed=0, epochs=2)) == []
    assert store.to_xarray()["labels"].shape == (0,)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_manifests(folder):
    manifest = folder / "manifest.json"
    good = manifest.read_text()
    for text, part in [
        ("{", "not valid JSON"),
        ("[1]", "list"),
        ("\x00\xff", "not valid JSON"),
        ("{}", "netloupe store"),
    ]:
        manifest.write_text(text)
        refused(lambda: Store(folder), "manifest.json", part)
    for changes, part in [
        ({"schema_version": 2}, "schema version 2, newer than the 1"),
        ({"kind": "spreadsheet"}, "does not describe a netloupe store"),
        ({"sites": {"a": {}}}, "damaged"),
        ({"sites": []}, "damaged"),
        ({"samples": 41}, "damaged"),
        ({"shards": []}, "damaged"),
        ({"shards": [{"rows": 40, "files": {}}]}, "damaged"),
        ({"rows_per_shard": 0}, "damaged"),
    ]:
        manifest.write_text(good)
        edit(manifest, **changes)
        refused(lambda: Store(folder), part)
    content = json.loads(good)
    content["sites"]["labels"]["folder"] = "../../elsewhere"
    manifest.write_text(json.dumps(content))
    refused(lambda: Store(folder), "damaged")


def shard(folder, index=1, site="00-layer1_in"):
    return folder / "sites" / site / f"{index:06d}.safetensors"


def test_damaged_shards_are_named_when_read_and_by_verify(folder):
    good = shard(folder).read_bytes()
    assert Store(folder).verify() == []

    shard(folder).write_bytes(good[:-1])
    refused(lambda: Store(folder)["layer1:in"][20], "000001.safetensors", "bytes instead of")
    refused(lambda: Store(folder)["layer1:in"][:], "000001.safetensors", "bytes instead of")
    assert Store(folder)["layer1:in"][0:16].shape == (16, 3, 5)
    assert Store(folder)["labels"][:].shape == (40,)
    (problem,) = Store(folder).verify()
    assert "000001.safetensors" in problem

    shard(folder).write_bytes(good[:8] + b"[" + good[9:])
    refused(lambda: Store(folder)["layer1:in"][20], "000001.safetensors", "damaged header")

    for position in (len(good) // 2, len(good) - 1, 3):
        flipped = bytearray(good)
        flipped[position] ^= 1
        shard(folder).write_bytes(flipped)
        (problem,) = Store(folder).verify()
        assert str(shard(folder)) in problem
        assert "checksum differs" in problem

    shard(folder).unlink()
    refused(lambda: Store(folder)["layer1:in"][20], "000001.safetensors", "missing")
    (problem,) = Store(folder).verify()
    assert "missing" in problem


def test_verify_reports_its_progress(folder):
    seen = []
    assert Store(folder).verify(lambda done, total: seen.append((done, total))) == []
    assert len(seen) == 9
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == Store(folder).summary()["bytes"]


@pytest.mark.parametrize(
    ("name", "code", "after"), [("write", errno.ENOSPC, 40), ("fsync", errno.EIO, 20), ("rename", errno.EACCES, 10)]
)
def test_a_disk_that_fails_keeps_what_was_committed(tmp_path, monkeypatch, name, code, after):
    """The failure appears at the next append or at close, says why, and the recording goes on once it is gone."""
    with StoreWriter(tmp_path / "unbroken", SITES, rows_per_shard=16) as writer:
        writer.append(rows(0, 100))
    path = tmp_path / "s"
    unfinished(path)
    original = getattr(os, name)
    calls = iter(range(10**6))

    def failing(*arguments, **options):
        if next(calls) > after:
            raise OSError(code, os.strerror(code))
        return original(*arguments, **options)

    def go_on():
        with StoreWriter(path, SITES, rows_per_shard=16, resume=True) as writer:
            for start in range(writer.samples_committed, 2000, 4):
                writer.append(rows(start, start + 4))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        text = refused(go_on, os.strerror(code).lower(), str(path))
        assert code != errno.ENOSPC or "free some space" in text
    assert not list(path.rglob("*.partial"))
    assert not (path / "lock").exists()
    with StoreWriter(path, SITES, rows_per_shard=16, resume=True) as writer:
        assert writer.samples_committed in range(32, 100, 16)
        writer.append(rows(writer.samples_committed, 100))
    assert files(path) == files(tmp_path / "unbroken")


def _small_disk(path):
    path.mkdir()
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", path], capture_output=True).returncode == 0
    )


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    if not _small_disk(disk):
        pytest.skip("mounting a small disk needs root; the test above fails the system calls instead")
    try:
        site = {"x": SiteSpec((1024,))}
        batches = torch.randn(100, 1024).split(10)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(120_000))

        def go_on():
            with StoreWriter(disk / "s", site, rows_per_shard=8, resume=True) as writer:
                for start in range(writer.samples_committed, 30, 2):
                    writer.append({"x": torch.cat(batches)[start : start + 2]})

        refused(go_on, "no space left", "free some space")
        assert Store(disk / "s", partial=True).samples >= 8
        ballast.unlink()
        go_on()
        assert torch.equal(Store(disk / "s")["x"][:], torch.cat(batches)[:30])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_folders_without_permission(tmp_path, folder, monkeypatch):
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir()
        locked.chmod(0o500)
        refused(lambda: StoreWriter(locked / "s", SITES), "permission denied", "folder that you may read and write")
        locked.chmod(0o700)
        (folder / "manifest.json").chmod(0o000)
        refused(lambda: Store(folder), "permission denied")
        return
    # root may do everything, so the system's answers are given in its place
    for code, part in [(errno.EACCES, "may read and write"), (errno.EROFS, "not read-only")]:

        def denied(*_, number=code, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", denied)
            refused(lambda: StoreWriter(tmp_path / "new", SITES), os.strerror(code).lower(), part)
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.read_bytes", denied)
            refused(lambda: Store(folder), os.strerror(code).lower(), part)


def test_a_read_only_folder_can_still_be_resumed_when_complete_and_read(folder, monkeypatch):
    def denied(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "unlink", "rename", "write"):
        monkeypatch.setattr(os, name, denied)
    assert StoreWriter(folder, SITES, rows_per_shard=16, resume=True).complete
    assert Store(folder)["labels"].rows([39])[0] == 39
