"""Tensors with a few words about them in one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from netloupe.core.errors import StoreError


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None, what: str = "tensors"
) -> Path:
    """Writes beside the place and renames. Raises StoreError, which says ``what`` could not be written; nothing is left then."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial{os.getpid()}")
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(kept, str(partial), metadata=dict(metadata) if metadata else None)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StoreError(f"the {what} could not be written to '{target}': {reason}") from error
    return target


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file. Raises StoreError for what is no safetensors file."""
    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise StoreError(f"'{path}' cannot be read as safetensors ({str(error).splitlines()[0]})") from error
