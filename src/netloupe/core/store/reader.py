"""Opening a store: its sites, what it was measured on, whether its bytes are still right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from torch import Tensor

from netloupe.core.errors import StoreError
from netloupe.core.store.files import read_json, saying
from netloupe.core.store.layout import Layout
from netloupe.core.store.names import near_misses
from netloupe.core.store.sites import StoredSite

if TYPE_CHECKING:
    import xarray

_CHUNK = 1 << 20


class _Sites(dict[str, StoredSite]):
    """A dict whose unknown keys are answered with the names that come near."""

    def __init__(self, path: Path, sites: dict[str, StoredSite]) -> None:
        super().__init__(sites)
        self._path = path

    def __missing__(self, name: str) -> StoredSite:
        raise StoreError(f"the store {self._path} has no site '{name}'; {near_misses(str(name), self)}")


class Store:
    """A recording, opened for reading: ``Store(folder)["relu"][:100]``.

    ``sites`` maps names to ``StoredSite``s, the reserved ``labels`` and ``mask`` among them; ``samples`` counts rows;
    ``subject`` says which model and data were recorded; ``manifest`` is everything the manifest says. Opening reads the
    manifest alone; a shard's size and header are checked when it is first read, its bytes by ``verify``.

    StoreError where the folder holds no store, its manifest is damaged or from a newer version, or the recording is
    unfinished; with ``partial=True`` an unfinished one is opened with the samples before its first missing shard.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self._layout, self.manifest = _read_manifest(self.path, partial)
        self.samples: int = self.manifest["samples"]
        self.complete: bool = self.manifest["complete"]
        self.subject: dict[str, Any] = self.manifest.get("subject") or {}
        self.sites: dict[str, StoredSite] = _Sites(
            self.path, {name: StoredSite(self._layout, name, self.samples) for name in self._layout.sites}
        )

    def __getitem__(self, site: str) -> StoredSite:
        return self.sites[site]

    def __contains__(self, site: object) -> bool:
        return site in self.sites

    def __len__(self) -> int:
        return self.samples

    @cached_property
    def labels(self) -> Tensor | None:
        """The samples' labels in memory, int64; None where none were recorded."""
        return self.sites["labels"][:].clone() if "labels" in self.sites else None

    @cached_property
    def mask(self) -> Tensor | None:
        """Which positions of each sample are real, bool, in memory; None where it was not recorded."""
        return self.sites["mask"][:].clone() if "mask" in self.sites else None

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Reads every byte and compares checksums; one sentence per damaged or missing shard, none if all is well.

        ``progress`` is called with the bytes read so far and the bytes in all.
        """
        expected = [
            (self._layout.shard(name, index), shard["files"][name])
            for index, shard in enumerate(self.manifest["shards"])
            for name in self.sites
        ]
        total = sum(entry["bytes"] for _, entry in expected)
        problems, done = [], 0
        for path, entry in expected:
            problem = _problem(path, entry)
            if problem:
                problems.append(f"shard {path} {problem}")
            done += entry["bytes"]
            if progress:
                progress(done, total)
        return problems

    def to_xarray(self, sites: Iterable[str] | None = None) -> xarray.Dataset:
        """All or some sites as a labelled dataset with dimensions ``sample``, ``position``, ``unit``.

        Values are read when they are used, and only the part that is used; ``.load()`` needs the memory of all of it.
        A dimension that has different sizes at different sites carries the site's name: ``unit[layer1]``. bfloat16,
        which numpy lacks, comes as float32.
        """
        from netloupe.core.store.labelled import dataset

        return dataset(self, list(self.sites) if sites is None else list(sites))

    def summary(self) -> dict[str, Any]:
        """What the store holds, as plain numbers and text."""
        return {
            "path": str(self.path),
            "complete": self.complete,
            "samples": self.samples,
            "shards": len(self.manifest["shards"]),
            "rows_per_shard": self._layout.rows_per_shard,
            "bytes": sum(f["bytes"] for shard in self.manifest["shards"] for f in shard["files"].values()),
            "sites": {
                name: {
                    "shape": list(site.shape),
                    "dtype": site.spec.dtype,
                    "axes": list(site.axes),
                    "bytes": site.nbytes,
                }
                for name, site in self.sites.items()
            },
            **{key: self.manifest.get(key) for key in ("subject", "pooling", "seed", "versions")},
        }

    def __str__(self) -> str:
        about = self.summary()
        state = "" if self.complete else ", unfinished"
        lines = [
            f"{about['path']}: {self.samples} samples, {len(self.sites)} sites, {_size(about['bytes'])} "
            f"in {about['shards']} shards{state}"
        ]
        lines += [
            f"{key}: {_plain(about[key])}"
            for key in ("subject", "pooling", "seed", "versions")
            if about[key] not in (None, {})
        ]
        width = max(len(name) for name in self.sites)
        for name, site in self.sites.items():
            shape = " x ".join(f"{size} {axis}" for size, axis in zip(site.shape, site.axes))
            lines.append(f"  {name:<{width}}  {site.spec.dtype:<8}  {shape}  {_size(site.nbytes)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, samples={self.samples}, sites={list(self.sites)})"


def _read_manifest(path: Path, partial: bool) -> tuple[Layout, dict[str, Any]]:
    source = path / "manifest.json"
    with saying(f"open the store {path}"):
        there = path.is_dir()
        complete, begun = source.exists(), (path / "open.json").exists()
    if not there:
        raise StoreError(f"there is no store at {path}; check the path or record one first")
    if complete:
        content = read_json(source)
        layout = Layout.from_json(source, content)
        _check_shards(source, layout, content)
        return layout, content
    if not begun:
        raise StoreError(f"{path} holds no store (manifest.json is missing); check the path or record one first")
    layout = Layout.from_json(path / "open.json", read_json(path / "open.json"))
    with saying(f"open the store {path}"):
        records = layout.records()
    shards: list[dict[str, Any]] = []
    while (record := records.get(len(shards))) is not None:
        shards.append({"rows": record["rows"], "files": record["files"]})
    samples = sum(shard["rows"] for shard in shards)
    if not partial:
        raise StoreError(
            f"the recording in {path} is unfinished with {samples} samples so far; "
            f"continue it with resume=True or read what there is with Store(path, partial=True)"
        )
    return layout, {**layout.settings, "samples": samples, "complete": False, "shards": shards}


def _check_shards(source: Path, layout: Layout, content: dict[str, Any]) -> None:
    try:
        rows = [shard["rows"] for shard in content["shards"]]
        named = all({"bytes", "xxh3_128"} <= set(s["files"][name]) for s in content["shards"] for name in layout.sites)
        size = layout.rows_per_shard
        whole = all(count == size for count in rows[:-1]) and 0 < rows[-1] <= size
        fits = named and whole and content["complete"] is True and content["samples"] == sum(rows)
    except (KeyError, TypeError, IndexError):
        fits = False
    if not fits:
        raise StoreError(f"{source} is damaged (its list of shards); restore it from a copy or record again")


def _problem(path: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with a file, or None."""
    digest = xxhash.xxh3_128()
    try:
        size = os.path.getsize(path)
        if size != entry["bytes"]:
            return f"has {size} bytes instead of {entry['bytes']}"
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({(error.strerror or str(error)).lower()})"
    return None if digest.hexdigest() == entry["xxh3_128"] else "has changed since it was written (checksum differs)"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
