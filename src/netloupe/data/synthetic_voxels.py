"""Scenes with objects at random places, and voxels whose answers to them are known.

A scene is a map ``(channel, height, width)``, what a network might make of an image. Every object has parts at fixed offsets from its
centre; a part has a vector over channels, drawn anew for each scene around its category's, spread by a Gaussian. Voxels:

- ``fixed`` reads a Gaussian field at one place of the map, wherever objects are;
- ``object`` reads one part of the first object, wherever that is: no fixed mask can follow it;
- ``category`` answers the first object's category alone;
- ``dense`` reads the whole map with weights of full rank over space and channels, which no product of a mask and a vector is.

Setting of arXiv 2410.14031's questions; the generator is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from netloupe.core.errors import InputError

Kind = Literal["fixed", "object", "category", "dense"]
OFFSETS = np.array([[-0.25, -0.25], [-0.25, 0.25], [0.25, -0.25], [0.25, 0.25]])
FOOTPRINT = 0.14  # standard deviation of a part, on a map from -1 to 1
FIELD = 0.2  # that of a fixed voxel's field


@dataclass(frozen=True)
class Scenes:
    """``maps`` ``(sample, channel, height, width)``; ``luminance`` ``(sample, 1, height, width)``: where parts are, not which;
    ``centres`` ``(sample, object, 2)`` as (x, y) from -1 to 1, NaN for objects that a scene lacks; ``parts`` ``(sample, object, part,
    channel)``; ``category`` ``(sample,)`` of the first object."""

    maps: Float32[np.ndarray, "sample channel height width"]
    luminance: Float32[np.ndarray, "sample 1 height width"]
    centres: Float[np.ndarray, "sample object 2"]
    parts: Float[np.ndarray, "sample object part channel"]
    category: Int[np.ndarray, " sample"]

    def __len__(self) -> int:
        return len(self.maps)

    def code(self, size: int = 7) -> Float32[np.ndarray, "sample 1 size size"]:
        """Luminance averaged to ``size`` by ``size``: what is needed to know where an object is."""
        n, _, height, width = self.luminance.shape
        if height % size or width % size:
            raise InputError(f"a map of {height} x {width} cannot be averaged to {size} x {size}; give a divisor")
        return self.luminance.reshape(n, 1, size, height // size, size, width // size).mean((3, 5))


@dataclass(frozen=True)
class Voxels:
    """``signal`` ``(sample, voxel)`` of variance 1, ``responses`` with noise, ``repeats`` ``(voxel, sample, repeat)``, and ``ceiling``
    ``(voxel,)``: the correlation of the signal with the mean over repeats, exactly ``1 / sqrt(1 + noise^2 / repeats)``."""

    kind: Kind
    signal: Float[np.ndarray, "sample voxel"]
    repeats: Float[np.ndarray, "voxel sample repeat"]
    ceiling: Float[np.ndarray, " voxel"]
    part: Int[np.ndarray, " voxel"]

    @property
    def responses(self) -> Float[np.ndarray, "sample voxel"]:
        """The mean over repeats."""
        return self.repeats.mean(2).T


def object_scenes(
    n_samples: int,
    size: int = 14,
    n_channels: int = 6,
    n_objects: int = 1,
    n_categories: int = 8,
    category_strength: float = 0.0,
    reach: float = 0.55,
    seed: int = 0,
) -> Scenes:
    """Scenes of one to ``n_objects`` objects with four parts each, at places uniform in ``[-reach, reach]^2``.

    ``category_strength``: share of a part's variance that its category fixes. Cost O(n objects size^2 channels).
    """
    if (
        n_samples < 1
        or size < 4
        or n_channels < 1
        or n_objects < 1
        or not 0 <= category_strength <= 1
        or not 0 <= reach < 1
    ):
        raise InputError(
            f"{n_samples} scenes of size {size} with {n_channels} channels and up to {n_objects} objects, category strength "
            f"{category_strength} and reach {reach} were asked for; see object_scenes for what is possible"
        )
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(seed + 1_000_003).standard_normal((n_categories, 4, n_channels))
    kinds = rng.integers(0, n_categories, (n_samples, n_objects))
    fresh = rng.standard_normal((n_samples, n_objects, 4, n_channels))
    parts = np.sqrt(category_strength) * prototypes[kinds] + np.sqrt(1 - category_strength) * fresh
    centres = rng.uniform(-reach, reach, (n_samples, n_objects, 2))
    absent = np.arange(n_objects) >= rng.integers(1, n_objects + 1, n_samples)[:, None]
    centres[absent], parts[absent] = np.nan, 0.0
    maps = np.zeros((n_samples, n_channels, size, size), dtype=np.float32)
    luminance = np.zeros((n_samples, 1, size, size), dtype=np.float32)
    for j in range(n_objects):
        present = ~absent[:, j]
        for part, offset in enumerate(OFFSETS):
            spot = gaussian_spots(centres[present, j] + offset, size, FOOTPRINT)
            maps[present] += np.einsum("nc,nhw->nchw", parts[present, j, part], spot).astype(np.float32)
            luminance[present, 0] += spot.astype(np.float32)
    return Scenes(maps, luminance, centres, parts, kinds[:, 0])


def voxel_responses(
    scenes: Scenes, kind: Kind, n_voxels: int = 12, noise: float = 0.5, n_repeats: int = 1, seed: int = 0
) -> Voxels:
    """Answers of ``n_voxels`` voxels of one kind; ``noise`` is the standard deviation of each repeat, the signal's being 1."""
    if n_voxels < 1 or noise < 0 or n_repeats < 1:
        raise InputError(
            f"{n_voxels} voxels, noise {noise} and {n_repeats} repeats were asked for; at least 1, 0 and 1 are needed"
        )
    rng = np.random.default_rng(seed)
    n_channels, size = scenes.maps.shape[1], scenes.maps.shape[2]
    weights, part = rng.standard_normal((n_voxels, n_channels)), np.arange(n_voxels) % 4
    if kind == "fixed":
        fields = gaussian_spots(rng.uniform(-0.5, 0.5, (n_voxels, 2)), size, FIELD)
        signal = np.einsum("nchw,vhw,vc->nv", scenes.maps, fields, weights, optimize=True)
    elif kind == "object":
        signal = np.einsum("nvc,vc->nv", scenes.parts[:, 0][:, part], weights)
    elif kind == "category":
        signal = rng.standard_normal((int(scenes.category.max()) + 1, n_voxels))[scenes.category]
    elif kind == "dense":
        full = rng.standard_normal((n_voxels, n_channels, size, size))
        signal = np.einsum("nchw,vchw->nv", scenes.maps, full, optimize=True)
    else:
        raise InputError(f"kind is '{kind}', expected fixed, object, category or dense")
    signal = standardised(signal)
    repeats = signal.T[..., None] + noise * rng.standard_normal((n_voxels, len(scenes), n_repeats))
    ceiling = np.full(n_voxels, 1 / np.sqrt(1 + noise**2 / n_repeats))
    return Voxels(kind, signal, repeats, ceiling, part)


def gaussian_spots(
    centres: Float[np.ndarray, "item 2"], size: int, width: float
) -> Float[np.ndarray, "item size size"]:
    """``exp(-|place - centre|^2 / (2 width^2))`` at the middles of the pixels of a map from -1 to 1; centres are (x, y)."""
    places = (2 * np.arange(size) + 1) / size - 1
    across, down = (np.exp(-((places - centre[:, None]) ** 2) / (2 * width**2)) for centre in np.asarray(centres).T)
    return down[:, :, None] * across[:, None, :]


def standardised(signal: Float[np.ndarray, "sample voxel"]) -> Float[np.ndarray, "sample voxel"]:
    """Mean 0 and variance 1 over samples; a voxel that does not vary stays at 0."""
    centred = signal - signal.mean(0)
    spread = centred.std(0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
