"""The claims of the tRSA study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from netloupe.core.geotopology import geo_topological, rank_minmax
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.geometry.identification import bootstrap_identification, corner_accuracy, identification_map
from netloupe.lenses.geometry.topology import CORNERS, Corner
from netloupe.studies._trsa_data import RGTM, TRANSFORMS, Responses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = tuple(round(0.1 * k, 1) for k in range(11))
JUDGED = (0.3, 0.4, 0.5, 0.6)
HUGE = 1000.0
COLOURS = dict(zip(TRANSFORMS, ("C7", "C1", "C0", "C2")))


def family(networks: Responses) -> Iterator[Claim]:
    """Claim 1: both ends of the family."""
    vectors = networks.vectors
    whole, part = (
        [float(np.abs(geo_topological(v, *levels) - rank_minmax(v)).max()) for v in vectors]
        for levels in ((0, 1), (0.2, 0.8))
    )

    def curves(axes: Axes) -> None:
        ranks = np.sort(rank_minmax(vectors[0]))
        for levels in ((0, 1), (0.2, 0.8), RGTM, (0.5, 0.5)):
            axes.plot(ranks, np.sort(geo_topological(vectors[0], *levels)), label=f"{levels[0]:g} to {levels[1]:g}")
        axes.set(xlabel="rank of a distance", ylabel="geo-topological distance")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "family-rdm",
        "Between the quantiles 0 and 1 the geo-topological matrix is the ranked distance matrix; measured is the largest difference.",
        max(whole), Bar("<=", 1e-12), min(part), "the same between the quantiles 0.2 and 0.8",
        note=f"{len(vectors)} matrices of layers.", plot=curves,
    )  # fmt: skip
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    binary = [np.isin(geo_topological(v, level, level), (0, 1)).mean() for v in vectors for level in levels]
    graded = [np.isin(geo_topological(v, level - 0.1, level + 0.1), (0, 1)).mean() for v in vectors for level in levels]

    def shares(axes: Axes) -> None:
        axes.hist([binary, graded], bins=20, label=["equal quantiles", "0.2 apart"])
        axes.set(xlabel="share of entries that are 0 or 1", ylabel="matrices")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "family-adjacency",
        "Between equal quantiles it is an adjacency matrix of zeros and ones; measured is the smallest share of such entries.",
        float(min(binary)), Bar(">=", 1.0), float(max(graded)), "the largest share between quantiles 0.2 apart", plot=shares,
    )  # fmt: skip


def layers(networks: Responses, words: str, n_permutations: int, seed: int) -> Iterator[Claim]:
    """Claim 2: which layer is it, told from other networks."""
    means: dict[Corner, float] = {corner: corner_accuracy(*_parts(networks), corner, seed=seed) for corner in CORNERS}
    raw, ranked = networks.accuracy(), networks.accuracy(rank_minmax)
    rng = np.random.default_rng(seed)
    null = [_intermediate(networks.permuted(rng), seed) for _ in range(n_permutations)]
    note = (
        f"{words}; distances {raw:.2f}, ranked {ranked:.2f}, "
        + ", ".join(f"{corner} {value:.2f}" for corner, value in means.items())
        + f"; chance {1 / len(np.unique(networks.region)):.2f}."
    )

    def bars(axes: Axes) -> None:
        values = {"distances": raw, "ranked": ranked, **means, "permuted": float(np.mean(null))}
        axes.barh(list(values), list(values.values()), color=["C7", "C1"] + ["C0"] * len(means) + ["0.8"])
        axes.set(xlabel="share of layers identified", xlim=(0, 1.02))

    yield Claim(
        "layers",
        "The layer that distances come from is identified across networks from intermediate geo-topological matrices; measured is the "
        "share identified, averaged over quantiles drawn from that corner.",
        means["intermediate"], Bar(">=", 0.85), float(np.mean(null)), f"layers permuted within networks, mean of {n_permutations}",
        note=note, plot=bars,
    )  # fmt: skip

    def permutations(axes: Axes) -> None:
        axes.hist(null, bins=20, color="0.7")
        axes.axvline(means["intermediate"], color="C0", label="intermediate")
        axes.axvline(raw, color="C7", linestyle="--", label="distances")
        axes.set(xlabel="share identified (grey: layers permuted)", xlim=(0, 1.02))
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "layers-beside-distances",
        "Without noise that is about as good as distances; measured is the share identified less that from distances.",
        means["intermediate"] - raw, Bar(">=", -0.1), float(np.mean(null)) - raw, "the same with layers permuted within networks",
        note=note, plot=permutations,
    )  # fmt: skip


def stretched(sets: Mapping[float, Sequence[Responses]], arcs: Mapping[float, Sequence[Responses]]) -> Iterator[Claim]:
    """Claim 3: individuals that differ by geometry; ``arcs`` by the share of a circle that the arc covers."""
    found, by_arc = (
        {
            key: {name: np.array([one.accuracy(transform) for one in every]) for name, transform in TRANSFORMS.items()}
            for key, every in groups.items()
        }
        for groups in (sets, arcs)
    )

    def curves(axes: Axes) -> None:
        for name in TRANSFORMS:
            values = [found[stretch][name] for stretch in found]
            axes.plot(list(found), [each.mean() for each in values], "o-", color=COLOURS[name], label=name)
            axes.fill_between(
                list(found), [v.min() for v in values], [v.max() for v in values], color=COLOURS[name], alpha=0.15
            )
        axes.axhline(1 / 3, color="0.7", linestyle=":")
        axes.set(xlabel="individual stretch", ylabel="share of shapes identified", ylim=(0, 1.03))
        axes.legend(frameon=False, fontsize="small")

    known = ", ".join(f"{name} {values.mean():.2f}" for name, values in found[0.5].items())
    for slug, name, bar, words in (
        ("stretched-rgtm", "geo-topological", 0.15, f"geo-topological matrices (quantiles {RGTM[0]} and {RGTM[1]})"),
        ("stretched-rgdm", "geodesic", 0.2, "geodesic distances (a tenth of the pairs as edges)"),
    ):
        gains = {stretch: each[name] - each["distances"] for stretch, each in found.items()}
        over_ranks = float((found[0.5][name] - found[0.5]["ranked"]).mean())

        degrees = ", ".join(
            f"{360 * share:.0f}: {(v[name] - v['distances']).mean():.2f}" for share, v in by_arc.items()
        )

        def gain(axes: Axes, slug: str = slug) -> None:
            if slug == "stretched-rgtm":
                curves(axes)
                return
            for name in TRANSFORMS:
                means = [each[name].mean() for each in by_arc.values()]
                axes.plot(360 * np.array(list(by_arc)), means, "o-", color=COLOURS[name], label=name)
            axes.set(
                xlabel="degrees that the arc covers (a ring: 360)", ylabel="share of shapes identified", ylim=(0, 1.03)
            )
            axes.legend(frameon=False, fontsize="small")

        yield Claim(
            slug,
            f"Where individuals stretch a manifold each in a way of their own, {words} tell its shape better than distances; measured "
            "is the difference of the shares identified at stretch 0.5.",
            **over_seeds(gains[0.5].tolist()),
            bar=Bar(">=", bar),
            control=float(gains[0.0].mean()),
            control_statement="the same without stretches; less than 0.05",
            control_bar=Bar(">=", 0.05),
            note=f"Ring, arc of 300 degrees and two rings, {len(np.unique(sets[0.5][0].subject))} subjects, noise 0.02, 0.05 and 0.1 in "
            f"turn: {known}. Over ranked distances the gain is {over_ranks:.2f}. By set: "
            + ", ".join(f"{each:.2f}" for each in gains[0.5])
            + f". By degrees that the arc covers: {degrees}.",
            plot=gain,
        )


def corners(sets: Sequence[Responses], step: float, n_permutations: int, seed: int) -> Claim:
    """Claim 4: the corners of the triangle are not alike."""
    means = [{corner: corner_accuracy(*_parts(one), corner, seed=seed) for corner in CORNERS} for one in sets]
    average = {corner: float(np.mean([each[corner] for each in means])) for corner in CORNERS}
    others: list[Corner] = [corner for corner in CORNERS if corner != "global"]
    compared: tuple[Corner, Corner] = (max(others, key=average.__getitem__), "global")
    best = compared[0]
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(n_permutations):
        mixed = sets[0].permuted(rng)
        pair = [corner_accuracy(*_parts(mixed), corner, 3, seed) for corner in compared]
        null.append(pair[0] - pair[1])
    triangle = identification_map(*_parts(sets[0]), step=step)
    return Claim(
        "corners",
        "The corners of the family differ, and the one of the longest distances alone is not the best; measured is the best other corner's "
        "mean share identified less that corner's, on the stretched manifolds.",
        **over_seeds([each[best] - each["global"] for each in means]),
        bar=Bar(">=", 0.05),
        control=float(np.mean(null)),
        control_statement=f"the same two corners with shapes permuted within subjects, mean of {n_permutations}",
        note="Mean share identified: " + ", ".join(f"{name} {value:.2f}" for name, value in average.items())
        + f". The map is of the first set of subjects; its best cell is {triangle.best()}.",
        plot=triangle.plot,
    )  # fmt: skip


def noise(networks: Responses, words: str, n_draws: int, seed: int) -> Claim:
    """Claim 5: noise on the distances themselves."""
    rng = np.random.default_rng(seed)
    curves: dict[str, list[float]] = {name: [] for name in ("distances", "ranked", *CORNERS)}
    for level in (*LEVELS, HUGE):
        drawn = [networks.noisy(level, rng) for _ in range(n_draws if level else 1)]
        curves["distances"].append(float(np.mean([one.accuracy() for one in drawn])))
        curves["ranked"].append(float(np.mean([one.accuracy(rank_minmax) for one in drawn])))
        for corner in CORNERS:
            curves[corner].append(float(np.mean([corner_accuracy(*_parts(one), corner, seed=seed) for one in drawn])))
    judged = [LEVELS.index(level) for level in JUDGED]
    gains = {corner: np.array(curves[corner])[judged] - np.array(curves["distances"])[judged] for corner in CORNERS}
    best = max(gains, key=lambda corner: gains[corner].mean())

    def plot(axes: Axes) -> None:
        for name, values in curves.items():
            style = {"distances": ("0.3", "-"), "ranked": ("C1", "--")}.get(name, (None, "-"))
            axes.plot(
                LEVELS, values[:-1], style[1], color=style[0], label=name, linewidth=2.5 if name == "distances" else 1.2
            )
        axes.axhline(1 / len(np.unique(networks.region)), color="0.7", linestyle=":")
        axes.set(xlabel="noise on distances, in their standard deviations", ylabel="share of layers identified")
        axes.legend(frameon=False, fontsize=6)

    at = {name: float(np.array(values)[judged].mean()) for name, values in curves.items()}
    return Claim(
        "noise",
        "Some corner of the family identifies layers at least as well as distances do under noise of 0.3 to 0.6 standard deviations on "
        "every distance; measured is the best corner's share identified less that of distances.",
        float(gains[best].mean()), Bar(">=", 0.0), max(values[-1] for values in curves.values()),
        "the best share identified under noise a thousand times as wide as the distances, where all must be near chance: no more than 0.5",
        control_bar=Bar(">", 0.5), values=tuple(gains[best].tolist()),
        note=f"{words}. Mean share identified at these levels: " + ", ".join(f"{name} {value:.2f}" for name, value in at.items()) + ".",
        plot=plot,
    )  # fmt: skip


def selection(sets: Mapping[float, Sequence[Responses]], step: float, n_boot: int, seed: int) -> Claim:
    """Claim 6: quantiles chosen on one half of the subjects, judged on the other."""
    rng = np.random.default_rng(seed)
    gains: dict[float, list[float]] = {}
    cells: list[tuple[float, float]] = []
    words = ""
    for stretch in (0.5, 0.0):
        for one in sets[stretch]:
            subjects = rng.permutation(np.unique(one.subject))
            halves = [one.of(part) for part in np.array_split(subjects, 2)]
            both = []
            for chosen_on, judged_on in (halves, halves[::-1]):
                cell = identification_map(*_parts(chosen_on), step=step).best()
                transform = partial(geo_topological, lower=cell[0], upper=cell[1])
                both.append(judged_on.accuracy(transform) - judged_on.accuracy(rank_minmax))
                if stretch:
                    cells.append(cell)
                if not words:
                    drawn = bootstrap_identification(
                        *_parts(judged_on), {"chosen": transform, "ranked": rank_minmax}, n_boot, seed=seed
                    )
                    gain, (low, high), p = drawn.difference("chosen", "ranked")
                    words = (
                        f"In the first half {gain:.2f}, 95 % bootstrap interval over subjects and stimuli {low:.2f} to {high:.2f}, "
                        f"p {p:.2g}."
                    )
            gains.setdefault(stretch, []).append(float(np.mean(both)))

    def plot(axes: Axes) -> None:
        axes.plot(*np.array(cells).T, "o", color="C0", alpha=0.6, label="chosen quantiles")
        axes.plot([0, 1], [0, 1], color="0.7")
        axes.set(xlabel="lower quantile", ylabel="upper quantile", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(frameon=False, fontsize="small", loc="lower right")

    return Claim(
        "selection",
        "Quantiles chosen on half of the subjects identify shapes in the other half better than ranked distances do; measured is the "
        "difference of the shares identified.",
        **over_seeds(gains[0.5]),
        bar=Bar(">", 0.0),
        control=float(np.mean(gains[0.0])),
        control_statement="the same for subjects without stretches; less than 0.05",
        control_bar=Bar(">=", 0.05),
        note=f"Both halves in turn, {len(gains[0.5])} sets of subjects. {words}",
        plot=plot,
    )


def _parts(one: Responses) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return one.vectors, one.subject, one.region


def _intermediate(one: Responses, seed: int) -> float:
    corner: Corner = "intermediate"
    return corner_accuracy(*_parts(one), corner, 3, seed)
