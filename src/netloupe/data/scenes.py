"""Small scenes of coloured, textured shapes with exact masks: every region's true description is known.

Planted after the study of Hernandez et al., arXiv 2201.11114, where people describe image regions: here a program does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from netloupe.core.errors import InputError

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
TEXTURES = ("plain", "striped", "dotted")
LETTERS = ("a", "b", "c", "d")
WORDS = (*COLOURS, *TEXTURES, *SHAPES, "letter", "background")
"""what a region can show: colour, texture and shape of an object, a letter, or none of these"""

SIDE = 32
_CELL = 16  # objects lie in the quarters of the image
_CORNER = 9  # the square at the bottom right that a letter is written in
_RGB = np.array(
    [(0.9, 0.1, 0.1), (0.1, 0.75, 0.1), (0.15, 0.2, 0.95), (0.95, 0.9, 0.1), (0.65, 0.1, 0.75), (1.0, 0.55, 0.05)]
)
_GLYPHS = {
    "a": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "b": ("11110", "10001", "10001", "11110", "10001", "10001", "11110"),
    "c": ("01111", "10000", "10000", "10000", "10000", "10000", "01111"),
    "d": ("11100", "10010", "10001", "10001", "10001", "10010", "11100"),
}


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images float32 ``(scene, 3, 32, 32)`` in [0, 1] with what is where.

    ``attributes`` int64 ``(scene, object, 3)``: numbers of colour, texture and shape, -1 where there is no object. ``masks`` bool
    ``(scene, object, 32, 32)``. ``letters`` int64 ``(scene,)``: number of the letter in the corner, -1 without one; ``letter_masks``
    bool ``(scene, 32, 32)``: the square that it is written in.
    """

    images: Float[Tensor, "scene 3 height width"]
    masks: Bool[Tensor, "scene object height width"]
    attributes: Int[Tensor, "scene object 3"]
    letters: Int[Tensor, " scene"]
    letter_masks: Bool[Tensor, "scene height width"]

    def __len__(self) -> int:
        return len(self.images)

    def word_masks(self) -> Bool[Tensor, "scene word height width"]:
        """Where each of :data:`WORDS` is true, pixel by pixel."""
        known = torch.zeros(len(self), len(WORDS), SIDE, SIDE, dtype=torch.bool)
        for axis, start in enumerate((0, len(COLOURS), len(COLOURS) + len(TEXTURES))):
            for place in range(self.masks.shape[1]):
                value, rows = self.attributes[:, place, axis], torch.arange(len(self))
                here = value >= 0
                known[rows[here], start + value[here]] |= self.masks[here, place]
        known[:, WORDS.index("letter")] = self.letter_masks
        known[:, WORDS.index("background")] = ~(self.masks.any(1) | self.letter_masks)
        return known

    def present(self) -> Bool[Tensor, "scene word"]:
        """Which words are true of some object or corner of a scene; all but ``background``."""
        found = torch.zeros(len(self), len(WORDS) - 1, dtype=torch.bool)
        for axis, start in enumerate((0, len(COLOURS), len(COLOURS) + len(TEXTURES))):
            for place in range(self.attributes.shape[1]):
                value = self.attributes[:, place, axis]
                here = torch.nonzero(value >= 0)[:, 0]
                found[here, start + value[here]] = True
        found[:, WORDS.index("letter")] = self.letters >= 0
        return found

    def blurred(self) -> Scenes:
        """The same scenes with letters blurred beyond reading (a mean over 9 x 9 pixels inside the letter's square)."""
        smooth = avg_pool2d(pad(self.images, (4, 4, 4, 4), mode="replicate"), 9, 1)
        images = torch.where(self.letter_masks[:, None], smooth, self.images)
        return Scenes(images, self.masks, self.attributes, self.letters, self.letter_masks)

    def with_letters(self, letters: Int[Tensor, " scene"] | Sequence[int], random_state: int = 0) -> Scenes:
        """The same scenes, drawn without letters, with these written into their corners (-1: none).

        Raises InputError where the scenes have letters already, or for numbers that are no letter's.
        """
        wanted = np.asarray(letters, dtype=np.int64)
        if wanted.shape != (len(self),) or wanted.min(initial=0) < -1 or wanted.max(initial=0) >= len(LETTERS):
            raise InputError(
                f"letters have shape {wanted.shape}, expected one of -1 to {len(LETTERS) - 1} for each scene"
            )
        if bool((self.letters >= 0).any()):
            raise InputError("the scenes have letters already; draw scenes with letter_share=0 first")
        rng = np.random.default_rng(random_state)
        images, squares = self.images.numpy().copy(), np.zeros((len(self), SIDE, SIDE), dtype=bool)
        for row in np.flatnonzero(wanted >= 0):
            _write(images[row], squares[row], LETTERS[wanted[row]], rng)
        return Scenes(
            torch.from_numpy(images), self.masks, self.attributes, torch.from_numpy(wanted), torch.from_numpy(squares)
        )


def scenes(
    n: int,
    *,
    objects: tuple[int, int] = (1, 3),
    letter_share: float = 0.3,
    noise: float = 0.04,
    random_state: int = 0,
) -> Scenes:
    """Draws ``n`` scenes.

    Objects lie in different quarters; the quarter at the bottom right, whose corner holds the letter, has none. Colour, texture and shape
    are independent and uniform, position and size vary, the background is grey of random brightness with a little noise.

    Args:
        objects: fewest and most objects in a scene (0 to 3). letter_share: share of scenes with a random letter.
        noise: standard deviation of the pixel noise. Raises InputError for numbers out of range.
    """
    low, high = objects
    if n < 1 or not 0 <= low <= high <= 3 or not 0 <= letter_share <= 1 or noise < 0:
        raise InputError(
            f"n={n}, objects={objects}, letter_share={letter_share}, noise={noise}; at least one scene, 0 to 3 objects, a share and "
            "a noise of at least 0 are needed"
        )  # fmt: skip
    rng = np.random.default_rng(random_state)
    images = np.broadcast_to(rng.uniform(0.35, 0.65, (n, 1, 1, 1)), (n, 3, SIDE, SIDE)).copy()
    masks, attributes = np.zeros((n, 3, SIDE, SIDE), dtype=bool), np.full((n, 3, 3), -1)
    for row in range(n):
        quarters = rng.permutation(3)[: rng.integers(low, high + 1)]
        for place, quarter in enumerate(quarters):
            colour, texture, shape = (int(rng.integers(len(kind))) for kind in (COLOURS, TEXTURES, SHAPES))
            attributes[row, place] = colour, texture, shape
            _draw(images[row], masks[row, place], divmod(int(quarter), 2), _RGB[colour], texture, SHAPES[shape], rng)
    letters, squares = np.full(n, -1), np.zeros((n, SIDE, SIDE), dtype=bool)
    for row in np.flatnonzero(rng.random(n) < letter_share):
        letters[row] = rng.integers(len(LETTERS))
        _write(images[row], squares[row], LETTERS[letters[row]], rng)
    images = np.clip(images + noise * rng.standard_normal(images.shape), 0, 1).astype(np.float32)
    return Scenes(*(torch.from_numpy(part) for part in (images, masks, attributes, letters, squares)))


def _draw(
    image: np.ndarray, mask: np.ndarray, cell: tuple[int, int], colour: np.ndarray, texture: int, shape: str,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    radius = rng.uniform(4.5, 6.5)
    y0, x0 = (_CELL * part + rng.uniform(radius + 0.5, _CELL - radius - 0.5) for part in cell)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    dy, dx = y - y0, x - x0
    mask |= {
        "circle": dy**2 + dx**2 <= radius**2,
        "square": np.maximum(abs(dy), abs(dx)) <= 0.85 * radius,
        "triangle": (abs(dx) <= (dy + radius) / 2) & (dy <= 0.9 * radius),
        "cross": (np.minimum(abs(dy), abs(dx)) <= 0.35 * radius) & (np.maximum(abs(dy), abs(dx)) <= radius),
    }[shape]
    phase = int(rng.integers(4))
    dark = {
        "plain": np.zeros_like(mask),
        "striped": (np.arange(SIDE)[:, None] + phase) % 4 >= 2,
        "dotted": ((np.arange(SIDE)[:, None] + phase) % 3 == 0) & ((np.arange(SIDE)[None] + phase) % 3 == 0),
    }[TEXTURES[texture]]
    shade = np.where(np.broadcast_to(dark, mask.shape), 0.3, 1.0)
    image[:, mask] = colour[:, None] * shade[mask]


def _write(image: np.ndarray, square: np.ndarray, letter: str, rng: np.random.Generator) -> None:
    top, left = SIDE - _CORNER, SIDE - _CORNER
    y, x = (int(rng.integers(0, 2)) for _ in range(2))
    glyph = np.array([[int(one) for one in line] for line in _GLYPHS[letter]], dtype=bool)
    square[top:, left:] = True
    image[:, top:, left:] = 0.95
    view = image[:, top + y : top + y + 7, left + 1 + x : left + 6 + x]
    view[:, glyph] = 0.05
