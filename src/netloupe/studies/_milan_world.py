"""Units with known descriptions: exemplars, what is true of their regions, and three annotators who say it in differing detail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.splits import holdout
from netloupe.data.scenes import SIDE, WORDS, Scenes, scenes
from netloupe.lenses.naming.captions import tokens_of
from netloupe.lenses.naming.exemplars import threshold_maps
from netloupe.lenses.naming.milan import Description, MilanDescriber
from netloupe.models.scene_captioner import PLURAL, Group, annotate, gather
from netloupe.models.scene_networks import DEVICE, Mixer, convolutional, learn_to_see, seen

SINGULAR = {many: one for one, many in PLURAL.items()} | {word: word for word in WORDS}


@dataclass(frozen=True)
class Setting:
    """Sizes.

    ``scenes``: for training; ``shown``: for exemplars, the first ``dissected`` of them for intersections over union. ``edited``:
    networks that learn with a letter that gives the class away, ``judged`` scenes to validate and to test them on.
    """

    scenes: int = 6000
    steps: int = 600
    shown: int = 2000
    widths: tuple[tuple[int, int, int], ...] = ((16, 48, 72), (24, 40, 72), (16, 48, 72))
    hidden: int = 64
    epochs: int = 80
    patience: int = 8
    beam: int = 50
    edited: int = 2
    edit_scenes: int = 4000
    edit_steps: int = 500
    judged: int = 500
    dissected: int = 600


def word_overlap(networks: Sequence[nn.Module], group: Group, shown: Scenes) -> Float[np.ndarray, "unit word"]:
    """Intersection over union of each unit's active places with each word's masks, over all scenes: Bau et al., arXiv 1704.05796."""
    words = shown.word_masks().flatten(2).float()
    there = words.sum((0, 2)).double()
    found = np.zeros((len(group.units), len(WORDS)))
    for place, site in dict.fromkeys(unit[:2] for unit in group.units):
        rows = [row for row, unit in enumerate(group.units) if unit[:2] == (place, site)]
        numbers = [group.units[row][2] for row in rows]
        both, active = (
            torch.zeros(len(rows), len(WORDS), dtype=torch.float64),
            torch.zeros(len(rows), dtype=torch.float64),
        )
        for captured in capture(networks[place], shown.images, site, batch_size=100):
            values = captured[site].cpu()[..., numbers]
            side = int(values.shape[1] ** 0.5)
            maps = values.reshape(len(values), side, side, -1).permute(3, 0, 1, 2).numpy()
            on = torch.from_numpy(threshold_maps(maps, group.thresholds[rows], (SIDE, SIDE))).flatten(2).float()
            both += torch.bmm(on.permute(1, 0, 2), words[captured.samples].mT).sum(0)
            active += on.sum((1, 2))
        found[rows] = (both / (active[:, None] + there - both).clamp_min(1)).numpy()
    return found


def words_in(text: str) -> Bool[np.ndarray, " word"]:
    """Which of the scenes' words a description says."""
    said = {SINGULAR.get(token) for token in tokens_of(text)}
    return np.array([word in said for word in WORDS])


def spoken(descriptions: Sequence[Description | str]) -> Bool[np.ndarray, "unit word"]:
    """:func:`words_in` of every description."""
    return np.stack([words_in(one if isinstance(one, str) else one.text) for one in descriptions])


def f1(said: Bool[np.ndarray, "unit word"], truth: Bool[np.ndarray, "unit word"]) -> float:
    """Of all words said and all true ones together, twice the right over their sum."""
    return float(2 * (said & truth).sum() / max(1, said.sum() + truth.sum()))


class World:
    """Networks of one seed, their units, and a describer that learned from three of them.

    ``held_out``: a fifth of these networks' units, unseen; ``fourth``: units of a network of another architecture; ``untrained``: those
    of the fourth before training. ``test``: the first two together. ``shuffled``: a describer that learned from regions of other units.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        train_scenes = scenes(setting.scenes, random_state=100 * seed + 1)
        self.shown = scenes(setting.shown, random_state=100 * seed + 2)
        n_seen = seen(self.shown).shape[1]
        self.backbone = learn_to_see(
            convolutional((16, 32, 64), n_seen, seed + 50), train_scenes, setting.steps, seed + 50
        )
        self.networks = [
            learn_to_see(convolutional(widths, n_seen, seed + i, norm=i == 1), train_scenes, setting.steps, seed + i)
            for i, widths in enumerate(setting.widths)
        ]
        groups = [gather(one, self.shown, self.backbone, place) for place, one in enumerate(self.networks)]
        every = sum(groups[1:], groups[0])
        learn, test = (part.numpy() for part in holdout(len(every.units), 0.2, random_state=seed))
        self.learned, self.held_out = every.part(learn), every.part(test)
        mixer = Mixer(setting.widths[0][2], n_seen, seed + 60).to(DEVICE).eval()
        self.untrained = gather(mixer, self.shown, self.backbone)
        self.networks.append(learn_to_see(mixer, train_scenes, setting.steps, seed + 60))
        self.fourth = gather(mixer, self.shown, self.backbone, len(groups))
        self.test = self.held_out + self.fourth
        rng = np.random.default_rng(seed)
        self.captions = [annotate(truth, rng) for truth in self.learned.truth]
        self.scale = self.learned.regions.std((0, 1)).clamp_min(1e-3)
        self.describer = self._describer(self.learned.regions)

    @cached_property
    def shuffled(self) -> MilanDescriber:
        """Learned from the regions in random order: ``p(d | E) = p(d)``."""
        order = np.random.default_rng(self.seed + 7).permutation(len(self.captions))
        return self._describer(self.learned.regions[torch.from_numpy(order)])

    def describe(self, regions: Tensor, lam: float = 0.2, describer: MilanDescriber | None = None) -> list[Description]:
        """Descriptions by beam search, re-ranked; regions in the describer's scale."""
        return (describer or self.describer).describe(regions / self.scale, lam=lam, beam=self.setting.beam)

    def _describer(self, regions: Tensor) -> MilanDescriber:
        sizes = {
            "hidden": self.setting.hidden,
            "embedding": 32,
            "learning_rate": 3e-3,
            "max_epochs": self.setting.epochs,
            "patience": self.setting.patience,
        }
        made = MilanDescriber(**sizes, language=dict(sizes), random_state=self.seed)
        return made.fit(regions / self.scale, self.captions)
