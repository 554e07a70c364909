"""Planted features of arXiv 2506.10920's study: sparse signed directions, and two-level families that share a core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from netloupe.core.dictionary import pca_dictionary
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.dictionary.sae import SparseAutoencoder
from netloupe.lenses.dictionary.score import core_exclusive, mmcs
from netloupe.lenses.dictionary.snmf import RecursiveSemiNMF, SemiNMF


@dataclass(frozen=True)
class Sizes:
    """``d`` units, ``n`` samples, ``k`` features of ``own`` units each; ``sae_steps`` of the autoencoder; iterations."""

    d: int = 400
    n: int = 4000
    k: int = 20
    own: int = 20
    iterations: int = 500
    sae_steps: int = 3000


def planted(sizes: Sizes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions of ``own`` signed units, and samples: 15 % of the exponential codes are on, noise .02."""
    rng = np.random.default_rng(seed)
    true = np.zeros((sizes.k, sizes.d))
    for row in true:
        row[rng.choice(sizes.d, sizes.own, replace=False)] = rng.standard_normal(sizes.own)
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    codes = rng.exponential(size=(sizes.n, sizes.k)) * (rng.random((sizes.n, sizes.k)) < 0.15)
    return true, codes @ true + 0.02 * rng.standard_normal((sizes.n, sizes.d))


def recovery(sizes: Sizes, seeds: range) -> Claim:
    """Sparse columns find the features; without them the same error is reached by others."""
    found: dict[str, list[float]] = {name: [] for name in ("SNMF", "dense", "SAE", "k-means", "PCA")}
    errors: dict[str, list[float]] = {"SNMF": [], "dense": []}
    lowest = 1.0
    for seed in seeds:
        true, x = planted(sizes, seed)
        for name, share in (("SNMF", sizes.own / sizes.d), ("dense", 1.0)):
            model = SemiNMF(sizes.k, sparsity=share, max_iter=sizes.iterations, seed=seed, dtype="float32").fit(x)
            found[name].append(mmcs(true, model.directions_))
            errors[name].append(model.relative_error_**0.5)
            if name == "SNMF":
                lowest = min(lowest, *(mmcs(one, model.directions_) for one in true))
        sae = SparseAutoencoder(sizes.k, "topk", k=3, steps=sizes.sae_steps, rate=3e-3, dead_after=2000, seed=seed).fit(
            x
        )
        found["SAE"].append(mmcs(true, sae.dictionary()))
        found["k-means"].append(
            mmcs(true, KMeans(sizes.k, n_init=cast(Any, 1), random_state=seed).fit(x).cluster_centers_)
        )
        found["PCA"].append(mmcs(true, pca_dictionary(x, sizes.k)))
    means = {name: float(np.mean(values)) for name, values in found.items()}

    def plot(axes: Any) -> None:
        axes.bar(list(means), list(means.values()), color=["C0", "0.6", "C1", "C2", "C3"])
        axes.set(ylabel="mean max cosine to the truth", ylim=(0, 1.05))
        axes.tick_params(axis="x", labelsize=7)

    return Claim(
        "recovery", "semi-NMF with winner-take-all columns recovers planted sparse signed features (mean max cosine)",
        **over_seeds(found["SNMF"]), bar=Bar(">=", 0.99), control=means["dense"],
        control_statement="the same factorisation with all units kept, which reconstructs as well",
        note=f"worst single feature {lowest:.3f}; relative error {np.mean(errors['SNMF']):.3f} and without sparsity "
        f"{np.mean(errors['dense']):.3f}; "
        f"TopK autoencoder of the same size {means['SAE']:.2f}, k-means {means['k-means']:.2f}, PCA {means['PCA']:.2f}",
        plot=plot,
    )  # fmt: skip


FAMILIES, MEMBERS, CORE, OWN = 4, 5, 10, 10


def families(seed: int, n: int, d: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of four families: ten units shared by a family, ten of each member's own; which family each is of; samples."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    true, family, place = np.zeros((FAMILIES * MEMBERS, d)), np.repeat(np.arange(FAMILIES), MEMBERS), 0
    for group in range(FAMILIES):
        core = order[place : place + CORE]
        place += CORE
        shared = rng.choice([-1.0, 1.0], CORE) * rng.uniform(0.5, 1.5, CORE)
        for member in range(MEMBERS):
            row = true[group * MEMBERS + member]
            row[core] = shared
            row[order[place : place + OWN]] = rng.choice([-1.0, 1.0], OWN) * rng.uniform(0.5, 1.5, OWN)
            place += OWN
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    codes = rng.exponential(size=(n, len(true))) * (rng.random((n, len(true))) < 0.15)
    return true, family, codes @ true + 0.02 * rng.standard_normal((n, d))


def nested(n: int, iterations: int, finetune: int, seeds: range) -> tuple[Claim, Claim]:
    """The tree against the families, and what amplifying shared and own units does."""
    scores, shuffled, moved, random = [], [], [], []
    weights = np.zeros((1, 1))
    for seed in seeds:
        true, family, x = families(seed, n)
        share = (CORE + OWN) / x.shape[1]
        model = RecursiveSemiNMF(
            (FAMILIES * MEMBERS, FAMILIES), finetune, options={"sparsity": share, "seed": seed, "max_iter": iterations}
        ).fit(x)  # fmt: skip
        below = model.levels_[0]
        cosines = np.abs((below / np.linalg.norm(below, axis=1, keepdims=True)) @ true.T)
        rows, columns = linear_sum_assignment(-cosines)
        truth = np.empty(len(true), int)
        truth[rows] = family[columns]
        weights = model.weights_[1][np.argsort(truth, kind="stable")]
        scores.append(adjusted_rand_score(truth, model.weights_[1].argmax(1)))
        rng = np.random.default_rng(seed + 1)
        broken = np.stack([rng.permutation(column) for column in below.T], 1)
        again = SemiNMF(FAMILIES, sparsity=share, seed=seed, max_iter=iterations).fit(broken)
        shuffled.append(adjusted_rand_score(truth, again.codes_.argmax(1)))
        one, chance = _amplified(below, truth, rng)
        moved.append(one)
        random.append(chance)

    def plot_tree(axes: Any) -> None:
        axes.imshow(weights, aspect="auto", cmap="Blues")
        axes.set(xlabel="general feature", ylabel="specific feature, by family")
        axes.set(xticks=range(FAMILIES), yticks=range(0, FAMILIES * MEMBERS, MEMBERS))

    def plot_moved(axes: Any) -> None:
        axes.bar(["core and own units", "random units"], [np.mean(moved), np.mean(random)], color=["C0", "0.6"])
        axes.set(ylabel="share that move whom they should", ylim=(0, 1.05))

    tree = Claim(
        "tree", "factorising the features again groups them by the planted families (adjusted Rand index)",
        **over_seeds(scores), bar=Bar(">=", 0.9), control=float(np.mean(shuffled)),
        control_statement="each unit's entries permuted over the features before the second factorisation", plot=plot_tree,
        note=f"after the fine-tuning of all factors together ({finetune} steps)",
    )  # fmt: skip
    core = Claim(
        "core-exclusive", "amplifying the units that a family shares moves all its members, a member's own units move it alone",
        **over_seeds(moved), bar=Bar(">=", 0.9), control=float(np.mean(random)),
        control_statement="as many units drawn from those that the family uses at all",
        note="a set counts when every feature that it should move moves more than every other, in the found features", plot=plot_moved,
    )  # fmt: skip
    return tree, core


def _amplified(found: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Share of unit sets that move those and only those whom they should; and of random sets of the family's units."""
    groups = [np.flatnonzero(truth == group) for group in range(FAMILIES)]
    sets = core_exclusive(found, [group.tolist() for group in groups])
    readout = found / np.linalg.norm(found, axis=1, keepdims=True)
    hits: dict[str, list[bool]] = {"real": [], "random": []}
    for group, core, own in zip(groups, sets.core, sets.exclusive, strict=True):
        used = np.flatnonzero((found[group] != 0).any(0))
        for wanted, units in [(group, core), *(([m], units) for m, units in zip(group, own, strict=True))]:
            for kind, chosen in (
                ("real", units),
                ("random", rng.choice(used, min(len(units), len(used)), replace=False)),
            ):
                delta = np.zeros(found.shape[1])
                delta[chosen] = found[wanted].mean(0)[chosen]
                effect = readout @ delta
                others = np.setdiff1d(np.arange(len(found)), wanted)
                hits[kind].append(bool(len(chosen)) and effect[wanted].min() > effect[others].max() + 1e-12)
    return float(np.mean(hits["real"])), float(np.mean(hits["random"]))
