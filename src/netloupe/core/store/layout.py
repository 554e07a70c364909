"""Where things are in a store's folder, and what its opening settings, commit records and manifest say.

::

    manifest.json                                 written last; its presence means that the store is complete
    sites/00-<name>/000000.safetensors            one tensor `values` of shape (rows, *row_shape)
    open.json, commits/000000.json, lock          only while the recording is unfinished

Nothing in these files depends on when or in how many attempts they were written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloupe.core.errors import StoreError
from netloupe.core.store.files import read_json
from netloupe.core.store.spec import SiteSpec, checked_sites, default_rows_per_shard, folder_name

SCHEMA_VERSION = 1
KIND = "netloupe store"
_FOLDER = re.compile(r"\d+-[A-Za-z0-9._-]*")
_OURS = re.compile(r"\d{6,}\.safetensors(\.partial)?")


@dataclass(frozen=True)
class Layout:
    """The immutable settings of a store and the paths that follow from them."""

    path: Path
    settings: dict[str, Any]
    sites: dict[str, SiteSpec]

    @classmethod
    def new(
        cls,
        path: Path,
        sites: Mapping[str, SiteSpec],
        rows_per_shard: int | None,
        **identity: Any,
    ) -> Layout:
        """Settings for a new recording; StoreError where they cannot be written as JSON."""
        sites = checked_sites(sites)
        rows = default_rows_per_shard(sites) if rows_per_shard is None else int(rows_per_shard)
        if rows < 1:
            raise StoreError(f"rows_per_shard must be at least 1, not {rows}; leave it out for a good default")
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            **identity,
            "rows_per_shard": rows,
            "sites": {name: spec.to_json(folder_name(i, name)) for i, (name, spec) in enumerate(sites.items())},
        }
        try:
            settings = json.loads(json.dumps(settings, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"subject, pooling, seed and versions must hold plain JSON values, but {error}; "
                f"convert them to text or numbers"
            ) from error
        return cls(path, settings, sites)

    @classmethod
    def from_json(cls, source: Path, content: dict[str, Any]) -> Layout:
        """Settings read from ``open.json`` or ``manifest.json``; StoreError where they are not a store's."""
        version = content.get("schema_version")
        if content.get("kind") != KIND or not isinstance(version, int):
            raise StoreError(f"{source} does not describe a netloupe store; point to the folder that record() wrote")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{source} has schema version {version}, newer than the {SCHEMA_VERSION} known here; upgrade netloupe"
            )
        try:
            sites = {
                name: SiteSpec(entry["row_shape"], entry["dtype"], entry["axes"])
                for name, entry in content["sites"].items()
            }
            folders = [entry["folder"] for entry in content["sites"].values()]
            complete = isinstance(content["rows_per_shard"], int) and content["rows_per_shard"] > 0
        except (KeyError, TypeError, AttributeError, ValueError, StoreError) as error:
            raise StoreError(f"{source} is damaged ({error}); restore it from a copy or record again") from error
        # a folder name from a file must not lead out of the store
        if not complete or any(not isinstance(f, str) or not _FOLDER.fullmatch(f) for f in folders):
            raise StoreError(f"{source} is damaged (sites or rows_per_shard); restore it from a copy or record again")
        return cls(source.parent, content, sites)

    @property
    def rows_per_shard(self) -> int:
        return self.settings["rows_per_shard"]

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def opening(self) -> Path:
        return self.path / "open.json"

    @property
    def commits(self) -> Path:
        return self.path / "commits"

    def folder(self, site: str) -> Path:
        return self.path / "sites" / self.settings["sites"][site]["folder"]

    def shard(self, site: str, index: int) -> Path:
        return self.folder(site) / f"{index:06d}.safetensors"

    def record(self, index: int) -> Path:
        return self.commits / f"{index:06d}.json"

    def records(self) -> dict[int, dict[str, Any]]:
        """The commit records of shards whose files are all there in their full size, by shard number."""
        found = {}
        for path in sorted(self.commits.glob("[0-9]*.json")):
            record = read_json(path)
            if self._intact(int(path.stem), record):
                found[int(path.stem)] = record
        return found

    def _intact(self, index: int, record: dict[str, Any]) -> bool:
        try:
            return all(self.shard(name, index).stat().st_size == record["files"][name]["bytes"] for name in self.sites)
        except (FileNotFoundError, KeyError):
            return False

    def leftovers(self, committed: Mapping[int, Any] | set[int]) -> list[Path]:
        """Files of ours that belong to no committed shard: what a killed writer leaves behind."""
        found = [path for name in ("", "commits") for path in (self.path / name).glob("*.json.tmp")]
        for name in self.sites:
            for path in self.folder(name).glob("*"):
                if _OURS.fullmatch(path.name) and (
                    path.suffix == ".partial" or int(path.name.split(".")[0]) not in committed
                ):
                    found.append(path)
        found += [path for path in self.commits.glob("[0-9]*.json") if int(path.stem) not in committed]
        return found


def first_difference(begun: dict[str, Any], now: dict[str, Any], where: str = "") -> str | None:
    """The first setting that differs, said as ``name: was ..., now ...``; None where all agree."""
    for key in (*begun, *(key for key in now if key not in begun)):
        name = f"{where}.{key}" if where else key
        if key == "folder":
            continue  # follows from the order in which sites were first named
        if key not in begun or key not in now:
            return f"{name} is {'only in the recording' if key in begun else 'new'}"
        if isinstance(begun[key], dict) and isinstance(now[key], dict):
            inner = first_difference(begun[key], now[key], name)
            if inner:
                return inner
        elif begun[key] != now[key]:
            return f"{name} was {begun[key]!r} and is now {now[key]!r}"
    return None
