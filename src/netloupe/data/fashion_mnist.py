"""Fashion-MNIST from its four idx files, wherever they lie; nothing is downloaded."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import SubjectError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def search_folders() -> list[Path]:
    """Where the files are looked for: ``$NETLOUPE_DATA``, the usual folders of other libraries, the working folder."""
    roots = [Path(os.environ["NETLOUPE_DATA"])] if os.environ.get("NETLOUPE_DATA") else []
    roots += [
        Path.cwd() / "data",
        Path.cwd(),
        Path.home() / "data",
        Path.home() / ".cache" / "netloupe",
        Path.home() / ".keras" / "datasets",
    ]
    inside = ["", "fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"]
    return [root / name for root in roots for name in inside]


def fashion_mnist(
    split: str = "train", folder: str | Path | None = None
) -> tuple[Float[Tensor, "sample 1 28 28"], Int[Tensor, " sample"]]:
    """Images in [0, 1] ``(sample, 1, 28, 28)`` and labels 0 to 9 of the ``train`` (60,000) or ``test`` (10,000) split.

    ``folder`` (or one of the usual places) holds the idx files, plain or gzipped. Raises SubjectError where they are
    missing or broken.
    """
    if split not in NAMES:
        raise SubjectError(f"split is '{split}', expected train or test")
    images_name, labels_name = NAMES[split]
    images = _find(images_name, folder)
    labels = _find(labels_name, folder)
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise SubjectError(
            f"'{images}' and '{labels}' do not belong together: shapes {pixels.shape} and {classes.shape}"
        )
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[:, None], torch.from_numpy(classes.astype(np.int64))


def _find(name: str, folder: str | Path | None) -> Path:
    folders = [Path(folder)] if folder is not None else search_folders()
    for place in folders:
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise SubjectError(
        f"Fashion-MNIST's file '{name}' (or .gz) is not in {folders[0]}{' or the usual folders' if folder is None else ''}; "
        "put the four idx files there or set NETLOUPE_DATA to their folder"
    )


def read_idx(path: str | Path) -> np.ndarray:
    """An array from an idx file (magic ``0 0 type rank``, big-endian sizes, raw values), plain or gzipped."""
    types = {
        8: np.uint8,
        9: np.int8,
        11: np.dtype(">i2"),
        12: np.dtype(">i4"),
        13: np.dtype(">f4"),
        14: np.dtype(">f8"),
    }
    try:
        raw = gzip.decompress(Path(path).read_bytes()) if str(path).endswith(".gz") else Path(path).read_bytes()
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        if zero != 0 or kind not in types:
            raise ValueError("wrong magic number")
        return np.frombuffer(raw, types[kind], offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise SubjectError(f"'{path}' is not a readable idx file: {error}") from error
