"""The claims of the MILAN study about descriptions: information beside likelihood, another network, labels from a closed list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from netloupe.core.study import Bar, Claim
from netloupe.data.scenes import WORDS, Scenes
from netloupe.lenses.naming.milan import Description
from netloupe.studies._milan_world import World, f1, spoken, word_overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAMS = (0.0, 0.2, 1.0)
TOO_SMALL = "the smallest preset has too few units and too little training for this"


def low(values: Sequence[float] | Float[np.ndarray, " unit"], seed: int = 0, n: int = 2000) -> float:
    """Lower end of the 95 % bootstrap interval of a mean over units."""
    given = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(given), (n, len(given)))
    return float(np.quantile(given[rows].mean(1), 0.025))


def untested(name: str, statement: str, bar: Bar, control: str, note: str) -> Claim:
    """A claim that a preset does not measure."""
    return Claim(name, statement, None, bar, None, control, note=note)


def specific_claims(world: World, small: bool) -> Iterator[Claim]:
    """What information adds to likelihood, on held-out units and those of another network."""
    test, shuffled = world.test, world.shuffled
    own = {lam: world.describe(test.regions, lam) for lam in LAMS}
    null = {lam: world.describe(test.regions, lam, shuffled) for lam in LAMS}
    right, chance = ({lam: _right(some[lam], test.truth) for lam in LAMS} for some in (own, null))
    rise, rise_null = right[0.2] - right[0.0], chance[0.2] - chance[0.0]
    rarer = {lam: float(np.mean([one.lm_logp for one in own[lam]])) for lam in LAMS}
    yield Claim(
        "pmi names more",
        "units have more attributes named correctly with information (lam .2) than with likelihood (lower 95 % bound of the rise)",
        low(rise), Bar(">", 0.0), low(rise_null), "a describer that learned from the regions of other units",
        note=f"Correct attributes a unit {right[0.0].mean():.2f}, {right[0.2].mean():.2f} and {right[1.0].mean():.2f} at lam 0, .2 and 1, "
        f"shuffled {chance[0.0].mean():.2f}, {chance[0.2].mean():.2f} and {chance[1.0].mean():.2f}; F1 {_list(own, test.truth)}. "
        f"Mean log p(d) {', '.join(f'{rarer[lam]:.2f}' for lam in LAMS)}; among the same candidates it falls by construction.",
        plot=lambda axes: _by_lam(axes, own, null, test.truth),
    )  # fmt: skip
    shares = {lam: _commonest(own[lam]) for lam in LAMS}
    yield Claim(
        "fewer stock phrases", "the share of units with the most frequent description falls by at least 30 % from lam 0 to .2",
        1 - shares[0.2] / shares[0.0], Bar(">=", 0.3), 1 - _commonest(null[0.2]) / _commonest(null[0.0]),
        "a describer that learned from the regions of other units",
        note=f"Share {shares[0.0]:.3f} and {shares[0.2]:.3f}, at lam 1 {shares[1.0]:.3f}.",
        plot=lambda axes: _frequencies(axes, own),
    )  # fmt: skip
    name, said = (
        "too much is wrong",
        "at lam 1 a description's words are less often right than at lam .2 (lower 95 % bound of the loss)",
    )
    if small:
        yield untested(name, said, Bar(">", 0.0), "a describer that learned from the regions of other units", TOO_SMALL)
        return
    lost, lost_null = (_precision(some[0.2], test.truth) - _precision(some[1.0], test.truth) for some in (own, null))
    yield Claim(
        name, said, low(lost), Bar(">", 0.0), low(lost_null), "a describer that learned from the regions of other units",
        note=f"Share of right words, mean over units: {_precision(own[0.2], test.truth).mean():.3f} and "
        f"{_precision(own[1.0], test.truth).mean():.3f}; shuffled {_precision(null[0.2], test.truth).mean():.3f} and "
        f"{_precision(null[1.0], test.truth).mean():.3f}.",
        plot=lambda axes: _scatter(axes, own, test.truth),
    )  # fmt: skip


def transfer_claim(world: World, small: bool) -> Claim:
    """Another architecture's units, described by a describer that never saw one."""
    name, bar, null = "transfers", Bar("<=", 0.1), "the same network before training, which must be at least .2 below"
    statement = (
        "attribute F1 on the units of a network of another architecture is at most .1 below that of held-out units"
    )
    if small:
        return untested(name, statement, bar, null, TOO_SMALL)
    scores = {
        name: f1(spoken(world.describe(group.regions)), group.truth)
        for name, group in (
            ("held-out units", world.held_out),
            ("another network", world.fourth),
            ("untrained network", world.untrained),
        )
    }
    shuffled = f1(spoken(world.describe(world.fourth.regions, describer=world.shuffled)), world.fourth.truth)
    within, other, random = scores.values()
    return Claim(
        name, statement, within - other, bar, within - random, null,
        control_bar=Bar("<", 0.2),
        note=f"F1 {within:.3f} held out, {other:.3f} on the other network, {random:.3f} untrained, {shuffled:.3f} with shuffled regions.",
        plot=lambda axes: bars(axes, {**scores, "shuffled regions": shuffled}, "attribute F1"),
    )  # fmt: skip


def closed_list_claim(world: World) -> Claim:
    """Against the single word whose masks overlap most with a unit's."""
    test = world.test
    iou = word_overlap(world.networks, test, _first(world))
    label = np.eye(len(WORDS), dtype=bool)[iou.argmax(1)]
    said = spoken(world.describe(test.regions))
    several, single = test.truth.sum(1) > 1, test.truth.sum(1) == 1
    recall = {
        name: (words & test.truth).sum(1) / test.truth.sum(1).clip(min=1)
        for name, words in (("described", said), ("closed list", label))
    }
    gap = recall["described"] - recall["closed list"]
    numbers = {
        f"{name}, {kind}": float(some[rows].mean())
        for name, some in recall.items()
        for kind, rows in (("several", several), ("one", single))
    }
    return Claim(
        "beyond a closed list",
        "on units of several attributes descriptions say more of them than the best single label by overlap does (lower 95 % bound)",
        low(gap[several]), Bar(">", 0.0), low(gap[single]), "units of one attribute, on which there must be no such gap",
        note=f"Recall of true words: {'; '.join(f'{name} {value:.2f}' for name, value in numbers.items())} "
        f"({several.sum()} and {single.sum()} units). One label cannot say two words; best it could, it would reach "
        f"{float((1 / test.truth.sum(1).clip(min=1))[several].mean()):.2f} on the former.",
        plot=lambda axes: bars(axes, numbers, "recall of true words"),
    )  # fmt: skip


def _first(world: World) -> Scenes:
    shown, n = world.shown, world.setting.dissected
    return Scenes(shown.images[:n], shown.masks[:n], shown.attributes[:n], shown.letters[:n], shown.letter_masks[:n])


def _list(own: dict[float, list[Description]], truth: Bool[np.ndarray, "unit word"]) -> str:
    return ", ".join(f"{f1(spoken(some), truth):.3f}" for some in own.values())


def _right(descriptions: Sequence[Description], truth: Bool[np.ndarray, "unit word"]) -> Float[np.ndarray, " unit"]:
    return (spoken(descriptions) & truth).sum(1).astype(float)


def _precision(descriptions: Sequence[Description], truth: Bool[np.ndarray, "unit word"]) -> Float[np.ndarray, " unit"]:
    said = spoken(descriptions)
    return (said & truth).sum(1) / said.sum(1).clip(min=1)


def _commonest(descriptions: Sequence[Description]) -> float:
    return Counter(one.text for one in descriptions).most_common(1)[0][1] / len(descriptions)


def _by_lam(
    axes: Axes, own: dict[float, list[Description]], null: dict[float, list[Description]], truth: np.ndarray
) -> None:
    for name, some, style in (("its regions", own, "o-"), ("shuffled regions", null, "x--")):
        axes.plot(LAMS, [_right(some[lam], truth).mean() for lam in LAMS], style, label=name)
    axes.set(xlabel="lam", ylabel="correct attributes a unit", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")


def _frequencies(axes: Axes, own: dict[float, list[Description]]) -> None:
    for lam in LAMS:
        counts = np.array([n for _, n in Counter(one.text for one in own[lam]).most_common(25)])
        axes.plot(np.arange(1, len(counts) + 1), counts / len(own[lam]), ".-", label=f"lam {lam:g}")
    axes.set(xlabel="rank of the description", ylabel="share of units")
    axes.legend(frameon=False, fontsize="small")


def _scatter(axes: Axes, own: dict[float, list[Description]], truth: np.ndarray) -> None:
    for lam in LAMS:
        axes.plot(
            np.mean([one.lm_logp for one in own[lam]]), _precision(own[lam], truth).mean(), "o", label=f"lam {lam:g}"
        )
    axes.set(xlabel="mean log p(d), nats", ylabel="share of right words", ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small")


def bars(axes: Axes, values: dict[str, float], label: str) -> None:
    """Named numbers from 0 to 1 as bars."""
    axes.barh(list(values)[::-1], list(values.values())[::-1], color=[f"C{i}" for i in range(len(values))][::-1])
    axes.set(xlabel=label, xlim=(0, 1))
