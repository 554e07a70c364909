"""Samples of known intrinsic dimension in many pixels, with labels of known sharpness.

For the study of Konz and Mazurowski, "The Effect of Intrinsic Dataset Properties on Generalization", arXiv 2401.08865.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError

Shape = Literal["gaussian", "cube", "ball", "torus"]
_WAVES = 32  # sinusoids that bend the manifold


@dataclass(frozen=True, eq=False)
class ManifoldData:
    """``x`` float32 ``(sample, pixel)``, ``y`` int64 0 or 1 ``(sample,)``, and the latent ``z`` float64 ``(sample, d)``."""

    x: Float[np.ndarray, "sample pixel"]
    y: Int[np.ndarray, " sample"]
    z: Float[np.ndarray, "sample latent"]


def manifold_dataset(
    n: int, d: int, ambient: int = 64, sharpness: float = 3.0, seed: int = 0, *, draw: int = 0, bend: float = 0.2
) -> ManifoldData:
    """A smooth random map of ``z``, uniform in ``[-1, 1]^d``, into pixels; labels are the sign of a sinusoid of ``z``.

    ``x = s (A z + bend A' sin(B z + b)) + 1/2`` with orthonormal columns ``A, A'`` of different directions, so that the map is
    one to one and of dimension d, and nearly an isometry up to the factor ``s = sqrt(ambient) / 4`` for a small bend. ``y = 1``
    where ``sin(sharpness w.z + phase) > 0`` for a random unit vector w: its changes along z are ``sharpness`` times as frequent,
    at every d alike, and the more frequent they are the closer differently labelled samples come.

    Args:
        n: samples. d: latent dimension. ambient: pixels, at least ``d + 32`` where bent. sharpness: frequency omega.
        seed: of the map and of the label. draw: of the samples, so that training and test sets share a map.
        bend: how far the manifold leaves its flat part; 0 is a flat one.

    Raises InputError for sizes below 1, too few pixels, or a sharpness or bend that is not a number of at least 0.
    """
    needed = d + (_WAVES if bend else 0)
    if (
        n < 1
        or d < 1
        or ambient < needed
        or not (np.isfinite(sharpness) and sharpness >= 0 and np.isfinite(bend) and bend >= 0)
    ):
        raise InputError(
            f"n is {n}, d {d}, ambient {ambient}, sharpness {sharpness} and bend {bend}; at least one sample and dimension, {needed} "
            "pixels, and numbers that are not negative are needed"
        )
    rng = np.random.default_rng((seed, d))
    frame = np.linalg.qr(rng.standard_normal((ambient, needed)))[0]
    waves, phases = rng.standard_normal((_WAVES, d)), rng.uniform(0, 2 * np.pi, _WAVES)
    direction, phase = rng.standard_normal(d), rng.uniform(0, 2 * np.pi)
    z = np.random.default_rng((seed, d, draw, 1)).uniform(-1, 1, (n, d))
    flat = z @ frame[:, :d].T
    if bend:
        flat = flat + bend * np.sin(z @ waves.T + phases) @ frame[:, d:].T * np.sqrt(2 / _WAVES)
    y = np.sin(sharpness * (z @ (direction / np.linalg.norm(direction))) + phase) > 0
    return ManifoldData((0.5 + np.sqrt(ambient) / 4 * flat).astype(np.float32), y.astype(np.int64), z)


def flat_samples(
    n: int, d: int, ambient: int, shape: Shape = "gaussian", seed: int = 0
) -> Float[np.ndarray, "sample pixel"]:
    """Samples of dimension d turned into ``ambient`` pixels by random orthonormal columns; float64.

    ``gaussian`` standard normal; ``cube`` uniform in ``[-1, 1]^d``; ``ball`` uniform in the unit ball; ``torus`` d angles, each
    as cosine and sine (``2 d`` pixels at least).

    Raises InputError for another shape, sizes below 1, or too few pixels.
    """
    width = 2 * d if shape == "torus" else d
    if shape not in ("gaussian", "cube", "ball", "torus") or min(n, d) < 1 or ambient < width:
        raise InputError(
            f"shape is '{shape}', n {n}, d {d}, ambient {ambient}; a known shape and at least {width} pixels are needed"
        )
    rng = np.random.default_rng((seed, d))
    if shape == "torus":
        angles = rng.uniform(0, 2 * np.pi, (n, d))
        latent = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    elif shape == "cube":
        latent = rng.uniform(-1, 1, (n, d))
    else:
        latent = rng.standard_normal((n, d))
        if shape == "ball":
            latent *= (rng.random(n) ** (1 / d) / np.linalg.norm(latent, axis=1))[:, None]
    return latent @ np.linalg.qr(rng.standard_normal((ambient, width)))[0].T
