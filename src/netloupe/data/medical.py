"""Radiology sets as they lie on disk, as images of one size with binary labels; nothing is downloaded.

Used to compare natural and medical images as Konz and Mazurowski, arXiv 2401.08865, do. Reading needs the extra ``medical``
(pydicom, nibabel, pillow), each only for its own kind of file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from netloupe.core.errors import MissingExtraError, SubjectError

Entry = tuple[Path, int, int | None]
"""file, label, and for a volume the slice"""


def read_image(path: str | Path, slice_index: int | None = None) -> Float[np.ndarray, "height width"]:
    """One grey image as float64, in the units of its file: DICOM (with its rescale slope and window direction), NIfTI, or PNG and JPEG.

    ``slice_index`` chooses along the last axis of a volume; the middle one where None. Raises SubjectError for files that cannot be
    read, MissingExtraError where the library for their kind is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise SubjectError(f"there is no file '{path}'")
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            return _slice(_nifti(path), slice_index)
        if name.endswith((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")):
            return _pillow(path)
        return _slice(_dicom(path), slice_index)
    except (MissingExtraError, SubjectError):
        raise
    except Exception as error:  # the libraries raise many kinds
        raise SubjectError(
            f"'{path}' is not a readable image: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


def _slice(volume: np.ndarray, index: int | None) -> np.ndarray:
    if volume.ndim == 2:
        return volume
    if volume.ndim != 3:
        raise SubjectError(f"the file holds an array of shape {volume.shape}, expected an image or a volume")
    chosen = volume.shape[-1] // 2 if index is None else index
    if not 0 <= chosen < volume.shape[-1]:
        raise SubjectError(f"slice {chosen} was asked of a volume with {volume.shape[-1]}")
    return volume[..., chosen]


def _nifti(path: Path) -> np.ndarray:
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("nibabel", "medical", "reading NIfTI volumes") from None
    loaded = nibabel.load(path)  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(loaded.get_fdata(), np.float64)  # pyright: ignore[reportAttributeAccessIssue]


def _dicom(path: Path) -> np.ndarray:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "medical", "reading DICOM files") from None
    held = pydicom.dcmread(path)
    values = np.asarray(held.pixel_array, np.float64)
    values = values * float(getattr(held, "RescaleSlope", 1)) + float(getattr(held, "RescaleIntercept", 0))
    if getattr(held, "PhotometricInterpretation", "") == "MONOCHROME1":  # white is low
        values = values.max() + values.min() - values
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def _pillow(path: Path) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "medical", "reading PNG and JPEG images") from None
    with Image.open(path) as image:
        return np.asarray(image.convert("F"), np.float64)


def prepared(image: Float[np.ndarray, "height width"], size: int = 224) -> Float[Tensor, "1 size size"]:
    """An image brought to 0 to 255 by its own extremes and to ``size`` pixels (bilinear, antialiased), float32."""
    low, high = float(image.min()), float(image.max())
    values = (image - low) * (255 / (high - low) if high > low else 0.0)
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    return interpolate(tensor, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise SubjectError(f"there is no table '{path}', which names this set's images and labels")
    with path.open(newline="", encoding="utf-8-sig") as opened:
        yield from csv.DictReader(opened)


def _chexpert(folder: Path) -> Iterator[Entry]:
    """Pleural effusion, frontal views; blank and uncertain rows are left out."""
    for row in _rows(folder / "train.csv"):
        value = row.get("Pleural Effusion", "")
        if row.get("Frontal/Lateral", "Frontal") == "Frontal" and value in ("0", "0.0", "1", "1.0"):
            parts = Path(row["Path"]).parts
            yield folder / Path(*parts[parts.index("train") :]), int(float(value)), None


def _mura(folder: Path) -> Iterator[Entry]:
    """Abnormal studies have 'positive' in their folder's name."""
    for path in sorted((folder / "train").rglob("*.png")):
        yield path, int("positive" in path.parent.name), None


def _rsna_hemorrhage(folder: Path) -> Iterator[Entry]:
    """Any haemorrhage on a slice of a head CT."""
    for row in _rows(folder / "stage_2_train.csv"):
        name, _, kind = row["ID"].rpartition("_")
        if kind == "any":
            yield folder / "stage_2_train" / f"{name}.dcm", int(row["Label"]), None


def _brats(folder: Path) -> Iterator[Entry]:
    """FLAIR slices through the middle half of each volume: with tumour, or without any in the slice."""
    for path in sorted(folder.rglob("*_flair.nii.gz")):
        marked = _nifti(path.with_name(path.name.replace("_flair", "_seg"))) > 0
        present = np.asarray(marked.any((0, 1)))
        for index in range(len(present) // 4, 3 * len(present) // 4, 10):
            yield path, int(present[index]), index


def _listed(folder: Path) -> Iterator[Entry]:
    """A table ``labels.csv`` with the columns ``path``, ``label`` (0 or 1) and, for volumes, ``slice``."""
    for row in _rows(folder / "labels.csv"):
        yield folder / row["path"], int(row["label"]), int(row["slice"]) if row.get("slice") else None


SETS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "chexpert": _chexpert, "mura": _mura, "rsna-ich": _rsna_hemorrhage, "brats": _brats,
    "oai": _listed, "dbc": _listed, "prostate": _listed, "listed": _listed,
}  # fmt: skip
"""how each set's files and labels are found; those whose labels come as spreadsheets need a ``labels.csv`` of one's own"""


def medical_images(
    name: str, folder: str | Path, n: int | None = None, size: int = 224, seed: int = 0, balanced: bool = True
) -> tuple[Float[Tensor, "sample 1 size size"], Int[Tensor, " sample"]]:
    """Images 0 to 255, ``(sample, 1, size, size)``, and binary labels of a radiology set that lies in ``folder``.

    Args:
        name: ``chexpert`` (pleural effusion), ``mura`` (abnormal), ``rsna-ich`` (haemorrhage), ``brats`` (tumour in a FLAIR slice), all
            in their published layout; ``oai``, ``dbc``, ``prostate`` or ``listed`` with a ``labels.csv`` of columns
            ``path, label[, slice]``.
        n: drawn at random; None takes all. balanced: equally many of both labels. size: pixels a side.

    Cost: reads n files; n size^2 4 bytes. Raises SubjectError for an unknown set, missing files or a label without images,
    MissingExtraError where the library for the files is not installed.
    """
    if name not in SETS:
        raise SubjectError(f"there is no medical set '{name}'; there are {', '.join(SETS)}")
    entries = list(SETS[name](Path(folder)))
    chosen = _chosen(entries, n, balanced, seed)
    if not chosen:
        raise SubjectError(f"'{folder}' holds no labelled images of '{name}' in the layout that is expected")
    images = torch.stack([prepared(read_image(path, index), size) for path, _, index in chosen])
    return images, torch.tensor([label for _, label, _ in chosen])


def _chosen(entries: Sequence[Entry], n: int | None, balanced: bool, seed: int) -> list[Entry]:
    rng = np.random.default_rng(seed)
    shuffled = [entries[i] for i in rng.permutation(len(entries))]
    if not balanced or not shuffled:
        return shuffled[:n]
    sides = [[entry for entry in shuffled if (entry[1] == 1) == positive] for positive in (False, True)]
    share = min(len(sides[0]), len(sides[1]), len(shuffled) if n is None else n // 2)
    if not share:
        raise SubjectError(
            f"there are {len(sides[0])} images without and {len(sides[1])} with the finding; both are needed"
        )
    return [entry for pair in zip(*(side[:share] for side in sides)) for entry in pair]
