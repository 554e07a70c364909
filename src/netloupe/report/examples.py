"""The samples that excite a unit most, as a page can show them: small pictures, or text with a token marked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.capture import Observation
from netloupe.core.sites import SiteInfo
from netloupe.core.statistics import MomentsResult
from netloupe.subjects import Data, Shown, Subject

UNITS, UNITS_OF_MANY, MANY_SITES = 6, 3, 24  # units shown at a site; fewer where there are more than so many sites
WINDOW, CHARACTERS = 7, 22  # tokens, or single characters, shown on either side of the strong one
PIXELATED = 32  # a picture up to so many pixels wide is kept as it is and enlarged without smoothing
LARGEST = 56  # others are reduced to at most so many
_SPACE_MARKS = ("\u0120", "\u2581")  # how byte-pair and sentence-piece vocabularies write a space before a word


@dataclass(frozen=True)
class Token:
    """A piece of text as it is shown: with a space before it or not, marked or not."""

    text: str
    space: bool
    strong: bool


@dataclass(frozen=True)
class Example:
    """One sample that excites a unit: ``picture`` names a thumbnail, ``box`` marks the position of the maximum on it.

    ``box`` is left, top, width and height in percent; ``place`` says the position in words.
    """

    value: float
    caption: str
    picture: str | None = None
    box: tuple[float, float, float, float] | None = None
    tokens: tuple[Token, ...] = ()
    cut_before: bool = False
    cut_after: bool = False
    place: str = ""


@dataclass(frozen=True)
class UnitExamples:
    """A unit with its strongest samples; ``contrast`` is how many standard deviations its maximum is above its mean."""

    unit: int
    maximum: float
    mean: float
    contrast: float | None
    examples: tuple[Example, ...]


class Shows(Protocol):
    """What examples are made from: an inspection, or one side of a comparison."""

    @property
    def subject(self) -> Subject: ...
    @property
    def data(self) -> Data: ...
    @property
    def sites(self) -> tuple[SiteInfo, ...]: ...
    @property
    def observation(self) -> Observation: ...


class Gallery:
    """Makes examples for all sites of one inspection; each sample is read, and each picture written, only once."""

    def __init__(self, shown: Shows) -> None:
        self.data, self.observation = shown.data, shown.observation
        self.n_units = UNITS if len(shown.sites) <= MANY_SITES else UNITS_OF_MANY
        self.pads_left = getattr(shown.subject.tokenizer, "padding_side", "right") == "left"
        self.pictures: dict[str, tuple[str, bool]] = {}  # name -> data URI, whether to enlarge without smoothing
        self._shown: dict[int, Shown] = {}
        self._ratio: dict[str, float] = {}

    def at(self, info: SiteInfo) -> list[UnitExamples]:
        """The site's most selective units with their strongest samples; empty where nothing ever differs from zero."""
        units, contrast = choose_units(self.observation.result(info.name, "moments"), self.n_units)
        return [self.unit(info, unit, contrast.get(unit)) for unit in units]

    def unit(self, info: SiteInfo, unit: int, contrast: float | None = None, most: int | None = None) -> UnitExamples:
        """One unit with its strongest samples, at most ``most``."""
        moments, top = (self.observation.result(info.name, name) for name in ("moments", "top"))
        places = zip(top.values[unit][:most], top.samples[unit][:most], top.positions[unit][:most], strict=True)
        return UnitExamples(
            unit, float(moments.maximum[unit]), float(moments.mean[unit]), contrast,
            tuple(self.example(info, float(value), int(sample), int(position)) for value, sample, position in places),
        )  # fmt: skip

    def example(self, info: SiteInfo, value: float, sample: int, position: int) -> Example:
        """One sample with the place of an activation marked on it."""
        if sample not in self._shown:
            self._shown[sample] = self.data.show(sample) if self.data.show is not None else Shown()
        shown = self._shown[sample]
        caption = shown.caption or f"sample {sample}"
        place = where(info, position)
        if shown.image is not None:
            return Example(value, caption, self._picture(sample, shown.image), box(info, position), place=place)
        if shown.tokens is not None:
            strong = self._token_at(info, position, len(shown.tokens))
            tokens, before, after = excerpt(shown.tokens, strong)
            return Example(value, caption, tokens=tokens, cut_before=before, cut_after=after, place=place)
        return Example(value, caption, place=place)

    def _picture(self, sample: int, image: np.ndarray) -> str:
        name = f"p{sample}"
        if name not in self.pictures:
            self.pictures[name] = (thumbnail(image), max(image.shape[:2]) <= PIXELATED)
            self._ratio[name] = image.shape[1] / image.shape[0]
        return name

    def _token_at(self, info: SiteInfo, position: int, n_tokens: int) -> int | None:
        """The token at a position of the site; None where positions of the site are not tokens."""
        if info.n_positions == 1 or len(info.position_shape) != 1:
            return None
        at = position - (info.n_positions - n_tokens if self.pads_left else 0)
        return at if 0 <= at < n_tokens else None

    def ratio(self, name: str) -> float:
        """Width over height of a picture."""
        return self._ratio[name]


def choose_units(moments: MomentsResult, wanted: int) -> tuple[list[int], dict[int, float]]:
    """The units whose maximum is furthest above their mean in their own standard deviations, and that distance.

    Where no unit varies (a single row), those with the largest values; units that are always zero are never chosen.
    """
    std = moments.std
    varies = std > 1e-12 * np.maximum(np.abs(moments.maximum), np.abs(moments.minimum))
    with np.errstate(divide="ignore", invalid="ignore"):
        contrast = np.where(varies, (moments.maximum - moments.mean) / std, -np.inf)
    if varies.any():
        chosen = _largest(contrast, wanted)
        return chosen, {unit: float(contrast[unit]) for unit in chosen}
    alive = np.where((moments.maximum != 0) | (moments.minimum != 0), moments.maximum, -np.inf)
    return _largest(alive, wanted), {}


def _largest(values: Float[np.ndarray, " unit"], wanted: int) -> list[int]:
    """Indices of the largest finite values, the largest first; of equal ones the first."""
    order: Int[np.ndarray, " unit"] = np.argsort(-values, kind="stable")[:wanted]
    return [int(index) for index in order if np.isfinite(values[index])]


def where(info: SiteInfo, position: int) -> str:
    """A position in words: ``row 2, column 5`` for a map, ``position 7`` for a sequence."""
    if info.n_positions == 1:
        return ""
    if len(info.position_shape) == 2:
        row, across = np.unravel_index(position, info.position_shape)
        return f"row {row}, column {across}"
    return f"position {position}"


def box(info: SiteInfo, position: int) -> tuple[float, float, float, float] | None:
    """The part of the picture that a position of a map stands for, in percent: left, top, width, height."""
    if len(info.position_shape) != 2 or info.n_positions == 1:
        return None
    high, wide = info.position_shape
    row, across = np.unravel_index(position, info.position_shape)
    return 100 * float(across) / wide, 100 * float(row) / high, 100 / wide, 100 / high


def excerpt(tokens: Sequence[str], strong: int | None) -> tuple[tuple[Token, ...], bool, bool]:
    """Some tokens around the strong one (or the first), and whether text was cut before and after."""
    centre = 0 if strong is None else strong
    characters = all(len(token) == 1 or token.startswith("\\x") for token in tokens)
    window = CHARACTERS if characters else WINDOW
    start = max(0, min(centre - window, len(tokens) - 2 * window - 1))
    stop = min(len(tokens), start + 2 * window + 1)
    marked = any(token.startswith(_SPACE_MARKS) for token in tokens)
    shown = []
    for index in range(start, stop):
        text = tokens[index]
        space = text.startswith(_SPACE_MARKS) if marked else not (characters or text.startswith("##"))
        bare = text.lstrip("".join(_SPACE_MARKS)) if marked else text.removeprefix("##")
        shown.append(Token(bare or text, space, index == strong))
    return tuple(shown), start > 0, stop < len(tokens)


def thumbnail(image: Float[np.ndarray, "height width *channel"]) -> str:
    """A small picture as a data URI: PNG up to 32 pixels, JPEG of at most 56 pixels beyond. Values are in [0, 1]."""
    from PIL import Image

    pixels = (np.clip(np.nan_to_num(image), 0, 1) * 255).round().astype(np.uint8)
    made = Image.fromarray(pixels)
    small = max(made.size) <= PIXELATED
    if not small:
        made.thumbnail((LARGEST, LARGEST))
    written = io.BytesIO()
    made.save(written, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 72}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
