"""A captioner for vision units, trained on planted scenes whose attributes are known: names need no network from elsewhere.

Units of small networks that see the scenes are captioned by what is true of their regions, and a describer (arXiv 2201.11114) learns to
say it. It knows colours, textures, shapes and letters in pictures of 32 x 32, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from netloupe.core.errors import StoreError
from netloupe.core.isolation import pinned_threads
from netloupe.data.scenes import COLOURS, SHAPES, TEXTURES, WORDS, Scenes, scenes
from netloupe.lenses.naming.exemplars import Exemplars
from netloupe.lenses.naming.milan import Description, MilanDescriber
from netloupe.lenses.naming.milan_file import load_describer, save_describer
from netloupe.models.recipes import cache_folder
from netloupe.models.scene_networks import SITES, convolutional, learn_to_see, seen

PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "letter": "letters"}
VERSION = 1  # of the recipe: another one is trained anew
LEVELS = ("relu1", "relu2", "relu3")
"""the backbone's sites"""


@dataclass(frozen=True, eq=False)
class Group:
    """Units: the network (its place among several), site and number of each, its threshold, region features, and what is true of them."""

    units: list[tuple[int, str, int]]
    thresholds: Float[np.ndarray, " unit"]
    regions: Float[Tensor, "unit exemplar feature"]
    truth: Bool[np.ndarray, "unit word"]

    def part(self, rows: np.ndarray) -> Group:
        """Some of the units."""
        return Group(
            [self.units[i] for i in rows], self.thresholds[rows], self.regions[torch.from_numpy(rows)], self.truth[rows]
        )

    def __add__(self, other: Group) -> Group:
        return Group(
            self.units + other.units, np.concatenate([self.thresholds, other.thresholds]), torch.cat([self.regions, other.regions]),
            np.concatenate([self.truth, other.truth]),
        )  # fmt: skip


def gather(
    network: nn.Module, shown: Scenes, backbone: nn.Module, place: int = 0, sites: Sequence[str] = SITES
) -> Group:
    """Exemplars of all living units at ``sites``, with region features and truths."""
    units, thresholds, regions, truths = [], [], [], []
    words = shown.word_masks().numpy()
    for site in sites:
        found = Exemplars.collect(network, site, shown.images, batch_size=256)
        alive = np.flatnonzero(~found.dead)
        units += [(place, site, int(unit)) for unit in alive]
        thresholds.append(found.thresholds[alive])
        regions.append(found.region_features(backbone, shown.images, LEVELS, units=alive.tolist(), batch_size=256))
        truths.append(np.stack([true_words(found.mask(int(unit)), words[found.indices[unit]]) for unit in alive]))
    return Group(units, np.concatenate(thresholds), torch.cat(regions), np.concatenate(truths))


def true_words(
    masks: Bool[np.ndarray, "rank height width"], words: Bool[np.ndarray, "rank word height width"], share: float = 0.6
) -> Bool[np.ndarray, " word"]:
    """Words true of more than ``share`` of the regions.

    A region shows a word if at least half of what it covers of objects and letters carries it, and nothing but background where these
    take less than a fifth of it.
    """
    inside = (words & masks[:, None]).sum((-1, -2)).astype(float)
    area = masks.sum((-1, -2)).clip(min=1)
    things = area - inside[:, WORDS.index("background")]
    shows = inside >= 0.5 * np.maximum(things, 1)[:, None]
    shows &= (things >= 0.2 * area)[:, None]
    shows[:, WORDS.index("background")] = things < 0.2 * area
    return shows.mean(0) > share


def annotate(truth: Bool[np.ndarray, " word"], rng: np.random.Generator) -> list[str]:
    """Three captions: one word of the truth, two at most, all of it with more around it."""
    known = {WORDS[i] for i in np.flatnonzero(truth)}
    if "letter" in known:
        return ["letters", "letters in a corner", "the black letters in a corner of the image"]
    parts = [word for word in (*TEXTURES, *COLOURS, *SHAPES) if word in known]
    if not parts:
        return (
            ["background", "empty background", "the empty background of the image"]
            if "background" in known
            else ["things", "different things", "various different things in the image"]
        )
    few = sorted(rng.permutation(len(parts))[:2])
    return [
        _phrase([parts[int(rng.integers(len(parts)))]]),
        _phrase([parts[i] for i in few]),
        f"the {_phrase(parts)} in the image",
    ]


def _phrase(words: Sequence[str]) -> str:
    named = [PLURAL.get(word, word) for word in words]
    return " ".join(named if words[-1] in SHAPES else [*named, "things"])


@dataclass(frozen=True, eq=False)
class SceneCaptioner:
    """A describer with the network whose features it reads; what :func:`train_scene_captioner` and :func:`scene_captioner` give.

    ``scale`` ``(feature,)``: what region features are divided by.
    """

    describer: MilanDescriber
    backbone: nn.Module
    scale: Float[Tensor, " feature"]

    def regions(
        self, model: nn.Module, site: str, images: Float[Tensor, "sample 3 height width"], units: Sequence[int] | None = None,
        **options: Any,
    ) -> Float[Tensor, "unit exemplar feature"]:  # fmt: skip
        """Features of the regions that drive units at a site; ``options`` of :meth:`Exemplars.collect`."""
        found = Exemplars.collect(model, site, images, **options)
        chosen = list(range(len(found.indices))) if units is None else list(units)
        return found.region_features(self.backbone, images, LEVELS, units=chosen, batch_size=256) / self.scale

    def describe(
        self, model: nn.Module, site: str, images: Float[Tensor, "sample 3 height width"], units: Sequence[int] | None = None,
        lam: float = 0.2, **options: Any,
    ) -> list[Description]:  # fmt: skip
        """A phrase for every unit (or the chosen ones), most informative about its regions. A phrase is no name before it is scored."""
        return self.describer.describe(self.regions(model, site, images, units, **options), lam=lam)

    def save(self, path: str | Path) -> Path:
        """One file with everything."""
        extra = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()} | {
            "scale": self.scale
        }
        return save_describer(self.describer, path, extra)

    @classmethod
    def load(cls, path: str | Path) -> SceneCaptioner:
        """Reads what :meth:`save` wrote. Raises StoreError for another file."""
        describer, extra = load_describer(path)
        weights = {
            name.removeprefix("backbone."): value for name, value in extra.items() if name.startswith("backbone.")
        }
        widths = [len(weights[f"conv{index}.weight"]) for index in (1, 2, 3)]
        backbone = convolutional(widths, len(weights["head.weight"]), 0)
        backbone.load_state_dict(weights)
        return cls(describer, backbone.eval(), extra["scale"])


def train_scene_captioner(
    n_scenes: int = 4000,
    n_shown: int = 1200,
    steps: int = 400,
    widths: Sequence[tuple[int, int, int]] = ((16, 48, 72), (24, 40, 72)),
    epochs: int = 60,
    random_state: int = 0,
) -> SceneCaptioner:
    """Trains networks on planted scenes, captions their units by what is true of the regions, and a describer on these captions.

    Cost: about a minute on one core at the defaults; seconds for a tenth of everything.
    """
    learned = scenes(n_scenes, random_state=100 * random_state + 1)
    shown = scenes(n_shown, random_state=100 * random_state + 2)
    n_seen = seen(shown).shape[1]
    backbone = learn_to_see(convolutional((16, 32, 64), n_seen, random_state + 50), learned, steps, random_state + 50)
    groups = []
    for place, wide in enumerate(widths):
        network = learn_to_see(convolutional(wide, n_seen, random_state + place), learned, steps, random_state + place)
        groups.append(gather(network, shown, backbone, place))
    every = sum(groups[1:], groups[0])
    rng = np.random.default_rng(random_state)
    captions = [annotate(truth, rng) for truth in every.truth]
    scale = every.regions.std((0, 1)).clamp_min(1e-3)
    sizes = {"hidden": 64, "embedding": 32, "learning_rate": 3e-3, "max_epochs": epochs, "patience": 8}
    describer = MilanDescriber(**sizes, language=dict(sizes), random_state=random_state)
    return SceneCaptioner(describer.fit(every.regions / scale, captions), backbone.cpu(), scale.cpu())


def scene_captioner() -> SceneCaptioner:
    """The captioner of the default recipe, trained now or read from the cache (:func:`netloupe.models.recipes.cache_folder`)."""
    path = cache_folder() / "recipes" / f"scene-captioner-v{VERSION}-torch{torch.__version__.split('+')[0]}.safetensors"
    if path.is_file():
        with contextlib.suppress(StoreError, KeyError, RuntimeError):  # a broken cache is made anew
            return SceneCaptioner.load(path)
    with pinned_threads(1):
        made = train_scene_captioner()
    with contextlib.suppress(StoreError):  # without a writable cache it is trained anew each time
        made.save(path)
    return made
