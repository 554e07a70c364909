"""The claims of the representation-bias study, from trained networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.control.steering import mean_difference_direction
from netloupe.lenses.similarity.rsa import rsa
from netloupe.studies._representation_bias_network import Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_STIMULI = 400
Named = dict[str, list[Trained]]
UNTESTED = "Order, prevalence and dropout need trainings of thousands of steps, which this preset leaves out."


@dataclass(frozen=True)
class Networks:
    """All networks by name, one list entry a seed; ``deep`` (Adam) and ``sgd`` are None where the preset has none."""

    shallow: Named
    before: list[Trained]
    deep: Named | None
    sgd: Named | None


def inequality(nets: Networks) -> Iterator[Claim]:
    """Simple features take more variance than complex ones, equal ones as much as each other."""
    easy_hard, hards = nets.shallow["easy-hard"], nets.shallow["hards"]
    equals = hards + nets.shallow["easies"]
    for name, group, hard in (
        ("simple-xor", "easy-hard", "XOR of two"),
        ("simple-parity", "easy-harder", "parity of three"),
    ):
        runs = nets.shallow[group]
        more = "" if nets.sgd is None or name != "simple-xor" else (
            f" The deeper network with SGD: {told(nets.sgd['together'])}; with Adam: {told((nets.deep or {})['dropout 0'])}."
        )  # fmt: skip
        yield Claim(
            name=name,
            statement=f"A majority of five takes more variance of the last hidden layer than {hard}, both learned perfectly; "
            "measured is the smallest ratio over seeds.",
            measured=min(run.ratio for run in runs),
            bar=Bar(">=", 1.5),
            control=float(np.mean([run.ratio for run in hards])),
            control_statement="the ratio for two XORs, which are equally complex",
            note=f"Two layers of 128 ReLU, Adam: {told(runs)}; {matched(runs + hards)}{more}",
            plot=_growth(easy_hard[0]) if name == "simple-xor" else _shares({"majority": (runs, 0), hard: (runs, 1)}),
        )
    worst = max(abs(math.log(run.ratio)) if 0 < run.ratio < math.inf else math.inf for run in equals)
    yield Claim(
        name="equal-features",
        statement="Two features of equal complexity share alike: the ratio of their shares is within 0.8 and 1.25; measured is "
        "the largest |log ratio| over pairs of XORs, pairs of majorities and seeds.",
        measured=worst,
        bar=Bar("<=", math.log(1.25)),
        control=min(abs(math.log(run.ratio)) for run in easy_hard),
        control_statement="the same, smallest over seeds, for a majority and an XOR",
        note=f"Two XORs {told(hards)}; two majorities {told(nets.shallow['easies'])}; {matched(equals)}",
        plot=_points(
            {
                "two XORs": [r.ratio for r in hards],
                "two majorities": [r.ratio for r in nets.shallow["easies"]],
                "majority, XOR": [r.ratio for r in easy_hard],
            },
            "ratio of shares",
            (0.8, 1.25),
        ),
    )
    yield Claim(
        name="untrained",
        statement="Before training neither feature takes variance; measured is the larger share.",
        **over_seeds([max(run.shares) for run in nets.before]),
        bar=Bar("<=", 0.02),
        control=float(np.mean([min(run.shares) for run in easy_hard])),
        control_statement="the smaller share after training",
        note=f"Before training: {told(nets.before)}.",
        plot=_points(
            {"before": [max(r.shares) for r in nets.before], "after": [min(r.shares) for r in easy_hard]},
            "share of variance",
            (0.02,),
        ),
    )


def regimes(nets: Networks, dropouts: Sequence[float]) -> Iterator[Claim]:
    """What the order, the prevalence and dropout do."""
    sgd, deep = nets.sgd, nets.deep
    first = (
        "order-first", "Of two XORs the one that was trained first takes more variance in the end, under SGD; measured is the "
        "ratio of shares.", Bar(">=", 1.15), "the same ratio where both were trained from the start",
    )  # fmt: skip
    shrinks = (
        "hard-first-shrinks", "Training the XOR before the majority makes the majority's lead smaller, under SGD; measured is by "
        "how much.", Bar(">", 0.0), "the same for training the majority before the XOR, which should not",
    )  # fmt: skip
    stays = (
        "hard-first-stays", "It does not remove that lead; measured is the majority's share less the XOR's.", Bar(">", 0.0),
        "the same with a learning rate of 0 in the second half, that is, for the XOR alone",
    )  # fmt: skip
    rare = (
        "prevalence", "Of two XORs the one labelled in all samples takes more variance than one labelled in a tenth of them; "
        "measured is the ratio.", Bar(">=", 1.3), "the same ratio where both are labelled in all samples",
    )  # fmt: skip
    drop = (
        "dropout", f"Dropout closes the lead of the majority: it falls from rate to rate over {', '.join(map(str, dropouts))}; "
        "measured is the smaller of the two falls.", Bar(">", 0.0),
        "the same for three networks without dropout, in place of the three rates, averaged over their cyclic orders",
    )  # fmt: skip
    if sgd is None or deep is None:
        for name, statement, bar, control in (first, shrinks, stays, rare, drop):
            yield Claim(name, statement, None, bar, None, control, note=UNTESTED)
        return
    head = "Layers of 256, 128, 64, 64, leaky ReLU, SGD 0.01 with momentum 0.9."
    runs, both = sgd["one first"], sgd["hards"]
    yield _claim(
        first, [run.ratio for run in runs], float(np.mean([run.ratio for run in both])),
        f"{head} One first {told(runs)}, both {told(both)}; ratios by seed "
        f"{listed(run.ratio for run in runs)}; {matched(runs + both)} With Adam: one first "
        f"{told(deep['one first'])}, both {told(deep['hards'])}.",
        _points({"one first": [r.ratio for r in runs], "both": [r.ratio for r in both],
                 "one first, Adam": [r.ratio for r in deep["one first"]]}, "ratio of shares", (1.15,)),
    )  # fmt: skip
    together, hard_first, easy_first = (sgd[name] for name in ("together", "hard first", "easy first"))
    falls, other = ([t.gap - run.gap for t, run in zip(together, group)] for group in (hard_first, easy_first))
    note = (
        f"{head} Together {told(together)}, XOR first {told(hard_first)}, majority first {told(easy_first)}; "
        f"{matched(together + hard_first + easy_first)} With Adam: XOR first {told(deep['hard first'])}, majority first "
        f"{told(deep['easy first'])}."
    )
    if min(falls) < 0:
        note += f" By how much it shrinks differs by seed ({listed(falls)}); so does the lead itself ({listed(r.gap for r in together)})."
    gaps = {name: [run.gap for run in sgd[name]] for name in ("together", "hard first", "easy first")}
    yield _claim(shrinks, falls, float(np.mean(other)), note, _points(gaps, "share of majority less XOR", (0.0,)))
    still = [run.shares_of(run.halfway) for run in hard_first if run.halfway is not None]
    still = [shares[0] - shares[1] for shares in still]
    lead = {"XOR first": [run.gap for run in hard_first], "XOR alone": still}
    yield _claim(
        stays, [run.gap for run in hard_first], float(np.mean(still)), note,
        _points(lead, "share of majority less XOR", (0.0,)),
    )  # fmt: skip
    runs, both = deep["rare"], deep["hards"]
    yield _claim(
        rare, [run.ratio for run in runs], float(np.mean([run.ratio for run in both])),
        f"Layers of 256, 128, 64, 64, leaky ReLU, Adam 0.001. Rare {told(runs)}, both frequent {told(both)}; "
        f"ratios by seed {listed(run.ratio for run in runs)}, both frequent {listed(run.ratio for run in both)}; {matched(runs + both)}",
        _points({"one rare": [r.ratio for r in runs], "both frequent": [r.ratio for r in both]}, "ratio of shares", (1.3,)),
    )  # fmt: skip
    groups = [deep[f"dropout {rate:g}"] for rate in dropouts]
    table = np.array([[run.gap for run in group] for group in groups])
    plain = table[0]
    turned = [np.roll(plain, shift)[:3] for shift in range(len(plain))]
    yield _claim(
        drop, (-np.diff(table, axis=0)).min(0).tolist(), float(np.mean([(-np.diff(each)).min() for each in turned])),
        "Layers of 256, 128, 64, 64, leaky ReLU, Adam 0.001, dropout after every hidden layer. "
        + "; ".join(f"dropout {rate:g}: {told(group)}" for rate, group in zip(dropouts, groups))
        + f". Lead by seed {listed(table[0])}; {listed(table[1])}; {listed(table[2])}; "
        f"{matched([run for group in groups for run in group])}",
        _points({f"{rate:g}": list(row) for rate, row in zip(dropouts, table)}, "share of majority less XOR", (0.0,), "dropout"),
    )  # fmt: skip


def consequences(nets: Networks) -> Iterator[Claim]:
    """What unequal variance does to those who read importance from it."""
    runs, easy, hard = (nets.shallow[name] for name in ("easy-hard", "easy", "hard"))
    head = f"Majority and XOR, two layers of 128 ReLU, Adam; {matched(runs)}"
    scores = np.array([_alike(*[net.representation[:N_STIMULI] for net in nets_]) for nets_ in zip(runs, easy, hard)])
    equal = np.array([
        _alike(_levelled(a, (0, 1)), _levelled(b, (0,)), _levelled(c, (1,))) for a, b, c in zip(runs, easy, hard)
    ])  # fmt: skip
    yield Claim(
        name="rsa",
        statement="RSA is ruled by the easy feature: a network trained on both is more like one trained on the majority alone "
        "than like one trained on the XOR alone; measured is the difference of the rank correlations.",
        **over_seeds((scores[:, 0] - scores[:, 1]).tolist()),
        bar=Bar(">=", 0.2),
        control=float(np.abs(equal[:, 0] - equal[:, 1]).mean()),
        control_statement="absolute difference with each network's representation replaced by the class means of the features it "
        "was trained on, each scaled to equal variance; below 0.1",
        control_bar=Bar(">=", 0.1),
        note=f"{head} {N_STIMULI} stimuli; like the easy network {scores[:, 0].mean():.3f}, like the hard one {scores[:, 1].mean():.3f}, "
        f"easy and hard {scores[:, 2].mean():.3f}.",
        plot=_points(
            {"easy": scores[:, 0], "hard": scores[:, 1]},
            "RSA with the network\ntrained on both",
            (),
            "network trained on",
        ),
    )
    one, two = ([run.projected(run.components(k)) for run in runs] for k in (1, 2))
    own = [run.projected(_difference(run, 1))[1] for run in runs]
    random = [[run.projected(_random_direction(run, draw))[0] for draw in range(5)] for run in runs]
    curves = _pc_curves(runs[0])
    yield Claim(
        name="pc-easy",
        statement="The first principal component alone keeps the majority; measured is its accuracy from that component.",
        **over_seeds([each[0] for each in one]),
        bar=Bar(">=", 0.95),
        control=float(np.mean(random)),
        control_statement="the same from one random direction",
        note=head,
        plot=_points(
            {"first component": [each[0] for each in one], "random": np.mean(random, 1)},
            "accuracy of majority",
            (0.95,),
        ),
    )
    yield Claim(
        name="pc-hard",
        statement="It loses the XOR; measured is the XOR's accuracy from that component.",
        **over_seeds([each[1] for each in one]),
        bar=Bar("<=", 0.65),
        control=float(np.mean(own)),
        control_statement="the same from one direction as well, the difference of the XOR's class means",
        note=f"{head} From two components {np.mean([each[1] for each in two]):.3f}.",
        plot=curves,
    )
    flips = [(run.flips(0), run.flips(1)) for run in runs]
    found = [[curve.summary() for curve in pair] for pair in flips]
    norms = np.array([[each["norm_to_flip"] for each in pair] for pair in found])
    chance = float(np.mean([each["random_flip_rate"] for pair in found for each in pair]))
    intact = [min(each["others_intact"] for each in pair) for pair in found]
    yield Claim(
        name="flip-norm",
        statement="A larger move is needed to flip the majority than the XOR; measured is the ratio of the lengths that flip 90 %.",
        **over_seeds((norms[:, 0] / norms[:, 1]).tolist()),
        bar=Bar(">", 1.0),
        control=chance,
        control_statement="share flipped by random directions of the same length, at most 0.1",
        control_bar=Bar(">", 0.1),
        note=f"{head} Lengths {norms[:, 0].mean():.2f} and {norms[:, 1].mean():.2f}; every move flips at least "
        f"{min(each['flip_rate'] for pair in found for each in pair):.2f}.",
        plot=_flip_plot(flips[0]),
    )
    yield Claim(
        name="flip-intact",
        statement="That move leaves the other feature as it was; measured is the accuracy of the less preserved one.",
        **over_seeds(intact),
        bar=Bar(">=", 0.95),
        control=float(np.mean([1 - each["flip_rate"] for pair in found for each in pair])),
        control_statement="the accuracy of the feature that is flipped, against its old value",
        note=head,
        plot=_points(
            {"other feature": intact, "flipped": [1 - pair[0]["flip_rate"] for pair in found]}, "accuracy", (0.95,)
        ),
    )
    follow, never = ([_downstream(run) for run in group] for group in (runs, hard))
    yield Claim(
        name="downstream",
        statement="A reader fitted where both features agree follows the majority where they differ; measured is the share.",
        **over_seeds(follow),
        bar=Bar(">", 0.5),
        control=float(np.mean(never)),
        control_statement="the same in a network that was never trained on the majority",
        note=f"{head} Logistic regression with scikit-learn's default penalty on the representation as it is.",
        plot=_points(
            {"both": follow, "XOR alone": never}, "share following the majority", (0.5,), "network trained on"
        ),
    )


def told(runs: Sequence[Trained]) -> str:
    """Mean shares, for notes."""
    return " / ".join(f"{value:.3f}" for value in np.mean([run.shares for run in runs], 0))


def listed(values: Iterable[float]) -> str:
    """One number a seed, for notes."""
    return ", ".join(f"{value:.2f}" for value in values)


def matched(runs: Sequence[Trained]) -> str:
    """Whether the comparison is on equal terms: accuracy, and the training loss that is left."""
    failed = sum(not run.matched for run in runs)
    loss = np.mean([run.loss for run in runs], 0)
    text = (
        "all features above 0.99 test accuracy"
        if not failed
        else f"NOT MATCHED: {failed} of {len(runs)} networks below 0.99"
    )
    return f"{text}, training loss {' / '.join(f'{value:.1e}' for value in loss)}."


def _claim(
    words: tuple[str, str, Bar, str], values: Sequence[float], control: float, note: str, plot: Callable[[Axes], None]
) -> Claim:
    name, statement, bar, control_statement = words
    return Claim(name, statement, **over_seeds(values), bar=bar, control=control, control_statement=control_statement,
                 note=note, plot=plot)  # fmt: skip


def _alike(both: Tensor, easy: Tensor, hard: Tensor) -> tuple[float, float, float]:
    return rsa(both, easy).correlation, rsa(both, hard).correlation, rsa(easy, hard).correlation


def _levelled(run: Trained, features: tuple[int, ...]) -> Tensor:
    """Class means alone, every feature's direction scaled to length 1."""
    phi, values = run.representation, torch.from_numpy(run.values)
    total = torch.zeros(N_STIMULI, phi.shape[1], dtype=torch.float64)
    for j in features:
        direction = mean_difference_direction(phi, values[:, j])
        total += (2.0 * values[:N_STIMULI, j] - 1)[:, None] * direction / direction.norm()
    return total


def _difference(run: Trained, feature: int) -> Tensor:
    direction = mean_difference_direction(run.representation, run.values[:, feature])[:, None].float()
    return direction / direction.norm()


def _random_direction(run: Trained, seed: int) -> Tensor:
    drawn = torch.randn(run.representation.shape[1], 1, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def _downstream(run: Trained) -> float:
    phi, (easy, hard) = run.representation.double().numpy(), run.values.T
    agree = easy == hard
    reader = LogisticRegression(max_iter=2000).fit(phi[agree], easy[agree])
    return float((reader.predict(phi[~agree]) == easy[~agree]).mean())


def _points(
    groups: Mapping[str, Sequence[float] | np.ndarray], label: str, lines: Sequence[float], xlabel: str = ""
) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for place, values in enumerate(groups.values()):
            axes.bar(place, float(np.mean(values)), width=0.6, color=f"C{place}", alpha=0.35)
            axes.plot(np.full(len(values), place), values, "o", color=f"C{place}", markersize=4)
        for line in lines:
            axes.axhline(line, color="0.4", linestyle="--", linewidth=1)
        if label.startswith("ratio"):
            axes.set_yscale("log")
            axes.minorticks_off()
            every = [value for values in groups.values() for value in values]
            ticks = [tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(every) / 2.5 < tick < 2.5 * max(every)]
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set(ylabel=label, xlabel=xlabel)

    return plot


def _shares(groups: Mapping[str, tuple[Sequence[Trained], int]]) -> Callable[[Axes], None]:
    return _points(
        {name: [run.shares[j] for run in runs] for name, (runs, j) in groups.items()}, "share of variance", ()
    )


def _growth(run: Trained) -> Callable[[Axes], None]:
    """Shares over training, all divided by the final variance."""

    def plot(axes: Axes) -> None:
        total = float(run.representation.double().var(0, correction=0).sum())
        steps = [step for step, _ in run.looks]
        curves = np.array([run.shares_of(phi, total) for _, phi in run.looks])
        for j, name in enumerate(("majority", "XOR")):
            axes.plot(steps, curves[:, j], "o-", markersize=3, label=name)
        axes.set(xlabel="step", ylabel="share of the final variance")
        axes.legend(frameon=False, fontsize="small")

    return plot


def _pc_curves(run: Trained) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        kept = range(1, 7)
        curves = np.array([run.projected(run.components(k)) for k in kept])
        for j, name in enumerate(("majority", "XOR")):
            axes.plot(kept, curves[:, j], "o-", label=name)
        axes.set(xlabel="principal components kept", ylabel="accuracy")
        axes.legend(frameon=False, fontsize="small")

    return plot


def _flip_plot(pair: tuple) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for j, (curve, name) in enumerate(zip(pair, ("majority", "XOR"))):
            axes.plot(curve.norms, curve.flipped, "o-", markersize=3, color=f"C{j}", label=name)
            axes.plot(curve.norms, curve.random, ":", color=f"C{j}")
        axes.plot([], [], ":", color="0.4", label="random moves")
        axes.set(xlabel="length of the move", ylabel="share flipped")
        axes.legend(frameon=False, fontsize="small")

    return plot
