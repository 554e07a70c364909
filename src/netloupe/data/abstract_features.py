"""Inputs that hold several independent yes/no features of known complexity, each computed from a part of its own.

A network that must report all of them has no reason to favour one: whatever it favours is its bias. The setting is that
of Lampinen, Chan and Hermann (arXiv 2405.05847); block sizes and images are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError

Rule = Callable[[np.ndarray], np.ndarray]
"""Bits ``(sample, block)`` of 0 and 1 to the feature's value, bool ``(sample,)``"""


def _parity(order: int) -> Rule:
    return lambda bits: bits[:, :order].sum(1) % 2 == 1


def _majority(bits: np.ndarray) -> np.ndarray:
    return bits.sum(1) * 2 > bits.shape[1]


BINARY: dict[str, Rule] = {
    "bit": lambda bits: bits[:, 0] == 1,
    "majority": _majority,
    "xor": _parity(2),
    "parity3": _parity(3),
    "parity4": _parity(4),
    "xor_of_xors": lambda bits: (bits[:, 0] ^ bits[:, 1]) ^ (bits[:, 2] ^ bits[:, 3]) == 1,
}
"""``majority`` and ``bit`` are linear; the others look the same to every linear reader. An XOR of XORs has the values of
``parity4``: the two names are one feature."""
STRINGS: dict[str, Rule] = {
    "first": BINARY["bit"],
    "majority": _majority,
    "parity": lambda bits: bits.sum(1) % 2 == 1,
    "count": lambda bits: np.abs(2 * bits.sum(1) - bits.shape[1]) <= 1,
}
"""``count``: as many ones as zeros, or one more or fewer"""


def binary_features(
    n: int, kinds: Sequence[str] = ("majority", "xor"), width: int = 32, block: int = 5, seed: int = 0
) -> tuple[Float[np.ndarray, "sample width"], Int[np.ndarray, "sample feature"]]:
    """Vectors of -1 and +1, and the features of ``kinds`` (names of ``BINARY``), each of its own ``block`` entries.

    Every combination of feature values occurs equally often (up to one sample), so features are balanced and independent
    in every set drawn; given its features a vector is uniform. Entries after the blocks are coin tosses. float32
    ``(n, width)`` and int64 ``(n, feature)``. Cost O(n width). Raises InputError where blocks do not fit.
    """
    bits, values = _draw(n, kinds, BINARY, width, block, np.random.default_rng(seed))
    return (2 * bits - 1).astype(np.float32), values


def feature_strings(
    n: int, kinds: Sequence[str] = ("first", "parity"), length: int = 20, block: int = 5, seed: int = 0
) -> tuple[Int[np.ndarray, "sample position"], Int[np.ndarray, "sample feature"]]:
    """Strings of the tokens 0 and 1, and features (names of ``STRINGS``) of disjoint pieces of ``block`` tokens each.

    int64 ``(n, length)`` and ``(n, feature)``; balance, cost and errors as in :func:`binary_features`.
    """
    return _draw(n, kinds, STRINGS, length, block, np.random.default_rng(seed))


def shape_colour_images(
    n: int, size: int = 16, noise: float = 0.1, seed: int = 0
) -> tuple[Float[np.ndarray, "sample 3 height width"], Int[np.ndarray, "sample 2"]]:
    """Images of one figure at a random place, and two features: its shape (disc 0, cross 1), its colour (red 0, blue 1).

    Both figures cover about the same area, so that neither brightness nor colour tells the shape. float32 ``(n, 3, size,
    size)`` with Gaussian noise of standard deviation ``noise``. Combinations are balanced. Raises InputError for a size
    below 12.
    """
    if size < 12:
        raise InputError(f"size is {size}, at least 12 pixels are needed for a figure to be seen")
    rng = np.random.default_rng(seed)
    values = _balanced(n, 2, rng)
    radius = size // 4
    centre = rng.integers(radius + 1, size - radius - 1, (n, 2))
    grid = np.arange(size)
    dy = np.abs(grid[None, :, None] - centre[:, 0, None, None])
    dx = np.abs(grid[None, None, :] - centre[:, 1, None, None])
    disc = dy**2 + dx**2 <= (0.8 * radius) ** 2
    arm = max(1, radius // 3)
    cross = (np.minimum(dy, dx) <= arm - 1) & (np.maximum(dy, dx) <= radius + 1)
    figure = np.where(values[:, :1, None] == 1, cross, disc)
    images = noise * rng.standard_normal((n, 3, size, size))
    images[np.arange(n), 2 * values[:, 1]] += figure
    return images.astype(np.float32), values


def _draw(
    n: int, kinds: Sequence[str], rules: dict[str, Rule], width: int, block: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    unknown = set(kinds) - set(rules)
    if unknown or not kinds:
        raise InputError(f"the features {tuple(kinds)} were asked for, expected some of {', '.join(rules)}")
    needed = max(5 if "majority" in kinds and block % 2 == 0 else 4, 4)
    if block < 4 or (block % 2 == 0 and "majority" in kinds) or block * len(kinds) > width:
        raise InputError(
            f"{len(kinds)} blocks of {block} entries in a width of {width} were asked for; blocks of at least {needed} "
            "entries (an odd number for a majority) that fit in the width are needed"
        )
    values = _balanced(n, len(kinds), rng)
    bits = rng.integers(0, 2, (n, width))
    for index, kind in enumerate(kinds):
        own = bits[:, index * block : (index + 1) * block]
        wrong = np.flatnonzero(rules[kind](own) != values[:, index])
        while len(wrong):  # drawing anew until it fits leaves the block uniform given its feature
            own[wrong] = rng.integers(0, 2, (len(wrong), block))
            wrong = wrong[rules[kind](own[wrong]) != values[wrong, index]]
    return bits, values


def _balanced(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    if n < 2:
        raise InputError(f"{n} samples were asked for, at least 2 are needed")
    cells = np.array(list(product((0, 1), repeat=k)))
    return cells[rng.permutation(np.arange(n) % len(cells))]
