"""The twelve-bit task of the information-bottleneck debate: every sign pattern, and a balanced binary rule.

Source of the setting: Shwartz-Ziv and Tishby, arXiv 1703.00810, whose own rule is a data file that is not part of this
library; both rules here are drawn from a seed. Used by arXiv 1902.09037.
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError

N_BITS = 12


def ib_task(
    kind: Literal["rotation", "quadratic"] = "rotation", seed: int = 0
) -> tuple[Float[Tensor, "4096 12"], Int[Tensor, " 4096"]]:
    """All 4,096 patterns of twelve signs, and a label for each.

    ``rotation``: the signs sit on the twelve corners of an icosahedron, and the rule does not change when the solid is
    rotated: a random weight for the sum of all signs, for agreement along edges, across next-nearest and opposite
    corners, and for the product of signs around each face; cut where the classes are most nearly equal, which whole
    groups of rotated patterns leave uneven by a few percent. ``quadratic``: a random quadratic form of the signs, cut at
    its median: 2,048 patterns a class, and a pattern and its opposite are always of one class.

    Returns:
        patterns float32 ``(4096, 12)`` of -1 and 1, in counting order with the first sign slowest, and int64 labels.
    """
    if kind not in ("rotation", "quadratic"):
        raise InputError(f"kind is '{kind}', expected rotation or quadratic")
    codes = np.arange(2**N_BITS)[:, None] >> np.arange(N_BITS - 1, -1, -1) & 1
    signs = 2.0 * codes - 1
    draw = np.random.default_rng(seed)
    if kind == "quadratic":
        score = np.einsum("pi,ij,pj->p", signs, np.triu(draw.standard_normal((N_BITS, N_BITS)), 1), signs)
        labels = score > np.median(score)
    else:
        score = np.round(_invariants(signs) @ draw.standard_normal(5), 9)
        values = np.unique(score)
        cut = values[np.abs([(score >= value).mean() - 0.5 for value in values]).argmin()]
        labels = score >= cut
    return torch.tensor(signs, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def icosahedron() -> Float[np.ndarray, "12 3"]:
    """The twelve corners, at distance 1 from the centre."""
    golden = (1 + np.sqrt(5)) / 2
    corners = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    rotated = [np.roll(corner, shift) for shift in range(3) for corner in corners]
    return np.array(rotated) / np.sqrt(1 + golden**2)


def _invariants(signs: Float[np.ndarray, "pattern 12"]) -> Float[np.ndarray, "pattern 5"]:
    cosines = np.round(icosahedron() @ icosahedron().T, 6)
    edge, far, opposite = (np.isclose(cosines, value, atol=1e-5) for value in (1 / np.sqrt(5), -1 / np.sqrt(5), -1))
    pairs = [np.einsum("pi,ij,pj->p", signs, matrix.astype(float), signs) / 2 for matrix in (edge, far, opposite)]
    faces = [c for c in combinations(range(12), 3) if all(edge[i, j] for i, j in combinations(c, 2))]
    around = sum(signs[:, list(face)].prod(1) for face in faces)
    return np.stack([signs.sum(1), *pairs, np.asarray(around)], axis=1)
