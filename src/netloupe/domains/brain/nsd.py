"""Responses to natural scenes as the published encoding models keep them: a pickle-free copy, or arrays in HDF5.

Source: Allen et al. (2022), doi 10.1038/s41593-021-00962-x (the data set); layout as in the code of arXiv 2410.14031.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError, MissingExtraError, StoreError

MISSING_BELOW = -900.0  # the published sentinel is -999; anything below this is no response


@dataclass(frozen=True)
class Responses:
    """``values`` ``(image, voxel)`` with NaN where a subject has not seen an image; ``images`` ``(image,)`` identifiers; ``subject``
    ``(voxel,)``; ``ceiling`` ``(voxel,)`` or None."""

    values: Float[np.ndarray, "image voxel"]
    images: Int[np.ndarray, " image"]
    subject: Int[np.ndarray, " voxel"]
    ceiling: Float[np.ndarray, " voxel"] | None = None

    def take(self, images: Sequence[int]) -> Responses:
        """Some images, in the order given; InputError for one that is not there."""
        place = {int(image): i for i, image in enumerate(self.images)}
        lost = [image for image in images if int(image) not in place]
        if lost:
            raise InputError(f"image {lost[0]} is not among the {len(self.images)} recorded ones")
        rows = [place[int(image)] for image in images]
        return Responses(self.values[rows], self.images[rows], self.subject, self.ceiling)

    def explainable(self, least: float = 0.0) -> Responses:
        """Voxels whose ceiling is above ``least``; those of ceiling 0 have nothing to predict."""
        if self.ceiling is None:
            raise InputError("there are no ceilings here; estimate them with noise_ceiling from repeats first")
        kept = self.ceiling > least
        return Responses(self.values[:, kept], self.images, self.subject[kept], self.ceiling[kept])


def from_mapping(responses: Mapping[int, Mapping[int, Any]], sizes: Mapping[int, int]) -> Responses:
    """From ``image -> subject -> vector``, as the published code keeps it; an absent subject leaves NaN.

    Args:
        sizes: voxels of each subject. Values below -900 (the published sentinel is -999) are missing.

    Raises InputError for a vector of another length or no images.
    """
    if not responses:
        raise InputError("there are no images among the responses")
    subjects = sorted(sizes)
    starts = np.concatenate([[0], np.cumsum([sizes[subject] for subject in subjects])])
    images = np.array(sorted(responses), dtype=np.int64)
    values = np.full((len(images), int(starts[-1])), np.nan)
    for row, image in enumerate(images):
        for subject, vector in responses[int(image)].items():
            if subject not in sizes:
                raise InputError(f"image {image} has responses of subject {subject}; sizes names {subjects}")
            found = np.asarray(vector, dtype=np.float64)
            if found.shape != (sizes[subject],):
                raise InputError(
                    f"image {image} has {found.shape} responses of subject {subject}, expected {sizes[subject]}"
                )
            at = subjects.index(subject)
            values[row, starts[at] : starts[at + 1]] = found
    values[values < MISSING_BELOW] = np.nan
    return Responses(values, images, np.repeat(np.array(subjects), [sizes[subject] for subject in subjects]))


def load_responses(path: str | Path) -> Responses:
    """From an ``.npz`` or ``.h5`` file with ``values`` ``(image, voxel)``, ``images``, ``subject`` and, if known, ``ceiling``.

    Published files are Python pickles, which can run code when they are opened; convert them once with :func:`from_mapping` and
    :func:`save_responses` where you trust them. Raises StoreError for a file that is not such a file, MissingExtraError where h5py is
    needed and absent.
    """
    source = Path(path)
    if source.suffix not in (".npz", ".h5", ".hdf5"):
        raise InputError(f"'{source}' is neither .npz nor .h5; convert it with save_responses")
    try:
        if source.suffix == ".npz":
            with np.load(source, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        else:
            found = _read_h5(source)
    except (OSError, ValueError) as error:
        raise StoreError(f"'{source}' cannot be read as responses: {' '.join(str(error).split())[:200]}") from error
    missing = [name for name in ("values", "images", "subject") if name not in found]
    if missing:
        raise StoreError(f"'{source}' has no '{missing[0]}'; it has {', '.join(sorted(found)) or 'nothing'}")
    values = np.array(found["values"], dtype=np.float64)
    if values.ndim != 2 or found["images"].shape != values.shape[:1] or found["subject"].shape != values.shape[1:]:
        raise StoreError(
            f"'{source}' holds values {values.shape}, images {found['images'].shape} and subject {found['subject'].shape}, which do not fit"
        )
    values[values < MISSING_BELOW] = np.nan
    return Responses(values, found["images"].astype(np.int64), found["subject"].astype(np.int64), found.get("ceiling"))


def save_responses(responses: Responses, path: str | Path) -> Path:
    """Writes an ``.npz`` that :func:`load_responses` reads; StoreError where it cannot be written."""
    target = Path(path)
    arrays = {"values": responses.values, "images": responses.images, "subject": responses.subject}
    if responses.ceiling is not None:
        arrays["ceiling"] = responses.ceiling
    try:
        np.savez_compressed(target, allow_pickle=False, **arrays)
    except OSError as error:
        raise StoreError(f"the responses could not be written to '{target}': {error.strerror or error}") from error
    return target


def _read_h5(source: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "brain", "reading HDF5 responses") from error
    with h5py.File(source, "r") as file:
        return {name: np.asarray(file[name]) for name in ("values", "images", "subject", "ceiling") if name in file}
