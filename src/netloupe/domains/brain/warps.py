"""Affine transforms of maps: what a few numbers say for each kind of motion, and the motion itself.

Source: Jaderberg et al., arXiv 1506.02025 (spatial transformers); the modes are those of arXiv 2410.14031's code.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Mode = Literal[
    "affine", "translation", "rotation", "scale", "shear", "rotation_scale", "translation_scale", "rotation_translation",
    "rotation_translation_scale",
]  # fmt: skip
MODES: tuple[Mode, ...] = get_args(Mode)
_IDENTITY: dict[str, tuple[float, ...]] = {
    "affine": (1, 0, 0, 0, 1, 0), "translation": (0, 0), "rotation": (0,), "scale": (1, 1), "shear": (0, 0),
    "rotation_scale": (0, 1, 1), "translation_scale": (0, 0, 1, 1), "rotation_translation": (0, 0, 0),
    "rotation_translation_scale": (0, 0, 0, 1, 1),
}  # fmt: skip


def identity_outputs(mode: Mode) -> Float[Tensor, " number"]:
    """The numbers that move nothing."""
    return torch.tensor(_IDENTITY[mode], dtype=torch.get_default_dtype())


def n_outputs(mode: Mode) -> int:
    """How many numbers a motion has."""
    return len(_IDENTITY[mode])


def theta_of(
    numbers: Float[Tensor, "sample item number"], mode: Mode, official: bool = False
) -> Float[Tensor, "sample item 2 3"]:
    """Transforms ``[A | t]`` in coordinates from -1 to 1, from places of the result to places of the source.

    The numbers of a mode: angle (radians), translation ``(x, y)``, scale ``(x, y)`` or shear ``(x, y)``, in the order of its name; ``A`` is
    the rotation times the scale. ``official``: six numbers of which the first ones are used, sines without their scale.
    """
    if mode == "affine":
        return numbers.view(*numbers.shape[:-1], 2, 3)
    column = list(numbers.unbind(-1))
    one, zero = torch.ones_like(column[0]), torch.zeros_like(column[0])
    angle = column.pop(0) if mode.startswith("rotation") else None
    move = (column.pop(0), column.pop(0)) if "translation" in mode else (zero, zero)
    stretch = (column.pop(0), column.pop(0)) if "scale" in mode else (one, one)
    if mode == "shear":
        rows = [one, column[0], zero, column[1], one, zero]
    elif angle is None:
        rows = [stretch[0], zero, move[0], zero, stretch[1], move[1]]
    else:
        cosine, sine = angle.cos(), angle.sin()
        tilt = (sine, sine) if official else (sine * stretch[1], sine * stretch[0])
        rows = [cosine * stretch[0], -tilt[0], move[0], tilt[1], cosine * stretch[1], move[1]]
    return torch.stack(rows, -1).view(*numbers.shape[:-1], 2, 3)


def warp(
    maps: Float[Tensor, "sample item height width"], theta: Float[Tensor, "sample item 2 3"]
) -> Float[Tensor, "sample item height width"]:
    """Every map moved by its own transform: bilinear, nothing beyond the edge, ``align_corners=False``."""
    n, items, height, width = maps.shape
    grid = F.affine_grid(theta.reshape(n * items, 2, 3), [n * items, 1, height, width], align_corners=False)
    found = F.grid_sample(maps.reshape(n * items, 1, height, width), grid, align_corners=False)
    return found.view(n, items, height, width)
