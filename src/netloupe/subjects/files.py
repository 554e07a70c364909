"""Data files as arrays, images and lines; each refusal is one sentence."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netloupe.core.errors import MissingExtraError, SubjectError

BUILT_IN = ("digits", "fashion-mnist", "stdlib-text", "stdlib-bytes")
FORMS = (
    "digits, fashion-mnist[=FOLDER], stdlib-text, stdlib-bytes, a .npz, .npy, .csv or .txt file, a folder with one subfolder of images "
    "a class, or package.module:name"
)
INPUT_KEYS = ("inputs", "x", "X", "features", "images", "data", "input_ids", "x_test", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "Y", "targets", "target", "y_test", "arr_1")
LABEL_COLUMNS = ("label", "labels", "class", "target", "y")
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def read_npz(path: Path) -> tuple[np.ndarray, Tensor | None]:
    """Inputs and labels of an ``.npz`` file, by their usual names, or its only array."""
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = {key: opened[key] for key in opened.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise SubjectError(f"'{path}' is not a readable .npz file: {error}") from error
    inputs = next((key for key in INPUT_KEYS if key in arrays), None)
    labels = next((key for key in LABEL_KEYS if key in arrays), None)
    rest = [key for key in arrays if key != labels]
    inputs = inputs or (rest[0] if len(rest) == 1 else None)
    if inputs is None:
        raise SubjectError(
            f"'{path}' holds the arrays {sorted(arrays)}; name the inputs 'inputs' and the labels 'labels'"
        )
    return arrays[inputs], None if labels is None else _class_numbers(arrays[labels], path)[0]


def read_array(path: Path) -> np.ndarray:
    """The array of an ``.npy`` file, mapped, not read."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SubjectError(f"'{path}' is not a readable .npy file: {error}") from error
    if found.ndim == 0 or found.dtype.kind not in "fiub":
        raise SubjectError(
            f"'{path}' holds an array of shape {found.shape} and type {found.dtype}; numbers (sample, ...) are expected"
        )
    return found


def read_csv(path: Path) -> tuple[np.ndarray, Tensor | None, tuple[str, ...] | None]:
    """Numbers and labels of a CSV file with a header; the label column is called ``label``, ``class``, ``target`` or ``y``."""
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            rows = [row for row in csv.reader(opened) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SubjectError(f"'{path}' is not a readable CSV file: {error}") from error
    if len(rows) < 2:
        raise SubjectError(f"'{path}' has {len(rows)} lines; a header and at least one sample are needed")
    header, body = [name.strip() for name in rows[0]], rows[1:]
    uneven = next((number for number, row in enumerate(body, 2) if len(row) != len(header)), None)
    if uneven is not None:
        raise SubjectError(f"line {uneven} of '{path}' has another number of columns than the header's {len(header)}")
    column = next((index for index, name in enumerate(header) if name.lower() in LABEL_COLUMNS), None)
    labels, names = (None, None) if column is None else _class_numbers(np.array([row[column] for row in body]), path)
    kept = [index for index in range(len(header)) if index != column]
    try:
        values = np.array([[float(row[index]) for index in kept] for row in body], dtype=np.float32)
    except ValueError as error:
        raise SubjectError(
            f"'{path}' has a cell that is no number ({error}); only a label column (named {', '.join(LABEL_COLUMNS)}) may hold words"
        ) from error
    return values, labels, names


def read_text(path: Path) -> list[str]:
    """The non-empty lines of a text file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SubjectError(f"'{path}' is not a readable UTF-8 text file: {error}") from error
    return [line for line in lines if line]


def _class_numbers(values: np.ndarray, path: Path) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as int64: whole numbers stay, words are numbered in alphabetical order."""
    values = (
        np.asarray(values).reshape(len(values), -1)[:, 0]
        if values.ndim > 1 and values[0].size == 1
        else np.asarray(values)
    )
    if values.ndim != 1:
        raise SubjectError(f"the labels in '{path}' have shape {values.shape}, expected one for each sample")
    try:
        numbers = values.astype(np.float64)
        if np.array_equal(numbers, np.round(numbers)):
            return torch.from_numpy(numbers.astype(np.int64)), None
    except ValueError:
        pass
    if values.dtype.kind == "f":
        raise SubjectError(f"the labels in '{path}' are not whole numbers; classes are expected")
    names, numbers = np.unique(values.astype(str), return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), tuple(str(name) for name in names)


class ImageFolder:
    """A folder with one subfolder of images a class (or images only), read as they are needed.

    Images become float32 ``(channel, height, width)`` in [0, 1]; all must have one size.
    """

    def __init__(self, folder: Path, channels: int, files: list[tuple[Path, int]] | None = None) -> None:
        self.folder, self.channels = folder, channels
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        self.class_names: tuple[str, ...] = tuple(classes)
        self.files = files if files is not None else self._find(classes)
        if not self.files:
            raise SubjectError(f"the folder '{folder}' holds no images ({', '.join(sorted(IMAGE_ENDINGS))})")
        self.labels = torch.tensor([label for _, label in self.files]) if classes else None
        self._shape: tuple[int, ...] | None = None

    def _find(self, classes: list[str]) -> list[tuple[Path, int]]:
        places = [(self.folder / name, label) for label, name in enumerate(classes)] or [(self.folder, 0)]
        return [
            (path, label)
            for place, label in places
            for path in sorted(place.rglob("*"))
            if path.suffix.lower() in IMAGE_ENDINGS
        ]

    def __len__(self) -> int:
        return len(self.files)

    def first(self, n_samples: int) -> ImageFolder:
        """The first samples of every class in turn, so that a small part still has all classes."""
        by_class: dict[int, list[tuple[Path, int]]] = {}
        for entry in self.files:
            by_class.setdefault(entry[1], []).append(entry)
        turns = max(map(len, by_class.values()))
        ordered = [entries[turn] for turn in range(turns) for entries in by_class.values() if turn < len(entries)]
        return ImageFolder(self.folder, self.channels, ordered[:n_samples])

    def image(self, index: int) -> Tensor:
        """One image as ``(channel, height, width)`` in [0, 1]."""
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError as error:
            raise MissingExtraError("pillow", "images", "reading a folder of images") from error
        path = self.files[index][0]
        try:
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("L" if self.channels == 1 else "RGB"), dtype=np.float32) / 255
        except (OSError, UnidentifiedImageError) as error:
            raise SubjectError(f"'{path}' is not a readable image: {error}") from error
        tensor = torch.from_numpy(pixels)
        tensor = tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
        self._shape = self._shape or tuple(tensor.shape)
        if tuple(tensor.shape) != self._shape:
            raise SubjectError(
                f"'{path}' has size {tuple(tensor.shape[1:])}, the images before it {self._shape[1:]}; bring all to one size first"
            )
        return tensor

    def batches(self, batch_size: int) -> Any:
        """Re-iterable ``(images, labels)`` batches."""
        return _ImageBatches(self, batch_size)


class _ImageBatches:
    def __init__(self, folder: ImageFolder, batch_size: int) -> None:
        self.folder, self.batch_size = folder, batch_size

    def __len__(self) -> int:
        return -(-len(self.folder) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.folder), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(self.folder)))
            images = torch.stack([self.folder.image(row) for row in rows])
            yield images if self.folder.labels is None else (images, self.folder.labels[start : rows.stop])
