"""The claims of the relation-neurons study, each with its control, over the networks of several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.control.deactivate import Questions
from netloupe.lenses.control.relation_drops import DropMatrix, SetOverlap, difference_sets, overlap_matrix
from netloupe.lenses.naming.relation_units import average_precision_columns
from netloupe.studies._relation_neurons_network import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIDDLE = (1, 2)  # places of 3 % and 6 % among the sizes
TOP = 100
N_ABLATED = 3  # rankings with shuffled labels whose units are switched off


def existence_claims(worlds: Sequence[World]) -> Iterator[Claim]:
    """Own units matter more than other relations' and than random ones."""
    own = [[world.curve[place] for place in MIDDLE] for world in worlds]
    null = [
        [[world.drops(ranking.sets(world.sizes[place])) for ranking in world.shuffled[:N_ABLATED]] for place in MIDDLE]
        for world in worlds
    ]
    means = np.array([[_numbers([one]) for one in row] for row in own]).mean(0)  # (size, [intra, inter, random])
    chance = np.array([[_numbers(many) for many in row] for row in null]).mean(0)
    shares = [100 * worlds[0].sizes[place] / len(worlds[0].space) for place in MIDDLE]
    said = "; ".join(
        f"{share:.2g} %: own {row[0]:.3f}, other {row[1]:.3f}, random {row[2]:.3f}"
        for share, row in zip(shares, means, strict=True)
    )
    helped = np.mean([one.summary()["helped"] for row in own for one in row])
    mean_off = worlds[0].drops(worlds[0].ranking.sets(worlds[0].sizes[2]), value="mean")
    lost = worlds[0].drops(worlds[0].ranking.sets(worlds[0].sizes[2]), metric="accuracy")
    note = (
        f"Nats lost: {said}. Negative entries off the diagonal, where switching off helped: {100 * helped:.1f} %. First network, at the "
        f"larger of the two: held at their mean instead of 0, own {mean_off.intra:.3f} and other {mean_off.inter:.3f}; accuracy falls by "
        f"{lost.intra:.3f} with own and {lost.inter:.3f} with other units."
    )
    yield Claim(
        "own over other",
        "a relation's own units, off, cost it at least 3 times what another relation's units do (nats, 3 and 6 % of units)",
        float((means[:, 0] / means[:, 1]).min()), Bar(">=", 3.0),
        float((chance[:, 0] / chance[:, 1]).min()), "sets ranked with shuffled relation labels",
        note=note, plot=own[0][-1].plot,
    )  # fmt: skip
    yield Claim(
        "own over random",
        "and at least 4 times what as many random units do",
        float((means[:, 0] / means[:, 2]).min()), Bar(">=", 4.0),
        float((chance[:, 0] / chance[:, 2]).min()), "sets ranked with shuffled relation labels",
        plot=lambda axes: _bars(axes, means, chance, shares),
    )  # fmt: skip
    diagonal = [min(one.summary()["diagonal"] for one in row) for row in own]
    control = [np.mean([one.summary()["diagonal"] for one in many]) for row in null for many in row]
    yield Claim(
        "diagonal", "at least three relations in four lose most by their own units",
        **over_seeds(diagonal), bar=Bar(">=", 0.75), control=float(np.mean(control)),
        control_statement="sets ranked with shuffled relation labels",
        plot=lambda axes: _diagonal(axes, worlds),
    )  # fmt: skip


def _numbers(found: Sequence[DropMatrix]) -> list[float]:
    return [float(np.mean(row)) for row in zip(*((d.intra, d.inter, d.random.mean()) for d in found), strict=True)]


def _bars(axes: Axes, means: np.ndarray, chance: np.ndarray, shares: list[float]) -> None:
    names = ("own", "other", "random")
    for index, share in enumerate(shares):
        axes.bar(np.arange(3) + 0.4 * index - 0.2, means[index], 0.36, label=f"{share:.2g} % of units")
        axes.plot(
            np.arange(3) + 0.4 * index - 0.2, chance[index], "k_", ms=14, label="shuffled labels" if index else None
        )
    axes.set(xticks=range(3), xticklabels=names, ylabel="nats lost")
    axes.legend(frameon=False, fontsize="small")


def _diagonal(axes: Axes, worlds: Sequence[World]) -> None:
    for world in worlds:
        axes.plot(
            [100 * k / len(world.space) for k in world.sizes], [one.summary()["diagonal"] for one in world.curve], "o-",
            label=f"seed {world.seed}",
        )  # fmt: skip
    axes.axhline(0.75, color="0.3", ls="--", lw=1)
    axes.set(xlabel="% of units off", ylabel="relations that lose most by their own", xscale="log", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize="small")


def exactness_claim(world: World) -> Claim:
    """All units at once give scikit-learn's number for each, also where responses are tied."""
    rng = np.random.default_rng(world.seed)
    rows = np.sort(rng.permutation(len(world.labels))[:600])
    units = np.sort(rng.permutation(len(world.space))[:1200])
    positive = world.labels[rows] == world.labels[rows][0]
    worst, naive = [], []
    for responses in (world.responses[rows][:, units], np.round(world.responses[rows][:, units], 1)):
        ours = average_precision_columns(responses, positive)
        theirs = np.array([average_precision_score(positive, column) for column in responses.T])
        worst.append(float(np.abs(ours - theirs).max()))
        naive.append(np.abs(_in_order(responses, positive) - theirs))
    return Claim(
        "exact average precision", "average precision of all units at once equals scikit-learn's (largest difference)",
        max(worst), Bar("<=", 1e-12), float(naive[1].max()), "a sum over samples in sorted order, on responses rounded to 0.1",
        note=f"{len(units)} units, {len(rows)} prompts; without ties the sum in sorted order differs by {naive[0].max():.1g}.",
        plot=lambda axes: _errors(axes, naive[1]),
    )  # fmt: skip


def _errors(axes: Axes, errors: np.ndarray) -> None:
    axes.hist(errors, bins=30)
    axes.set(xlabel="error of the order-dependent sum", ylabel="units")


def _in_order(responses: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Average precision as if no responses were tied."""
    hits = positive[np.argsort(-responses, axis=0, kind="stable")]
    return (hits * hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]).sum(0) / positive.sum()


def cumulative_claim(worlds: Sequence[World]) -> Claim:
    """The effect grows with the number of units and needs the best of them."""
    intra = np.array([[one.intra for one in world.curve] for world in worlds])
    chance = np.array([[one.random.mean() for one in world.curve] for world in worlds])
    rho = [float(np.asarray(spearmanr(worlds[0].sizes, row)[0])) for row in intra]
    above = np.mean(chance.mean(0) >= intra.mean(0))
    parts = []
    for world in worlds:
        rest = world.drops(difference_sets(world.ranking.order, world.sizes[1], world.sizes[3]))
        parts.append((rest.intra, world.curve[3].intra))
    rest, whole = np.mean(parts, axis=0)
    return Claim(
        "cumulative", "a relation loses more the more of its units are off (rank correlation with their number)",
        **over_seeds(rho), bar=Bar(">=", 0.9), control=float(above),
        control_statement="share of sizes at which as many random units cost it as much; none may", control_bar=Bar(">", 0.0),
        note=f"The best {worlds[0].sizes[3]} units cost {whole:.3f} nats, without the best {worlds[0].sizes[1]} of them {rest:.3f}.",
        plot=lambda axes: _curves(axes, worlds, {"own units": intra, "random units": chance}),
    )  # fmt: skip


def _curves(axes: Axes, worlds: Sequence[World], lines: dict[str, np.ndarray]) -> None:
    x = [100 * k / len(worlds[0].space) for k in worlds[0].sizes]
    for index, (name, rows) in enumerate(lines.items()):
        axes.plot(x, rows.mean(0), "o-", color=f"C{index}", label=name)
        if len(rows) > 1:
            axes.fill_between(x, rows.min(0), rows.max(0), color=f"C{index}", alpha=0.2)
    axes.set(xlabel="% of units off", ylabel="nats lost", xscale="log")
    axes.legend(frameon=False, fontsize="small")


def overlap_claim(worlds: Sequence[World]) -> Claim:
    """Whether relations with the same facts share units."""
    pair = worlds[0].setting.pair
    found = [overlap_matrix(world.ranking.sets(TOP), len(world.space)) for world in worlds]
    null = [overlap_matrix(one.sets(TOP), len(world.space)) for world in worlds for one in world.shuffled]
    others = np.mean([one.summary()["times_chance"] for one in found])
    cross = np.mean([[w.curve[1].drops[pair], w.curve[1].drops[pair[::-1]]] for w in worlds])
    return Claim(
        "shared facts", f"two relations with the same facts share at least 1.5 times as many of their best {TOP} units as other pairs",
        _pair_ratio(found, pair), Bar(">=", 1.5),
        _pair_ratio(null, pair), "sets ranked with shuffled relation labels",
        note=f"All pairs share {others:.2f} times what random sets would. With the units of one of the two off, the other loses "
        f"{cross:.3f} nats (3 % of units; all other sets {np.mean([w.curve[1].inter for w in worlds]):.3f}).",
        plot=found[0].plot,
    )  # fmt: skip


def _pair_ratio(found: Sequence[SetOverlap], pair: tuple[int, int]) -> float:
    """What the pair shares over what other pairs do, or over what random sets would where the others share less."""
    counts = np.mean([one.counts for one in found], axis=0)
    others = [counts[one] for one in combinations(range(len(counts)), 2) if one != pair]
    return float(counts[pair] / max(float(np.mean(others)), found[0].expected[pair]))


def wording_claim(worlds: Sequence[World]) -> Claim:
    """Units ranked on two wordings act on a third."""
    values, controls, shown = [], [], []
    for world in worlds:
        asked = _only(world.questions, world.judged_templates == 2)
        rows = world.templates < 2
        k = world.sizes[1]
        groups = world.subjects % world.setting.n_relations
        found = world.drops(world.rank(world.labels, rows).sets(k), asked)
        null = world.drops(world.rank(groups, rows).sets(k), asked)
        values.append(float(found.specific_interval[0]))
        controls.append(float(null.specific_interval[0]))
        shown.append((found.intra, found.inter, null.intra, null.inter))
    means = np.mean(shown, axis=0)
    return Claim(
        "other wording",
        "units ranked on two wordings cost their relation more than another's in a third (lower end of the 95 % interval, 3 % of units)",
        **over_seeds(values), bar=Bar(">", 0.0), control=float(np.mean(controls)),
        control_statement="units ranked for groups of subjects instead of relations",
        note=f"Nats lost in the third wording: own {means[0]:.3f}, other {means[1]:.3f}; sets for groups of subjects {means[2]:.3f} and "
        f"{means[3]:.3f}.",
        plot=lambda axes: _wordings(axes, means),
    )  # fmt: skip


def _wordings(axes: Axes, means: np.ndarray) -> None:
    axes.bar(["own", "other", "own\n(subjects)", "other\n(subjects)"], means)
    axes.set(ylabel="nats lost")


def _only(asked: Questions, flags: np.ndarray) -> Questions:
    rows = np.flatnonzero(flags)
    return Questions(asked.prompts[rows], asked.answers[rows], asked.relations[rows], asked.subjects[rows])  # pyright: ignore[reportArgumentType, reportCallIssue]


def beyond_size_claim(worlds: Sequence[World]) -> Claim:
    """At every size the best units cost more than as many random ones."""
    own = np.array([[one.intra - one.random.mean() for one in world.curve] for world in worlds])
    bottom = []
    for world in worlds:
        last = world.ranking.order[:, ::-1]
        low = [world.drops([row[:k] for row in last]) for k in world.sizes]
        bottom.append([one.intra - one.random.mean() for one in low])
    low = np.array(bottom)
    inter = np.array([[one.inter - one.random.mean() for one in world.curve] for world in worlds])
    return Claim(
        "beyond size", "at every size a relation's units cost it more than as many random units (smallest difference, nats)",
        **over_seeds(own.min(1).tolist()), bar=Bar(">", 0.0), control=float(low.min(1).mean()),
        control_statement="the units that the relation ranks last",
        note=f"Largest size: own less random {own[:, -1].mean():.3f}, last-ranked less random {low[:, -1].mean():.3f}.",
        plot=lambda axes: _curves(
            axes, worlds, {"own - random": own, "last-ranked - random": low, "other - random": inter}
        ),
    )  # fmt: skip
