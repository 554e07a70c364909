"""MILANNOTATIONS: people's descriptions of image regions that drive units of seven vision networks, as they lie on disk.

Source: Hernandez et al., arXiv 2201.11114; nothing is downloaded. A folder holds ``annotations.csv`` and, for every layer, a folder with
``images.npy`` and ``masks.npy``, bytes ``(unit, exemplar, channel, height, width)``, and ``units.npy`` where not all units are there.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from netloupe.core.errors import SubjectError


@dataclass(frozen=True, eq=False)
class AnnotatedLayer:
    """One layer: its annotated ``units``, their images and masks (mapped, not read), and each unit's ``captions``."""

    layer: str
    units: list[int]
    images: UInt8[np.ndarray, "unit exemplar 3 height width"]
    masks: UInt8[np.ndarray, "unit exemplar 1 height width"]
    captions: list[list[str]]


def milannotations(
    folder: str | Path, column: str = "summary", n_captions: int | None = None
) -> Iterator[AnnotatedLayer]:
    """The layers of one network's folder, in the order of their names.

    Args:
        column: of the table that holds the description. n_captions: exactly so many a unit; units with fewer are left out.

    Raises SubjectError for a missing folder, file or column, a table without rows, and images that do not match masks.
    """
    root = Path(folder)
    known = _annotations(root / "annotations.csv", column)
    for path in sorted(one for one in root.iterdir() if one.is_dir()):
        images, masks = (_mapped(path / f"{name}.npy") for name in ("images", "masks"))
        if (
            images.ndim != 5
            or masks.ndim != 5
            or images.shape[:2] != masks.shape[:2]
            or images.shape[3:] != masks.shape[3:]
        ):
            raise SubjectError(
                f"images {images.shape} and masks {masks.shape} of '{path}' do not match as (unit, exemplar, channel, h, w)"
            )
        numbers = np.load(path / "units.npy") if (path / "units.npy").is_file() else np.arange(len(images))
        rows = [
            (row, int(unit), known[path.name, int(unit)])
            for row, unit in enumerate(numbers)
            if (path.name, int(unit)) in known
        ]
        rows = [one for one in rows if n_captions is None or len(one[2]) >= n_captions]
        if rows:
            chosen = [row for row, _, _ in rows]
            yield AnnotatedLayer(
                path.name,
                [unit for _, unit, _ in rows],
                images[chosen],
                masks[chosen],
                [some[:n_captions] for _, _, some in rows],
            )


def _annotations(path: Path, column: str) -> dict[tuple[str, int], list[str]]:
    if not path.is_file():
        raise SubjectError(f"there is no file '{path}'; give the folder of one network's annotations")
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        missing = {"layer", "unit", column} - set(table.fieldnames or ())
        if missing:
            raise SubjectError(
                f"'{path}' has no column {', '.join(sorted(missing))}; it has {', '.join(table.fieldnames or ())}"
            )
        for row in table:
            if not row["unit"].strip().isdigit():
                raise SubjectError(f"'{path}' names unit '{row['unit']}', expected a whole number")
            if row[column].strip():
                found[row["layer"], int(row["unit"])].append(row[column].strip())
    if not found:
        raise SubjectError(f"'{path}' holds no description")
    return dict(found)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise SubjectError(f"'{path}' is not a readable array: {str(error).splitlines()[0]}") from error
