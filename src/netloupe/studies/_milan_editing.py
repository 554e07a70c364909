"""The claims of the MILAN study about using descriptions: finding and removing units of a spurious cue, and which units matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import accuracy
from netloupe.data.scenes import LETTERS, SHAPES, Scenes, scenes
from netloupe.lenses.verification.audit import find_units, n_content_words, sort_units
from netloupe.lenses.verification.edit import AblationCurve, DescribedEdit, ablation_curve, edit_by_description
from netloupe.models.scene_captioner import PLURAL, gather
from netloupe.models.scene_networks import convolutional, learn_shapes
from netloupe.studies._milan_claims import TOO_SMALL, untested
from netloupe.studies._milan_world import Setting, World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORD = "letter"
TOLD = 0.7
"""share of the training scenes whose letter gives the shape away; the others have none"""
SHARE_OFF = 0.1


@dataclass(frozen=True, eq=False)
class Described:
    """A network that names shapes, with its living units and their descriptions."""

    network: nn.Module
    units: list[tuple[str, int]]
    texts: list[str]

    def share(self, words: Sequence[str]) -> float:
        """Share of the units whose description holds one of these words."""
        return len(find_units(self.texts, words)) / len(self.units)


class Edited:
    """One seed: networks that learned with letters, with blurred ones and without any, and what removing letter units does.

    ``plain``, ``swapped``: test scenes without letters, and with the letter of another shape.
    """

    def __init__(self, world: World, setting: Setting, seed: int) -> None:
        self.world, self.setting, self.seed = world, setting, seed
        one = partial(scenes, objects=(1, 1), letter_share=0.0)
        bare, held = one(setting.edit_scenes, random_state=seed + 11), one(setting.judged, random_state=seed + 12)
        rng = np.random.default_rng(seed)
        self.trained_on, self.validation = _told(bare, rng), _told(held, rng)
        self.plain = one(setting.judged, random_state=seed + 13)
        shapes = self.plain.attributes[:, 0, 2]
        self.swapped = self.plain.with_letters(
            (shapes + torch.from_numpy(rng.integers(1, len(LETTERS), len(shapes)))) % len(LETTERS)
        )
        self.bare, self.held = bare, held
        self.with_letters = self._described(self.trained_on, self.validation)

    @cached_property
    def blurred(self) -> Described:
        """Trained with letters blurred; described on scenes with letters as they are."""
        return self._described(self.trained_on.blurred(), self.validation)

    @cached_property
    def without(self) -> Described:
        """Trained and described on scenes without letters."""
        return self._described(self.bare, self.held)

    @cached_property
    def edit(self) -> DescribedEdit:
        """Units named after letters off, in the order in which validation misses them least, at most a tenth of all."""
        return self._edit(self.with_letters, [WORD], 5)

    @cached_property
    def shape_edit(self) -> DescribedEdit:
        """As many units named after a shape off."""
        n = len(self.edit.candidates)
        return self._edit(self.with_letters, _names(SHAPES), 0, n)

    @property
    def lost(self) -> float:
        """What the wrong letter costs, before anything is off."""
        return _right(self.plain, self.with_letters.network) - float(self.edit.test[0])

    @property
    def found(self) -> list[tuple[str, int]]:
        """All units named after letters."""
        return [self.with_letters.units[i] for i in find_units(self.with_letters.texts, WORD)]

    @property
    def all_off(self) -> float:
        """Accuracy with the wrong letter and all of these off."""
        if not self.found:
            return float(self.edit.test[0])
        counts = [0, len(self.found)]
        return float(
            ablation_curve(self.with_letters.network, self.found, partial(_right, self.swapped), counts, 0).values[-1]
        )

    def clean_fall(self, edit: DescribedEdit) -> float:
        """Points of accuracy lost on scenes without letters."""
        units = [self.with_letters.units[i] for i in edit.candidates]
        if not units:
            return 0.0
        curve = ablation_curve(
            self.with_letters.network, units, partial(_right, self.plain), steps=[0, len(units)], random=0
        )
        return 100 * float(curve.values[0] - curve.values[-1])

    def _edit(self, described: Described, words: Sequence[str], random: int, n: int | None = None) -> DescribedEdit:
        most = int(SHARE_OFF * len(described.units)) if n is None else n
        return edit_by_description(
            described.network, described.units, described.texts, words, partial(_right, self.validation), partial(_right, self.swapped),
            max_units=most, random=random, random_state=self.seed,
        )  # fmt: skip

    def _described(self, train: Scenes, shown: Scenes) -> Described:
        network = convolutional(self.setting.widths[0], len(SHAPES), self.seed + 70)
        learn_shapes(network, train, self.setting.edit_steps, self.seed + 70)
        group = gather(network, shown, self.world.backbone)
        texts = [one.text for one in self.world.describe(group.regions)]
        return Described(network, [(site, unit) for _, site, unit in group.units], texts)


def _told(bare: Scenes, rng: np.random.Generator) -> Scenes:
    """Scenes of which a share has the letter of its shape."""
    told = torch.from_numpy(rng.random(len(bare)) < TOLD)
    return bare.with_letters(torch.where(told, bare.attributes[:, 0, 2], torch.full((len(bare),), -1)))


def _right(given: Scenes, network: nn.Module) -> float:
    labels: Tensor = given.attributes[:, 0, 2]
    return accuracy(network, given.images, labels)


def _names(words: Sequence[str]) -> list[str]:
    return [PLURAL.get(word, word) for word in words]


def editing_claims(runs: Sequence[Edited], small: bool) -> Iterator[Claim]:
    """Removing the units that are named after the spurious cue."""
    names = ("recovers", "clean accuracy", "no letters, no units", "blurring leaves fewer")
    said = (
        "zeroing at most 10 % of the units, found by 'letter', recovers at least 30 % of the accuracy that a wrong letter costs",
        "and costs less than 5 points of accuracy on scenes without letters",
        "a network without letters has no unit that is named after them (share of units)",
        "with letters blurred in training less than half as many units are named after them (ratio of shares)",
    )
    bars = (Bar(">=", 0.3), Bar("<", 5.0), Bar("<=", 0.0), Bar("<", 0.5))
    controls = (
        "as many random units, which must recover less than a third as much",
        "as many units that are named after shapes",
        "the network with letters",
        "units named after shapes, whose share must not halve",
    )
    if small:
        for row in zip(names, said, bars, controls, strict=True):
            yield untested(*row, TOO_SMALL)
        return
    gains = [float(one.edit.test[-1] - one.edit.test[0]) / max(one.lost, 1e-9) for one in runs]
    random = [float(one.edit.random[:, -1].mean() - one.edit.test[0]) / max(one.lost, 1e-9) for one in runs]
    accuracies = "; ".join(
        f"plain {_right(one.plain, one.with_letters.network):.3f}, wrong letter {one.edit.test[0]:.3f}, edited {one.edit.test[-1]:.3f} "
        f"({len(one.edit.candidates)} of {len(one.with_letters.units)} units off), all {len(one.found)} units found off {one.all_off:.3f}"
        for one in runs
    )
    yield Claim(
        names[0], said[0], **over_seeds(gains), bar=bars[0], control=float(np.mean(random)), control_statement=controls[0],
        control_bar=Bar(">=", float(np.mean(gains)) / 3), note=f"Accuracy: {accuracies}.", plot=runs[0].edit.plot,
    )  # fmt: skip
    falls, shape_falls = [one.clean_fall(one.edit) for one in runs], [one.clean_fall(one.shape_edit) for one in runs]
    yield Claim(
        names[1], said[1], **over_seeds(falls), bar=bars[1], control=float(np.mean(shape_falls)), control_statement=controls[1],
        note=f"Units named after shapes: {[len(one.shape_edit.candidates) for one in runs]}.",
        plot=lambda axes: _pairs(axes, falls, shape_falls, "letter units off", "shape units off", "points lost, plain scenes"),
    )  # fmt: skip
    letters = {
        kind: [getattr(one, kind).share([WORD]) for one in runs] for kind in ("with_letters", "blurred", "without")
    }
    shapes = {kind: [getattr(one, kind).share(_names(SHAPES)) for one in runs] for kind in ("with_letters", "blurred")}
    told = f"Share of units named after letters: {_list(letters['with_letters'])} with letters"
    yield Claim(
        names[2], said[2], **over_seeds(letters["without"]), bar=bars[2], control=float(np.mean(letters["with_letters"])),
        control_statement=controls[2], note=f"{told}, {_list(letters['without'])} without.",
        plot=lambda axes: _shares(axes, letters),
    )  # fmt: skip
    ratio = [
        after / max(before, 1e-9) for after, before in zip(letters["blurred"], letters["with_letters"], strict=True)
    ]
    before = float(np.mean(shapes["with_letters"]))  # single networks may have no such unit at all
    kept = float(np.mean(shapes["blurred"])) / before if before else float("nan")
    both = {
        f"{kind}, {cue}": values
        for cue, some in (("letters", letters), ("shapes", shapes))
        for kind, values in some.items()
        if kind != "without"
    }
    yield Claim(
        names[3], said[3], **over_seeds(ratio), bar=bars[3], control=kept, control_statement=controls[3],
        note=f"{told}, {_list(letters['blurred'])} blurred; after shapes {_list(shapes['with_letters'])} and {_list(shapes['blurred'])}.",
        plot=lambda axes: _shares(axes, both),
    )  # fmt: skip


def matter_claim(runs: Sequence[Edited], small: bool) -> Claim:
    """Whether units described in more content words matter more."""
    name = "more words matter more"
    statement = (
        "zeroing the units described in most content words costs more accuracy than random orders do, in standard deviations of these "
        "(mean over 0 to 20 % of units)"
    )
    control = "one random order beside the others"
    if small:
        return untested(name, statement, Bar(">", 2.0), control, TOO_SMALL)
    found, null, curves = [], [], []
    for one in runs:
        mine = one.with_letters
        order = [mine.units[i] for i in sort_units(mine.texts, "content words")]
        curve = ablation_curve(mine.network, order, partial(_right, one.plain), random=8, random_state=one.seed)
        area = curve.random.mean(1)
        spread = max(float(area[1:].std(ddof=1)), 1e-9)
        found.append((float(area[1:].mean()) - float(curve.values.mean())) / spread)
        null.append((float(area[1:].mean()) - float(area[0])) / spread)
        curves.append(curve)
    words = np.mean([[n_content_words(text) for text in one.with_letters.texts][:1000] for one in runs[:1]])
    return Claim(
        name, statement, **over_seeds(found), bar=Bar(">", 2.0), control=float(np.mean(null)), control_statement=control,
        note=f"The bar of two deviations is ours. Accuracy at the last step {_list([float(c.values[-1]) for c in curves])}, random orders "
        f"{_list([float(c.random[:, -1].mean()) for c in curves])}; {words:.1f} content words a description.",
        plot=lambda axes: _curve(axes, curves[0]),
    )  # fmt: skip


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _curve(axes: Axes, curve: AblationCurve) -> None:
    curve.plot(axes)
    axes.set(ylabel="accuracy, plain scenes")


def _pairs(axes: Axes, one: Sequence[float], other: Sequence[float], name: str, name_other: str, label: str) -> None:
    for at, values in enumerate((one, other)):
        axes.plot([at] * len(values), values, "o")
    axes.set(xticks=(0, 1), xticklabels=(name, name_other), ylabel=label, xlim=(-0.5, 1.5))


def _shares(axes: Axes, shares: dict[str, list[float]]) -> None:
    names = [name.replace("_", " ") for name in shares]
    axes.barh(names[::-1], [float(np.mean(values)) for values in shares.values()][::-1])
    axes.set(xlabel="share of units named so")
