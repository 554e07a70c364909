"""What a site looks like on disk: row shape, number type, axis names and folder name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netloupe.core.errors import StoreError

# our name -> (torch type, numpy type of the same width, safetensors code); numpy has no bfloat16, so its bits
# travel as uint16
_DTYPES: dict[str, tuple[torch.dtype, type, str]] = {
    "float64": (torch.float64, np.float64, "F64"),
    "float32": (torch.float32, np.float32, "F32"),
    "float16": (torch.float16, np.float16, "F16"),
    "bfloat16": (torch.bfloat16, np.uint16, "BF16"),
    "int64": (torch.int64, np.int64, "I64"),
    "int32": (torch.int32, np.int32, "I32"),
    "int16": (torch.int16, np.int16, "I16"),
    "int8": (torch.int8, np.int8, "I8"),
    "uint8": (torch.uint8, np.uint8, "U8"),
    "bool": (torch.bool, np.bool_, "BOOL"),
}
_SHARD_BYTES = 64 * 2**20
_FOLDER_CHARACTERS = 80
_DEFAULT_AXES = {0: (), 1: ("unit",), 2: ("position", "unit")}


def dtype_name(dtype: Any) -> str:
    """Name of a torch, numpy or textual number type, e.g. ``"float32"``; StoreError if a store cannot hold it."""
    given: Any = dtype
    try:
        name = str(given).removeprefix("torch.") if isinstance(given, str | torch.dtype) else np.dtype(given).name
    except TypeError:
        name = str(given)
    if name not in _DTYPES:
        raise StoreError(f"a store cannot hold numbers of type {name}; convert them to one of {', '.join(_DTYPES)}")
    return name


@dataclass(frozen=True, init=False)
class SiteSpec:
    """One row of a site: everything but the sample axis.

    ``row_shape`` is ``(unit,)``, ``(position, unit)`` or, for one number per sample, ``()``. ``dtype`` may be given as
    a torch or numpy type or by name and is kept by name. ``axes`` names the row's axes, the unit axis last; the default
    is ``("unit",)`` or ``("position", "unit")``, and ``axis0, axis1, ... unit`` for longer rows.
    """

    row_shape: tuple[int, ...]
    dtype: str = "float32"
    axes: tuple[str, ...] | None = None

    def __init__(self, row_shape: Any, dtype: Any = "float32", axes: Any = None) -> None:
        shape = tuple(int(size) for size in row_shape)
        if any(size < 1 for size in shape):
            raise StoreError(f"a row of shape {shape} is empty; every axis needs at least one entry")
        if axes is None:
            axes = _DEFAULT_AXES.get(len(shape)) or (*(f"axis{i}" for i in range(len(shape) - 1)), "unit")[: len(shape)]
        axes = tuple(str(axis) for axis in axes)
        if len(axes) != len(shape) or len(set(axes)) != len(axes) or "sample" in axes:
            raise StoreError(
                f"axes {axes} do not name a row of shape {shape}; give one distinct name per axis, without 'sample'"
            )
        object.__setattr__(self, "row_shape", shape)
        object.__setattr__(self, "dtype", dtype_name(dtype))
        object.__setattr__(self, "axes", axes)

    @classmethod
    def like(cls, batch: Tensor | np.ndarray, axes: tuple[str, ...] | None = None) -> SiteSpec:
        """The spec that fits a batch of shape ``(n, *row_shape)``."""
        return cls(tuple(batch.shape[1:]), batch.dtype, axes)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype][0]

    @property
    def numpy_dtype(self) -> np.dtype:
        """Type of the same width in numpy; ``uint16`` stands in for bfloat16's bits."""
        return np.dtype(_DTYPES[self.dtype][1])

    @property
    def code(self) -> str:
        """The type's name in a safetensors header."""
        return _DTYPES[self.dtype][2]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.numpy_dtype.itemsize

    def to_json(self, folder: str) -> dict[str, Any]:
        return {
            "folder": folder,
            "row_shape": list(self.row_shape),
            "dtype": self.dtype,
            "axes": list(self.axes or ()),
        }


def checked_sites(sites: Mapping[str, SiteSpec]) -> dict[str, SiteSpec]:
    """The sites, the reserved ones (``labels``, ``mask``) with their axes; StoreError if none or of a wrong type."""
    if not sites:
        raise StoreError("a store needs at least one site; none was given")
    for name, spec in sites.items():
        if not isinstance(name, str) or not name:
            raise StoreError(f"a site's name must be a non-empty string, not {name!r}")
        if not isinstance(spec, SiteSpec):
            raise StoreError(f"site '{name}' needs a SiteSpec, not {type(spec).__name__}")
    for name, dtype in (("labels", "int64"), ("mask", "bool")):
        if name in sites and sites[name].dtype != dtype:
            raise StoreError(f"the reserved site '{name}' holds {dtype}, not {sites[name].dtype}; convert or rename it")
    # what belongs to samples has no units: a vector of it runs over positions
    return {
        name: SiteSpec(spec.row_shape, spec.dtype, ("position",))
        if name in ("labels", "mask") and spec.axes == ("unit",)
        else spec
        for name, spec in sites.items()
    }


def folder_name(position: int, site: str) -> str:
    """A folder name any file system takes; the leading number keeps two sites apart that look alike once cleaned."""
    return f"{position:02d}-{re.sub(r'[^A-Za-z0-9._-]', '_', site)[:_FOLDER_CHARACTERS]}"


def default_rows_per_shard(sites: Mapping[str, SiteSpec]) -> int:
    """The largest power of two for which the widest site's shard stays within 64 MiB, at least 1."""
    widest = max(spec.row_bytes for spec in sites.values())
    return 1 << max(0, (_SHARD_BYTES // widest).bit_length() - 1)


def payload(site: str, spec: SiteSpec, batch: Any) -> tuple[int, np.ndarray]:
    """Number of rows and the batch's bytes as a flat uint8 array, without a copy where the batch is contiguous.

    Raises StoreError where the batch is not ``(n, *row_shape)`` of the site's type.
    """
    array: Any = batch if isinstance(batch, Tensor) else np.asarray(batch)
    given = str(array.dtype).removeprefix("torch.") if isinstance(array, Tensor) else array.dtype.name
    if given != spec.dtype:
        raise StoreError(
            f"site '{site}' stores {spec.dtype} but was given {given}; convert the batch or open a new store"
        )
    if tuple(array.shape[1:]) != spec.row_shape or array.ndim == 0:
        expected = ", ".join(["n", *map(str, spec.row_shape)])
        raise StoreError(
            f"site '{site}' was given a batch of shape {tuple(array.shape)} but its rows need ({expected}); "
            f"all batches of a recording must have the same row shape"
        )
    if isinstance(array, Tensor):
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        # stores are little-endian on every machine, as safetensors demands
        flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return int(array.shape[0]), flat
