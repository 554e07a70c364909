"""A store as an xarray dataset whose values are read when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from netloupe.core.store.sites import StoredSite

if TYPE_CHECKING:
    from netloupe.core.store.reader import Store


class _SiteArray(BackendArray):
    """What xarray asks for values: rows come from disk, the other axes are indexed in memory."""

    def __init__(self, site: StoredSite) -> None:
        self._site = site
        self.shape = site.shape
        self.dtype = np.dtype(np.float32) if site.dtype == torch.bfloat16 else site.spec.numpy_dtype

    def __getitem__(self, key: Any) -> Any:
        # one array index at a time is what the rows below can answer; xarray does the rest in memory
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        rows = self._site[key[0]]
        values = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
        rest = key[1:]
        return values[rest if isinstance(key[0], int | np.integer) else (slice(None), *rest)]


def dataset(store: Store, names: Sequence[str]) -> xarray.Dataset:
    """The named sites of a store; see ``Store.to_xarray``."""
    sites = [store[name] for name in names]
    sizes: dict[str, set[int]] = {}
    for site in sites:
        for axis, size in zip(site.axes, site.shape):
            sizes.setdefault(axis, set()).add(size)
    variables = {}
    for site in sites:
        axes = [axis if len(sizes[axis]) == 1 else f"{axis}[{site.name}]" for axis in site.axes]
        lazy = indexing.LazilyIndexedArray(_SiteArray(site))
        variables[site.name] = xarray.Variable(axes, lazy)
    about = {key: store.manifest[key] for key in ("subject", "pooling", "seed") if store.manifest.get(key)}
    return xarray.Dataset(variables, attrs=about)
