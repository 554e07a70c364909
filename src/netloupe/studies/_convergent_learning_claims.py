"""Claims of the convergent-learning study about single units: matching, mean activations, mutual information."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from netloupe.core.statistics import CrossMoments, JointMoments
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.similarity.matching import match_agreement, match_curve, match_units
from netloupe.lenses.similarity.mutual_information import pairwise_mi
from netloupe.studies._convergent_learning_network import Moments, Networks, Setting, rows_of, site_moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSE, FAR = 0.03, 0.2  # between these the semi-matching is to lie above the one-to-one matching
SAME_CURVE, WIDE = 0.9, 3.0  # correlation of sorted mean activations, and their largest over their median
ALONE = 0.2  # a one-to-one correlation below this is a unit without a counterpart


def described(networks: Networks, setting: Setting) -> str:
    """Networks and data in a sentence."""
    right = ", ".join(f"{each:.3f}" for each in networks.accuracies)
    return f"{len(networks.trained)} networks on {setting.data}, {len(networks.seen)} images not trained on (accuracies {right})."


def trained_pairs(networks: Networks, setting: Setting) -> list[Moments]:
    """Moments of every pair of trained networks."""
    return [
        site_moments(networks.trained[i], networks.trained[j], networks.seen, setting.sites) for i, j in networks.pairs
    ]


def beyond_chance(networks: Networks, setting: Setting, seed: int) -> Claim:
    """Trained networks share units beyond what images alone make units share."""
    both = trained_pairs(networks, setting)
    half = [
        site_moments(networks.trained[i], networks.untrained[j], networks.seen, setting.sites)
        for i, j in networks.pairs
    ]
    order = torch.randperm(len(networks.seen), generator=torch.Generator().manual_seed(seed))
    shuffled = [
        site_moments(networks.trained[i], networks.trained[j], networks.seen, setting.sites, networks.seen[order])
        for i, j in networks.pairs
    ]
    semi = {name: _by_site(group, "semi") for name, group in (("both", both), ("half", half), ("none", shuffled))}
    gain = {site: np.subtract(semi["both"][site], semi["half"][site]) for site in setting.sites}
    per_pair = [float(min(gain[site][pair] for site in setting.sites)) for pair in range(len(both))]
    table = "; ".join(
        f"{site} {np.mean(semi['both'][site]):.3f}, {np.mean(semi['half'][site]):.3f}, {np.mean(semi['none'][site]):.3f}"
        for site in setting.sites
    )

    def plot(axes: Axes) -> None:
        last = setting.sites[-1]
        for name, group in (("both trained", both), ("one untrained", half), ("images shuffled", shuffled)):
            axes.plot(match_curve(group[0][last].between).semi, label=name)
        axes.set(xlabel=f"unit of {last}, best first", ylabel="correlation with its best partner")
        axes.legend(frameon=False, fontsize=7)

    return Claim(
        name="beyond-chance",
        statement="Units of two trained networks have a more similar partner in each other than in an untrained network, in every layer; "
        "measured is the smallest difference over layers of the mean semi-matching correlation, averaged over pairs of networks.",
        **over_seeds(per_pair),
        bar=Bar(">=", 0.12),
        control=max(float(np.mean(semi["none"][site])) for site in setting.sites),
        control_statement="the mean semi-matching correlation itself, in the layer where it is largest, with one network's images "
        "shuffled; below 0.1",
        control_bar=Bar(">=", 0.1),
        note=f"{described(networks, setting)} Mean correlation trained, with an untrained one, shuffled: {table}.",
        plot=plot,
    )


def not_one_to_one(networks: Networks, setting: Setting, seed: int) -> Iterator[Claim]:
    """Semi-matching lies above one-to-one matching, and some units have no counterpart."""
    both = trained_pairs(networks, setting)
    curves = [[match_curve(found[site].between) for site in setting.sites] for found in both]
    gaps = [float(np.mean([curve.semi.mean() - curve.full.mean() for curve in pair])) for pair in curves]
    alone = [float(np.mean([(curve.full < ALONE).mean() for curve in pair])) for pair in curves]
    copies, recovered = _permuted_copies(networks, setting, seed)
    own = [match_curve(moments.between) for moments in copies]
    own_gap = float(np.mean([curve.semi.mean() - curve.full.mean() for curve in own]))
    lowest = min(float(curve.full.min()) for curve in own)
    table = "; ".join(
        f"{site} {np.mean([pair[k].semi.mean() for pair in curves]):.3f}, {np.mean([pair[k].full.mean() for pair in curves]):.3f}"
        for k, site in enumerate(setting.sites)
    )
    middle, half = (CLOSE + FAR) / 2, (FAR - CLOSE) / 2

    def plot(axes: Axes) -> None:
        curve = curves[0][-1]
        axes.plot(curve.semi, label="best partner, may be shared")
        axes.plot(curve.full, label="one to one")
        axes.plot(own[-1].full, color="0.6", linestyle="--", label="with its own permuted copy")
        axes.set(xlabel=f"unit of {setting.sites[-1]}, best first", ylabel="correlation")
        axes.legend(frameon=False, fontsize=7)

    permuted = "a network beside a copy of itself with its units permuted"
    exact = f"With the copy, the permutation is recovered for {100 * recovered:.0f} % of units and the lowest correlation is {lowest:.6f}."
    yield Claim(
        name="shared-partners",
        statement=f"Best partners correlate more than one-to-one partners, by {CLOSE} to {FAR} on average over layers; measured is the "
        f"distance of that difference from {middle:g}, the middle.",
        measured=abs(float(np.mean(gaps)) - middle),
        values=tuple(abs(gap - middle) for gap in gaps),
        bar=Bar("<=", half),
        control=abs(own_gap - middle),
        control_statement=f"the same for {permuted}, whose matchings are one",
        note=f"{described(networks, setting)} The difference is {np.mean(gaps):.3f}; best and one-to-one by layer: {table}. {exact}",
        plot=plot,
    )
    yield Claim(
        name="units-alone",
        statement=f"Some units have no counterpart: the share of one-to-one pairs that correlate below {ALONE}.",
        **over_seeds(alone),
        bar=Bar(">", 0.0),
        control=float(np.mean([(curve.full < ALONE).mean() for curve in own])),
        control_statement=f"the same for {permuted}",
        note=exact,
        plot=_histogram(
            {
                "trained pairs": np.concatenate([curve.full for pair in curves for curve in pair]),
                "permuted copy": np.concatenate([curve.full for curve in own]),
            },
            "one-to-one correlation",
            log=True,
        ),
    )


def means(networks: Networks, setting: Setting) -> Claim:
    """Sorted mean activations are the same curve in every network, and span much."""
    seen = [site_moments(model, model, networks.seen, setting.sites) for model in networks.trained]
    first = [site_moments(model, model, networks.seen, setting.sites) for model in networks.untrained]
    curves = [{site: np.sort(each[site].mean_a)[::-1] for site in setting.sites} for each in seen]
    alike = [_pearson(curves[i][site], curves[j][site]) for i, j in networks.pairs for site in setting.sites]
    differ = [
        _pearson(curves[i][one], curves[j][other])
        for i, j in networks.pairs for one in setting.sites for other in setting.sites if one != other
    ]  # fmt: skip
    ranges = [_range(each[site]) for each in curves for site in setting.sites]
    before = [_range(each[site].mean_a) for each in first for site in setting.sites]

    def plot(axes: Axes) -> None:
        for number, each in enumerate(curves):
            for k, site in enumerate(setting.sites):
                axes.plot(each[site], color=f"C{k}", alpha=0.6, linewidth=1, label=site if number == 0 else None)
        axes.set(xlabel="unit, largest mean first", ylabel="mean activation")
        axes.legend(frameon=False, fontsize=7)

    return Claim(
        name="mean-spectrum",
        statement="Sorted by size, the mean activations of a layer are the same curve in every network (Pearson at least "
        f"{SAME_CURVE} for every pair and layer), whose largest is at least {WIDE:g} times its median; measured is the smaller of the "
        "two numbers, each over its threshold.",
        measured=min(min(alike) / SAME_CURVE, float(np.mean(ranges)) / WIDE),
        bar=Bar(">=", 1.0),
        control=min(float(np.mean(differ)) / SAME_CURVE, float(np.mean(ranges)) / WIDE),
        control_statement="the same with curves of different layers",
        note=f"Smallest Pearson correlation over pairs and layers {min(alike):.3f}, mean {np.mean(alike):.3f}, between different layers "
        f"mean {np.mean(differ):.3f}: any two sorted curves correlate highly. Largest over median {np.mean(ranges):.2f}, before training "
        f"{np.mean(before):.2f}.",
        plot=plot,
    )


def information(networks: Networks, setting: Setting, seed: int) -> Iterator[Claim]:
    """Matching by mutual information is matching by correlation, for most units."""
    a, b = (rows_of(model, networks.seen, setting.conv_site, setting.mi_rows, seed) for model in networks.trained)
    apart = b[torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))]
    shares, tables = [], []
    for other in (b, apart):
        correlation = CrossMoments().update(a, other).correlation()
        tables.append((correlation, np.where(correlation == 0, 0.0, pairwise_mi(a, other))))
        shares.append(match_agreement(*(match_units(table, "semi") for table in tables[-1])))

    correlation, nats = tables[0]
    sizes = match_agreement(match_units(correlation, "semi", absolute=True), match_units(nats, "semi"))
    varies = correlation.any(1)
    ours, best = correlation[varies].argmax(1), nats[varies].argmax(1)
    rows = np.flatnonzero(ours != best)
    share = float((nats[varies][rows, ours[rows]] / nats[varies][rows, best[rows]]).mean()) if len(rows) else 1.0

    def plot(axes: Axes) -> None:
        axes.scatter(tables[0][0].ravel(), tables[0][1].ravel(), s=3, alpha=0.4, label="same images")
        axes.scatter(tables[1][0].ravel(), tables[1][1].ravel(), s=3, alpha=0.4, label="rows shuffled")
        axes.set(xlabel="correlation", ylabel="mutual information, nats")
        axes.legend(frameon=False, fontsize=7)

    yield Claim(
        name="information-agrees",
        statement="Correlation and mutual information choose the same best partner: the share of units of a convolutional layer for "
        "which they do, every position being an observation.",
        measured=shares[0],
        bar=Bar(">=", 0.7),
        control=shares[1],
        control_statement="the same with one network's rows shuffled",
        note=f"{described(networks, setting)} {a.shape[1]} units, {len(a)} rows, 10 bins a unit, the silent value a bin of its own. "
        f"With the size of correlations in place of their sign {sizes:.3f}; where the two differ, correlation's choice has "
        f"{share:.0%} of the information of the best one, on average.",
        plot=plot,
    )
    draw = np.random.default_rng(seed)
    x, y = draw.standard_normal((2, setting.mi_rows, a.shape[1]))
    corrected, plain = pairwise_mi(x, y), pairwise_mi(x, y, bias=None)
    error = float(corrected.std(ddof=1)) / np.sqrt(corrected.size)
    yield Claim(
        name="information-unbiased",
        statement="Independent units have no information about each other once the estimate is corrected: the distance of the mean over "
        "all pairs of Gaussian units from 0, in standard errors.",
        measured=abs(float(corrected.mean())) / error,
        bar=Bar("<=", 3.0),
        control=abs(float(plain.mean())) / error,
        control_statement="the same without the correction",
        note=f"{corrected.size} pairs of {setting.mi_rows} rows; corrected mean {corrected.mean():.2g} nats, plain {plain.mean():.2g}.",
        plot=_histogram({"corrected": corrected.ravel(), "not corrected": plain.ravel()}, "estimate, nats"),
    )


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _range(curve: np.ndarray) -> float:
    middle = float(np.median(curve))
    return float(curve.max()) / middle if middle > 0 else float("inf")


def _by_site(group: Sequence[Moments], kind: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for moments in group:
        for site, each in moments.items():
            curve = match_curve(each.between)
            found.setdefault(site, []).append(float((curve.semi if kind == "semi" else curve.full).mean()))
    return found


def _permuted_copies(networks: Networks, setting: Setting, seed: int) -> tuple[list[JointMoments], float]:
    """Every layer of the first network beside itself in another order, and the share of that order that is found again."""
    found, right = [], []
    draw = np.random.default_rng(seed)
    for moments in site_moments(networks.trained[0], networks.trained[0], networks.seen, setting.sites).values():
        p = moments.p
        order = draw.permutation(p)
        both = np.r_[:p, p + order]
        copy = JointMoments(moments.count, moments.mean[both], moments.scatter[np.ix_(both, both)], p)
        found.append(copy)
        partner = match_units(copy.between).order()
        live = ~moments.dead_a
        right.append(float((order[partner[live]] == np.flatnonzero(live)).mean()))
    return found, float(np.mean(right))


def _histogram(groups: Mapping[str, np.ndarray], label: str, log: bool = False) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        both = np.concatenate([np.asarray(values) for values in groups.values()])
        bins = np.linspace(float(both.min()), float(both.max()) + 1e-12, 41).tolist()
        for name, values in groups.items():
            axes.hist(values, bins=bins, alpha=0.6, label=name)
        axes.set(xlabel=label, ylabel="count", yscale="log" if log else "linear")
        axes.legend(frameon=False, fontsize=7)

    return plot
