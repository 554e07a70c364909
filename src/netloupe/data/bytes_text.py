"""Bytes of text that every Python has, in windows for a small language model."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.stdlib_text import stdlib_docstrings

Split = Literal["train", "validation"]
_EVERY = 10  # each tenth docstring is for validation: no text is in both, and both are of one kind


@cache
def _stream(split: Split, limit: int | None) -> np.ndarray:
    texts = stdlib_docstrings(limit)
    chosen = [text for place, text in enumerate(texts) if (place % _EVERY == _EVERY - 1) == (split == "validation")]
    return np.frombuffer("\n".join(chosen).encode(), dtype=np.uint8)


def stdlib_bytes(split: Split = "train", limit: int | None = None) -> UInt8[Tensor, " byte"]:
    """The docstrings of Python's standard library as one stream of UTF-8 bytes, a line each.

    Every tenth docstring belongs to ``validation``, the others to ``train``: 1.4 and 0.15 million bytes, a few more or
    less with the Python version. ``limit`` reads only so many docstrings (reading all takes seconds, once).
    Raises InputError for another split and a limit too small for both.
    """
    if split not in ("train", "validation"):
        raise InputError(f"split is '{split}', expected train or validation")
    if limit is not None and limit < _EVERY:
        raise InputError(
            f"limit is {limit}, expected at least {_EVERY} docstrings, so that there is one for validation"
        )
    return torch.from_numpy(_stream(split, limit).copy())


def file_bytes(split: Split = "train", path: str | Path | None = None) -> UInt8[Tensor, " byte"]:
    """Any file as a stream of bytes, mapped and not read: its last hundredth is ``validation``, the rest ``train``.

    ``path`` defaults to what ``NETLOUPE_TEXT`` names. Raises SubjectError where there is no such file or it is shorter
    than 100 kB.
    """
    found = path or os.environ.get("NETLOUPE_TEXT")
    if not found or not Path(found).is_file() or Path(found).stat().st_size < 100_000:
        raise SubjectError(
            f"the text file '{found or ''}' does not exist or has fewer than 100,000 bytes; name one by NETLOUPE_TEXT"
        )
    # copy-on-write: torch wants memory that it may write to, the file stays as it is
    mapped = np.memmap(found, dtype=np.uint8, mode="c")
    border = len(mapped) - len(mapped) // 100
    return torch.from_numpy(mapped[:border] if split == "train" else mapped[border:])


def byte_windows(stream: UInt8[Tensor, " byte"], length: int = 64, n_windows: int | None = None) -> Int[Tensor, "w p"]:
    """Consecutive windows of a byte stream, int64 ``(window, length)``; what is left at the end is dropped.

    ``n_windows`` takes that many, evenly spread over the stream. Raises InputError where there are fewer.
    """
    if length < 2 or len(stream) < length:
        raise InputError(f"windows of {length} bytes were asked of {len(stream)}; expected 2 to {len(stream)} bytes")
    whole = stream[: len(stream) // length * length].view(-1, length).long()
    if n_windows is None:
        return whole
    if not 1 <= n_windows <= len(whole):
        raise InputError(f"{n_windows} windows were asked for, expected 1 to {len(whole)} of {length} bytes")
    places = torch.arange(n_windows) * len(whole) // n_windows
    return whole[places]


def byte_batches(
    stream: UInt8[Tensor, " byte"], length: int = 64, batch_size: int = 24
) -> Callable[[int, torch.Generator], Int[Tensor, "window position"]]:
    """Endless random windows for :func:`netloupe.core.training.train`: ``data=byte_batches(stdlib_bytes())``.

    A batch depends on the step's generator alone. Raises InputError for a stream shorter than a window.
    """
    if length < 2 or len(stream) < length or batch_size < 1:
        raise InputError(
            f"batches of {batch_size} windows of {length} bytes were asked of {len(stream)} bytes; expected at least one "
            "window of 2 bytes or more that fits"
        )
    inside = torch.arange(length)

    def draw(step: int, generator: torch.Generator) -> Int[Tensor, "window position"]:
        starts = torch.randint(len(stream) - length + 1, (batch_size, 1), generator=generator)
        return stream[starts + inside].long()

    return draw


def characters(window: Int[Tensor, " byte"]) -> tuple[str, ...]:
    """Each byte as a person reads it: ASCII as it is, the others as hexadecimal numbers."""
    return tuple(
        chr(byte) if 32 <= byte < 127 else "\u23ce" if byte == 10 else f"\\x{byte:02x}" for byte in window.tolist()
    )


def unigram_entropy(stream: UInt8[Tensor, " byte"]) -> float:
    """Nats a byte of a model that knows only how frequent each byte is: what a language model must beat."""
    if len(stream) == 0:
        raise InputError("the stream holds no bytes; at least one is needed")
    share = torch.bincount(stream.long(), minlength=256).double() / len(stream)
    share = share[share > 0]
    return float(-(share * share.log()).sum())
