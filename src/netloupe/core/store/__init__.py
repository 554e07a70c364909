"""Recordings of activations on disk: written as a stream, safe against being killed, read without copying."""

from netloupe.core.store.ranges import InputDigest, ShardRangeWriter
from netloupe.core.store.reader import Store
from netloupe.core.store.sites import StoredSite
from netloupe.core.store.spec import SiteSpec
from netloupe.core.store.writer import OpenStore, StoreWriter, finalize, open_store

__all__ = [
    "InputDigest",
    "OpenStore",
    "ShardRangeWriter",
    "SiteSpec",
    "Store",
    "StoreWriter",
    "StoredSite",
    "finalize",
    "open_store",
]
