"""Writing a store and reading it back: values, types, views, shuffling, labelled arrays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from store_helpers import SITES, files, rows

from netloupe.core.store import SiteSpec, Store, StoreWriter

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def record(folder, total=100, batch=13, rows_per_shard=16):
    with StoreWriter(folder, SITES, rows_per_shard=rows_per_shard, subject={"model": "sine"}, seed=3) as writer:
        for start in range(0, total, batch):
            writer.append(rows(start, min(start + batch, total)))
    return Store(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back_bit_for_bit(tmp_path, dtype):
    torch_dtype = SiteSpec((1,), dtype).torch_dtype
    bits = torch.randint(0, 2 if dtype == "bool" else 256, (50, 4 * torch_dtype.itemsize), dtype=torch.uint8)
    values = bits.view(torch_dtype)
    with StoreWriter(tmp_path / "s", {"a": SiteSpec((4,), torch_dtype)}, rows_per_shard=8) as writer:
        writer.append({"a": values[:30]})
        writer.append({"a": values[30:]})
    site = Store(tmp_path / "s")["a"]
    assert site.dtype == torch_dtype
    for read in (site[:], site.rows(np.arange(50)), torch.cat(list(site.batches(7)))):
        assert read.dtype == torch_dtype
        assert torch.equal(read.view(torch.uint8), bits)


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    rows_per_shard=st.one_of(st.none(), st.integers(1, 50)),
    row_shape=st.lists(st.integers(1, 5), max_size=3),
    data=st.data(),
)
def test_any_batches_shards_and_shapes(tmp_path_factory, batches, rows_per_shard, row_shape, data):
    total, folder = sum(batches), tmp_path_factory.mktemp("store") / "s"
    values = torch.arange(total * int(np.prod(row_shape)), dtype=torch.float64).view(total, *row_shape)
    with StoreWriter(folder, {"x": SiteSpec(row_shape, "float64")}, rows_per_shard=rows_per_shard) as writer:
        for part in values.split(batches):
            writer.append({"x": part})
    site = Store(folder)["x"]
    assert site.shape == tuple(values.shape)
    assert torch.equal(site[:], values)
    index = data.draw(st.slices(total))
    assert np.array_equal(site[index].numpy(), values.numpy()[index])
    picked = data.draw(st.lists(st.integers(-total, total - 1), max_size=20))
    assert np.array_equal(site[picked].numpy(), values.numpy()[np.array(picked, dtype=int)])
    assert np.array_equal(site[picked[0] if picked else 0].numpy(), values.numpy()[picked[0] if picked else 0])
    flags = np.arange(total) % 3 == 0
    assert np.array_equal(site[flags].numpy(), values.numpy()[flags])
    size = data.draw(st.integers(1, total + 1))
    assert [len(b) for b in site.batches(size, start=total // 3)] == [
        len(b) for b in values[total // 3 :].split(size) if len(b)
    ]
    assert Store(folder).verify() == []


def test_large_shards_are_joined_in_memory_and_small_ones_are_not(tmp_path):
    values = torch.randn(40_000, 16)
    found = {}
    for rows_per_shard in (8192, 8191):  # a shard of 512 KiB ends at a page boundary, one row less does not
        folder = tmp_path / str(rows_per_shard)
        with StoreWriter(folder, {"x": SiteSpec((16,))}, rows_per_shard=rows_per_shard) as writer:
            writer.append({"x": values})
        site = Store(folder)["x"]
        index = np.random.default_rng(0).integers(0, 40_000, 3000)
        assert torch.equal(site.rows(index), values[index])
        found[rows_per_shard] = site._whole is not None
    assert found == {8192: True, 8191: False}


def test_numpy_batches_and_odd_memory_layouts(tmp_path):
    values = np.arange(60, dtype=np.float64).reshape(20, 3)
    tensor = torch.arange(60.0).view(3, 20).T.requires_grad_()
    with StoreWriter(tmp_path / "s", {"a": SiteSpec.like(values), "b": SiteSpec((3,))}) as writer:
        writer.append({"a": values[::-1], "b": tensor})
        writer.append({"a": values.astype(">f8"), "b": tensor})
    store = Store(tmp_path / "s")
    assert np.array_equal(store["a"][:].numpy(), np.concatenate([values[::-1], values]))
    assert torch.equal(store["b"][20:], tensor.detach())


def test_safetensors_opens_every_shard(tmp_path):
    store = record(tmp_path / "s")
    paths = sorted((tmp_path / "s").rglob("*.safetensors"))
    assert len(paths) == 7 * len(SITES)
    for name, site in store.sites.items():
        parts = []
        for path in (p for p in paths if p.parent == store._layout.folder(name)):
            with safe_open(path, "pt") as file:
                assert list(file.keys()) == ["values"]
                parts.append(file.get_tensor("values"))
        assert torch.equal(torch.cat(parts), site[:])


def test_manifest_says_everything_and_only_the_store_remains(tmp_path):
    record(tmp_path / "s")
    content = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert content["schema_version"] == 1
    assert content["complete"] is True
    assert content["subject"] == {"model": "sine"}
    assert (content["samples"], content["rows_per_shard"], content["seed"]) == (100, 16, 3)
    assert content["sites"]["layer1:in"] == {
        "folder": "00-layer1_in",
        "row_shape": [3, 5],
        "dtype": "bfloat16",
        "axes": ["position", "unit"],
    }
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["manifest.json", "sites"]


def test_default_shard_is_the_largest_power_of_two_within_64_mib(tmp_path):
    with StoreWriter(tmp_path / "s", {"a": SiteSpec((1000,)), "labels": SiteSpec((), "int64")}) as writer:
        assert writer.rows_per_shard == 16384  # 62.5 MiB of 4,000-byte rows
        writer.append({"a": torch.zeros(1, 1000), "labels": torch.tensor([4])})


def test_odd_names_have_folders_of_their_own(tmp_path):
    names = ["a/b", "a:b", "a#b", "*", "..", "ünï/层", "x" * 400, "X" * 400, ".hidden", "a b\n"]
    with StoreWriter(tmp_path / "s", {name: SiteSpec((2,)) for name in names}) as writer:
        writer.append({name: torch.full((3, 2), float(i)) for i, name in enumerate(names)})
    store = Store(tmp_path / "s")
    assert list(store.sites) == names
    assert all(store[name][1][0] == i for i, name in enumerate(names))
    assert len(list((tmp_path / "s" / "sites").iterdir())) == len(names)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_a_slice_is_mapped_and_writing_into_it_changes_nothing(tmp_path):
    store = record(tmp_path / "s")
    before, site = files(tmp_path / "s"), store["layer1/β"]
    view = site[16:32]
    expected = view.clone()
    view.zero_()
    assert torch.equal(site[16:32], expected)
    assert torch.equal(site.rows(range(16, 32)), expected)
    assert files(tmp_path / "s") == before
    assert "000001.safetensors" in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
def test_many_views_keep_no_file_open(tmp_path):
    site = record(tmp_path / "s")["layer1/β"]
    before = len(os.listdir("/proc/self/fd"))
    views = [site[i : i + 1] for i in range(100)] + [site.rows([i]) for i in range(100)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(views) == 200


def test_shuffled_is_a_permutation_that_can_be_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr("netloupe.core.store.sites._BLOCK_BYTES", 200)  # three batches of eight labels at a time
    site = record(tmp_path / "s")["labels"]
    batches = [batch.clone() for batch in site.shuffled(8, seed=5, epochs=3)]
    assert [len(batch) for batch in batches] == [*[8] * 12, 4] * 3
    epochs = [torch.cat(batches[i : i + 13]) for i in (0, 13, 26)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(100))
    assert not torch.equal(epochs[0], epochs[1])
    for start in (0, 1, 12, 13, 20, 39):
        again = list(site.shuffled(8, seed=5, epochs=3, start_batch=start))
        assert len(again) == 39 - start
        assert all(torch.equal(a, b) for a, b in zip(again, batches[start:]))
    other = next(site.shuffled(8, seed=6))
    assert not torch.equal(other, batches[0])


def test_labels_and_mask(tmp_path):
    sites = {"a": SiteSpec((4, 2)), "labels": SiteSpec((), "int64"), "mask": SiteSpec((4,), bool)}
    mask = torch.rand(10, 4) > 0.5
    with StoreWriter(tmp_path / "s", sites, rows_per_shard=4) as writer:
        writer.append({"a": torch.ones(10, 4, 2), "labels": torch.arange(10), "mask": mask})
    store = Store(tmp_path / "s")
    assert store.labels is not None
    assert store.mask is not None
    assert torch.equal(store.labels, torch.arange(10))
    assert torch.equal(store.mask, mask)
    assert store["mask"].axes == ("sample", "position")
    with StoreWriter(tmp_path / "t", {"a": SiteSpec((1,))}) as writer:
        writer.append({"a": torch.ones(1, 1)})
    assert Store(tmp_path / "t").labels is None
    assert Store(tmp_path / "t").mask is None


def test_xarray_is_labelled_and_lazy(tmp_path, monkeypatch):
    store = record(tmp_path / "s")
    data = store.to_xarray()
    assert data["layer1:in"].dims == ("sample", "position", "unit[layer1:in]")
    assert data["layer1/β"].dims == ("sample", "unit[layer1/β]")
    assert data["labels"].dims == ("sample",)
    expected = store["layer1:in"][:].float().numpy()
    assert data["layer1:in"].dtype == np.float32
    assert np.array_equal(data["layer1:in"].values, expected)
    some = data["layer1:in"].isel(sample=[90, 3, 3], position=slice(0, 3, 2))
    assert np.array_equal(some.values, expected[[90, 3, 3]][:, ::2])
    assert np.array_equal(data["layer1:in"][5, :, 2].values, expected[5, :, 2])
    assert np.array_equal(data["layer1:in"].isel(sample=slice(80, 10, -7)).values, expected[80:10:-7])
    assert store.to_xarray(["layer1/β"])["layer1/β"].dims == ("sample", "unit")
    read = []
    monkeypatch.setattr(type(store["labels"]), "__getitem__", lambda self, index: read.append(index))
    store.to_xarray()["layer1:in"][0:10]
    assert read == []


def test_summary_and_text_name_what_is_there(tmp_path):
    store = record(tmp_path / "s")
    about = store.summary()
    assert about["sites"]["layer1:in"] == {
        "shape": [100, 3, 5],
        "dtype": "bfloat16",
        "axes": ["sample", "position", "unit"],
        "bytes": 3000,
    }
    assert about["bytes"] == sum(p.stat().st_size for p in (tmp_path / "s").rglob("*.safetensors"))
    assert json.loads(json.dumps(about)) == about
    text = str(store)
    for part in ("100 samples, 3 sites", "in 7 shards", "model sine", "100 sample x 3 position x 5 unit", "bfloat16"):
        assert part in text
