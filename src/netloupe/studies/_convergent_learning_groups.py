"""Claims of the convergent-learning study about several units at once: few predict one, and groups are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from netloupe.core.splits import holdout
from netloupe.core.statistics import JointMoments
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.similarity.joint_clusters import Mixing, cluster_mixing, joint_spectral_clusters
from netloupe.lenses.similarity.mapping import SparseMapper, mapping_path, weakest_within
from netloupe.studies._convergent_learning_claims import described
from netloupe.studies._convergent_learning_network import Moments, Networks, Setting, site_moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW, SEVERAL = 8, 10
SHARED = 0.7
JUDGED = 0.4  # share of the images that maps are judged on


def few_to_one(networks: Networks, setting: Setting, seed: int) -> Iterator[Claim]:
    """A few units of one network predict a unit of the other, in the first layer."""
    site = setting.sites[:1]
    fitted, judged = holdout(len(networks.seen), JUDGED, random_state=seed)
    paths, errors, costs, random_costs, several, shuffled, refitted = [], [], [], [], [], [], []
    for number, (i, j) in enumerate(networks.pairs):
        one, other = networks.trained[i], networks.trained[j]
        moments, test = (site_moments(one, other, networks.seen[rows], site)[site[0]] for rows in (fitted, judged))
        path = mapping_path(moments, setting.alphas)
        error = [float(np.nanmean(mapper.score_moments(test))) for mapper in path]
        paths.append(path)
        errors.append(error)
        costs.append(error[weakest_within(path, FEW)] - min(error))
        several.append(error[weakest_within(path, SEVERAL)])
        chosen = [np.flatnonzero(row) for row in path[weakest_within(path, FEW)].coef_]
        refitted.append(_least_squares(moments, test, chosen) - min(error))
        draw, live = np.random.default_rng(seed + number), np.flatnonzero(~moments.dead_a)
        random_units = [draw.choice(live, min(FEW, len(live)), replace=False) for _ in chosen]
        random_costs.append(_least_squares(moments, test, random_units) - min(error))
        order = fitted[torch.randperm(len(fitted), generator=torch.Generator().manual_seed(seed + number))]
        apart = site_moments(one, other, networks.seen[fitted], site, networks.seen[order])[site[0]]
        lost = mapping_path(apart, setting.alphas)
        shuffled.append(min(float(np.nanmean(mapper.score_moments(test))) for mapper in lost))
    used = [float(mapper.n_nonzero_.mean()) for mapper in paths[0]]
    path = "; ".join(f"{count:.1f} units {error:.3f}" for count, error in list(zip(used, errors[0], strict=True))[::3])

    def plot(axes: Axes) -> None:
        order = np.argsort(used, kind="stable")
        axes.plot(np.array(used)[order], np.array(errors[0])[order], "o-", markersize=3)
        axes.axhline(0.5, color="0.6", linestyle="--", linewidth=1)
        axes.set(xlabel="units used for a target, mean", ylabel="half squared error, held out", ylim=(0, None))

    about = f"{described(networks, setting)} Layer {site[0]}, {len(fitted)} images to fit on, {len(judged)} to judge; by penalty: {path}."
    yield Claim(
        name="few-cost",
        statement=f"In the first layer, predicting a unit from at most {FEW} units of another network costs little beside the best map: "
        "the difference in held-out half squared error.",
        **over_seeds(costs),
        bar=Bar("<=", 0.03),
        control=float(np.mean(random_costs)),
        control_statement=f"the same for least squares from {FEW} units drawn at random for each target",
        note=f"{about} The lasso's shrinkage is part of the cost: least squares on the units that it chose costs {np.mean(refitted):.3f}.",
        plot=plot,
    )
    yield Claim(
        name="few-predict",
        statement=f"At most {SEVERAL} units predict a unit with a held-out half squared error below 0.3, where its mean costs 0.5.",
        **over_seeds(several),
        bar=Bar("<", 0.3),
        control=float(np.mean(shuffled)),
        control_statement="the smallest error at any penalty for maps fitted with one network's images shuffled",
        note="Errors are for units of variance 1.",
        plot=_bars({"at most 10 units": several, "shuffled, any map": shuffled}, "half squared error", 0.3),
    )


def clusters(networks: Networks, setting: Setting, seed: int) -> Claim:
    """Clusters over the units of two networks hold units of both, evenly."""
    groups = {
        name: [
            _mixings(site_moments(networks.trained[i], others[j], networks.seen, setting.sites), seed) for i, j in networks.pairs
        ]
        for name, others in (("trained", networks.trained), ("untrained", networks.untrained))
    }  # fmt: skip
    found = {name: [[_held(layer) for layer in layers] for layers in group] for name, group in groups.items()}
    smaller = {name: [float(min(np.mean(pair, 0))) for pair in np.array(group)] for name, group in found.items()}
    shared, mixing, null, fine = (
        {name: float(np.mean([get(layer) for layers in group for layer in layers])) for name, group in groups.items()}
        for get in (
            lambda layer: layer[0].shared, lambda layer: layer[0].mixing, lambda layer: layer[0].null.mean(), lambda layer: layer[1].shared,
        )
    )  # fmt: skip
    sizes = ", ".join(
        f"{np.mean([len(layers[k][0].counts) for layers in groups['trained']]):.0f}" for k in range(len(setting.sites))
    )
    return Claim(
        name="clusters-mixed",
        statement=f"At least {SHARED:.0%} of clusters of two or more units over two trained networks hold units of both, and they mix "
        f"the networks more than names shuffled among units do; measured is the smaller of the share less {SHARED} and of the "
        "difference in mixing, averaged over layers.",
        **over_seeds(smaller["trained"]),
        bar=Bar(">", 0.0),
        control=float(np.mean(smaller["untrained"])),
        control_statement="the same with an untrained network in place of one",
        note=f"Spectral clusters, their number by the largest gap: {sizes} by layer on average. Shared {shared['trained']:.3f} (untrained "
        f"{shared['untrained']:.3f}); mixing {mixing['trained']:.3f} ({mixing['untrained']:.3f}), with shuffled names "
        f"{null['trained']:.3f}. At a cluster for every five units shared {fine['trained']:.3f} ({fine['untrained']:.3f}).",
        plot=_stacked(groups["trained"][0][-1][1]),
    )


def _held(layer: tuple[Mixing, Mixing]) -> tuple[float, float]:
    """By how much clusters, their number by the gap, pass both thresholds."""
    return layer[0].shared - SHARED, layer[0].mixing - float(layer[0].null.mean())


def _mixings(found: Moments, seed: int) -> list[tuple[Mixing, Mixing]]:
    """For every layer: clusters by the largest gap, and one for every five units."""
    mixed = []
    for moments in found.values():
        tables = moments.within_a, moments.between, moments.within_b
        live = int((moments.deviation > 0).sum())
        labels = [joint_spectral_clusters(*tables, k=k, random_state=seed).labels for k in (None, max(2, live // 5))]
        mixed.append(tuple(cluster_mixing(each, moments.p, random_state=seed) for each in labels))
    return mixed


def _least_squares(moments: JointMoments, test: JointMoments, units: Sequence[np.ndarray]) -> float:
    """Mean held-out half squared error of least squares from the given units of each target."""
    mapper = SparseMapper(0).fit_moments(moments)
    mapper.coef_ = np.zeros_like(mapper.coef_)
    for target, own in enumerate(units):
        inner, cross = moments.within_a[np.ix_(own, own)], moments.between[own, target]
        mapper.coef_[target, own] = np.linalg.lstsq(inner, cross, rcond=1e-10)[0]
    return float(np.nanmean(mapper.score_moments(test)))


def _bars(groups: dict[str, Sequence[float]], label: str, bar: float) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for place, values in enumerate(groups.values()):
            axes.plot(np.full(len(values), place) + np.linspace(-0.1, 0.1, len(values)), values, "o", markersize=4)
        axes.axhline(bar, color="0.6", linestyle="--", linewidth=1)
        axes.set(xticks=range(len(groups)), xticklabels=list(groups), ylabel=label, xlim=(-0.5, len(groups) - 0.5))

    return plot


def _stacked(mixed: Mixing) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        order = np.argsort(-mixed.counts.sum(1), kind="stable")
        axes.bar(range(len(order)), mixed.counts[order, 0], label="first network")
        axes.bar(range(len(order)), mixed.counts[order, 1], bottom=mixed.counts[order, 0], label="second network")
        axes.set(xlabel="cluster, largest first", ylabel="units")
        axes.legend(frameon=False, fontsize=7)

    return plot
