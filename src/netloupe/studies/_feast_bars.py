"""The dynamics of adaptive thresholds on moving bars whose directions are known (arXiv 1907.07853)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.event_simulation import moving_bars
from netloupe.lenses.dictionary.feast import Feast
from netloupe.lenses.geometry.code_classes import purity

PATCH, TAU, ETA, SENSOR = 9, 10e-3, 0.01, (34, 34)


Scores = dict[str, list[dict[int, tuple[float, float, float]]]]  # method: for each seed: size: evenness, spread, purity


@dataclass(frozen=True)
class Sizes:
    """``n_events`` of a camera, of which about six in ten are away from the border; network sizes; the ``last`` events that
    count; events of the ``long`` run."""

    n_events: int = 97_000
    networks: tuple[int, ...] = (8, 16, 32)
    last: int = 10_000
    long: int = 500_000
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    window: int = 2000


def network(n: int, seed: int, **options: Any) -> Feast:
    """The network of all claims here."""
    settings = {"eta": ETA, "per_polarity": False, "sensor": SENSOR, "seed": seed} | options
    return Feast(n, PATCH, TAU, **settings)


def balance(sizes: Sizes, seeds: range) -> tuple[Claim, ...]:
    """Miss rate, evenness of wins and purity, with thresholds, without, and with thresholds that only rise."""
    missed, tightened, largest = [], [], sizes.networks[-1]
    scores: Scores = {"feast": [], "wta": [], "random": []}
    curve: tuple[np.ndarray, np.ndarray, float] = (np.empty(0), np.empty(0), 0.0)
    drawn: Feast | None = None
    for seed in seeds:
        events, _ = moving_bars(sizes.n_events, seed=seed)
        fresh, direction = moving_bars(max(sizes.n_events // 3, 1), seed=seed + 1000)
        gaps, only = [], []
        for name in scores:
            scores[name].append({})
        for n in sizes.networks:
            made = {
                "feast": network(n, seed), "wta": network(n, seed, adaptive=False),
                "random": network(n, seed, adaptive=False, eta=0.0),
            }  # fmt: skip
            for name, feast in made.items():
                found = feast.fit(events).populations_[0]
                wins, labels = found.wins(sizes.last), feast.transform(fresh)
                known = (labels >= 0) & (direction >= 0)
                scores[name][-1][n] = (
                    found.evenness(sizes.last), float(wins.std() / wins.mean()), purity(labels[known], direction[known]),
                )  # fmt: skip
            found = made["feast"].populations_[0]
            expected = found.expected_miss_rate
            gaps.append(abs(found.miss_rate(sizes.last) / expected - 1))
            closing = network(n, seed, loosen=0.0, thresholds="random").fit(events).populations_[0]
            only.append(abs(closing.miss_rate(sizes.last) / expected - 1))
            if n == largest:
                curve, drawn = (found.history_.seen, found.history_.miss_rate, expected), made["feast"]
        missed.append(max(gaps))
        tightened.append(min(only))
    return (
        _missed(missed, tightened, curve),
        *_even(sizes, scores, drawn),
        _pure(sizes, scores),
    )


def _missed(missed: list[float], tightened: list[float], curve: tuple[np.ndarray, np.ndarray, float]) -> Claim:
    def plot(axes: Any) -> None:
        seen, rate, expected = curve
        axes.plot(seen, rate, lw=1)
        axes.axhline(expected, color="0.4", ls="--", label="in balance")
        axes.set(xlabel="events", ylabel="missed, largest network", yscale="symlog", ylim=(0, 1.1))
        axes.set_yscale("symlog", linthresh=0.01)
        axes.legend()

    return Claim(
        "miss-rate", "the share of events that no feature claims ends at gain / (gain + N loosen) (largest relative deviation over N)",
        **over_seeds(missed), bar=Bar("<=", 0.3), control=float(np.mean(tightened)),
        control_statement="thresholds that only tighten (loosen 0, started at random); the smallest deviation over N",
        note="over the last events of the run, not in the long run", plot=plot,
    )  # fmt: skip


def long_run(sizes: Sizes, seeds: range) -> Claim:
    """Evenness of wins in the second half of a run that is long beside a bar."""
    found: dict[bool, list[list[float]]] = {True: [], False: []}
    spread = []
    for seed in seeds:
        events, _ = moving_bars(sizes.long, seed=seed)
        for adaptive in found:
            made = [network(n, seed, adaptive=adaptive).fit(events).populations_[0] for n in sizes.networks]
            found[adaptive].append([p.evenness(p.n_seen_ // 2) for p in made])
            if adaptive:
                spread.append([(w := p.wins(p.n_seen_ // 2)).std() / w.mean() for p in made])
    by_size = {name: np.mean(found[key], 0) for name, key in (("feast", True), ("wta", False))}

    def plot(axes: Any) -> None:
        for name, values in by_size.items():
            axes.plot(sizes.networks, values, marker="o", label=name)
        axes.set(xlabel="features", ylabel="entropy of wins / log N", xscale="log", ylim=(0, 1.05))
        axes.set_xticks(sizes.networks, [str(n) for n in sizes.networks])
        axes.minorticks_off()
        axes.legend()

    return Claim(
        "homeostasis-long-run", f"the same entropy in the second half of a run of {sizes.long} events (smallest over N)",
        **over_seeds([min(values) for values in found[True]]), bar=Bar(">=", 0.99), control=float(by_size["wta"].max()),
        control_statement="winner-take-all without thresholds on the same run, largest over N", plot=plot,
        note=f"standard deviation of wins over their mean at most {np.mean(spread, 0).max():.2f}",
    )  # fmt: skip


def _even(sizes: Sizes, scores: Scores, drawn: Feast | None) -> tuple[Claim, Claim]:
    def table(name: str, which: int) -> np.ndarray:
        return np.array([[seed[n][which] for n in sizes.networks] for seed in scores[name]])

    def bars(axes: Any) -> None:
        for offset, name, color in ((-0.2, "feast", "C0"), (0.2, "wta", "0.6")):
            axes.bar(np.arange(len(sizes.networks)) + offset, table(name, 0).mean(0), 0.4, color=color, label=name)
        axes.set_xticks(range(len(sizes.networks)), [str(n) for n in sizes.networks])
        axes.set(xlabel="features", ylabel="entropy of wins / log N")
        axes.legend(fontsize="small", loc="lower left")

    def surfaces(axes: Any) -> None:
        assert drawn is not None
        drawn.plot(axes)
        axes.set_xlabel(f"the {sizes.networks[-1]} features: brighter pixels fired later")

    each = ", ".join(f"{n}: {v:.3f}" for n, v in zip(sizes.networks, table("feast", 0).mean(0), strict=True))
    spread = ", ".join(f"{n}: {v:.2f}" for n, v in zip(sizes.networks, table("feast", 1).mean(0), strict=True))
    return (
        Claim(
            "homeostasis", "every feature wins equally often (entropy of the wins over log N, smallest over N)",
            **over_seeds(table("feast", 0).min(1).tolist()), bar=Bar(">=", 0.99), control=float(table("wta", 0).mean(0).max()),
            control_statement="winner-take-all without thresholds, largest over N", note=f"by N: {each}",
            plot=bars,
        ),
        Claim(
            "equal-shares", "the numbers of wins differ little (their standard deviation over their mean, largest over N)",
            **over_seeds(table("feast", 1).max(1).tolist()), bar=Bar("<=", 0.2), control=float(table("wta", 1).mean(0).min()),
            control_statement="winner-take-all without thresholds, smallest over N", note=f"by N: {spread}",
            plot=surfaces,
        ),
    )  # fmt: skip


def _pure(sizes: Sizes, scores: Scores) -> Claim:
    small, large = sizes.networks[0], sizes.networks[-1]

    def of(name: str, n: int) -> np.ndarray:
        return np.array([seed[n][2] for seed in scores[name]])

    rise = of("feast", large) - of("feast", small)
    numbers = "; ".join(f"{name} " + "/".join(f"{of(name, n).mean():.3f}" for n in sizes.networks) for name in scores)

    def plot(axes: Any) -> None:
        for name in scores:
            axes.plot(sizes.networks, [of(name, n).mean() for n in sizes.networks], marker="o", label=name)
        axes.set(xlabel="features", ylabel="purity by direction", xscale="log")
        axes.set_xticks(sizes.networks, [str(n) for n in sizes.networks])
        axes.minorticks_off()
        axes.legend()

    return Claim(
            "size-pays", f"with thresholds more features tell directions better (rise of purity from {small} to {large} features)",
            **over_seeds(rise.tolist()), bar=Bar(">=", 0.1), control=float(np.mean(of("wta", large) - of("wta", small))),
            control_statement="the rise of winner-take-all without thresholds, which must stay below .03", control_bar=Bar(">=", 0.03),
            note=f"purity on fresh bars at {'/'.join(map(str, sizes.networks))}: {numbers} (random: features as they start)", plot=plot,
        )  # fmt: skip


def convergence(sizes: Sizes, seeds: range, n: int = 16) -> tuple[Claim, Claim]:
    """Drift of thresholds beside drift of weights, window by window."""
    ranks, shuffled, apart, chance = [], [], [], []
    history: Any = None
    for seed in seeds:
        events, _ = moving_bars(sizes.n_events, seed=seed)
        history = network(n, seed, log_every=sizes.window).fit(events).history_[0]
        thresholds, weights = history.threshold_drift, history.weight_drift
        mixed = np.random.default_rng(seed).permutation(len(weights))
        ranks.append(float(np.asarray(spearmanr(thresholds, weights))[0]))
        shuffled.append(float(np.asarray(spearmanr(thresholds, weights[mixed]))[0]))
        slow = network(n, seed, log_every=sizes.window, eta=ETA / 10).fit(events).history_[0]
        apart.append(_apart(thresholds, weights))
        chance.append(_apart(thresholds, slow.weight_drift))

    def plot(axes: Any) -> None:
        axes.plot(history.seen, history.threshold_drift, label="thresholds")
        axes.plot(history.seen, history.weight_drift, label="weights")
        axes.set(xlabel="events", ylabel="drift in a window", yscale="log")
        axes.legend()

    def scatter(axes: Any) -> None:
        axes.loglog(history.threshold_drift, history.weight_drift, "o", ms=3)
        axes.minorticks_off()
        axes.set(xlabel="drift of thresholds", ylabel="drift of weights")

    return (
        Claim(
            "convergence", "the thresholds' drift tells the weights' drift (rank correlation over windows)",
            **over_seeds(ranks), bar=Bar(">=", 0.7), control=float(np.mean(shuffled)),
            control_statement="the windows of the weights shuffled", plot=scatter,
            note=f"windows of {sizes.window} events, {n} features",
        ),
        Claim(
            "flat-together", "both drifts become flat at the same event (difference over the later of the two)",
            **over_seeds(apart), bar=Bar("<=", 0.25), control=float(np.mean(chance)),
            control_statement="the weights of a network that learns ten times slower, beside the same thresholds", plot=plot,
            note="flat: the first window at a tenth of the way between the mean of the last quarter and the first window",
        ),
    )  # fmt: skip


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    def flat(drift: np.ndarray) -> int:
        end = drift[-max(len(drift) // 4, 1) :].mean()
        return 1 + int(np.argmax(drift <= end + 0.1 * max(drift.max() - end, 0.0)))

    a, b = flat(one), flat(other)
    return abs(a - b) / max(a, b)


def network_sizes(sizes: Sizes, seeds: range) -> tuple[Claim, Claim]:
    """At which size a feature for noise appears, by share of noise and by number of directions."""
    reached, without, ratios, repeats = [], [], [], []
    curves: dict[str, tuple[float, ...]] = {}

    def tried(directions: int, noise: float, seed: int) -> Any:
        shares = [1 / directions] * directions
        events, _ = moving_bars(sizes.n_events, directions, shares, noise, seed=seed)
        return network(1, seed).size_heuristic(events, sizes.sizes)

    found: dict[int, list[int]] = {2: [], 4: [], 8: []}
    for seed in seeds:
        by_noise = {noise: tried(8, noise, seed) for noise in (0.0, 0.1, 0.3)}
        reached.append(min(max(by_noise[noise].closest) for noise in (0.1, 0.3)))
        without.append(max(by_noise[0.0].closest))
        curves = {f"{noise:.0%} noise": result.closest for noise, result in by_noise.items()}
        for directions in found:
            result = by_noise[0.1] if directions == 8 else tried(directions, 0.1, seed)
            found[directions].append(result.found or 2 * sizes.sizes[-1])
        ratios.append(min(found[4][-1] / found[2][-1], found[8][-1] / found[4][-1]))
        again = [found[2][-1], *(tried(2, 0.1, seed + 100 * k).found or 2 * sizes.sizes[-1] for k in (1, 2))]
        repeats.append(min(again[1] / again[0], again[2] / again[1]))

    def plot(axes: Any) -> None:
        for name, values in curves.items():
            axes.plot(sizes.sizes, values, marker="o", label=name)
        axes.axhline(0.9, color="0.4", ls="--")
        axes.set(xlabel="features", ylabel="closest to an isolated event", xscale="log")
        axes.set_xticks(sizes.sizes, [str(n) for n in sizes.sizes])
        axes.minorticks_off()
        axes.legend(fontsize="small")

    def grown(axes: Any) -> None:
        for number, column in enumerate(zip(*found.values(), strict=True)):
            axes.plot(list(found), column, marker="o", label=f"stream {number + 1}")
        axes.legend(fontsize="small")
        axes.set(xlabel="directions", ylabel="smallest size with a noise feature", xscale="log", yscale="log")
        axes.set_xticks(list(found), [str(n) for n in found])
        axes.set_yticks(sizes.sizes, [str(n) for n in sizes.sizes])
        axes.minorticks_off()

    listed = "; ".join(f"{n} directions: {', '.join(map(str, values))}" for n, values in found.items())
    return (
        Claim(
            "noise-feature", "with noise some feature comes to stand for isolated events (largest cosine over sizes; the lesser of two)",
            **over_seeds(reached), bar=Bar(">", 0.9), control=float(np.max(without)),
            control_statement="the same without noise, largest over seeds", plot=plot, note="10 and 30 % of the events are noise",
        ),
        Claim(
            "size-grows", "the smallest size with a noise feature grows with the number of directions, 2, 4, 8 (smaller of the two ratios)",
            **over_seeds(ratios), bar=Bar(">", 1.0), control=float(np.mean(repeats)),
            control_statement="the same ratios between three streams that all have two directions",
            note=f"{listed} ({2 * sizes.sizes[-1]}: none found)", plot=grown,
        ),
    )  # fmt: skip
