"""The claims of the feature-complexity study, from what was measured on the networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.studies._v_complexity_network import (
    LEARNED,
    Data,
    Measured,
    Setting,
    Trained,
    learning,
    memorising,
    spearman,
    still,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_PERMUTATIONS = 200


class Runs(NamedTuple):
    """Networks trained on the labels, and the same trained on shuffled ones."""

    real: list[Trained]
    shuffled: list[Measured]
    still: float
    head: str

    @property
    def memorised(self) -> bool:
        """Whether the networks with shuffled labels have learned them; else they are no control."""
        return min(run.fitted_accuracy for run in self.shuffled) >= LEARNED

    def against_shuffled(self, values: Sequence[float]) -> dict[str, Any]:
        """``measured`` and ``values`` of a claim whose control these networks are: not tested where they failed to learn."""
        return over_seeds(values) if self.memorised else {"measured": None}

    def told(self, more: str = "") -> str:
        """The setting, and what became of the networks with shuffled labels."""
        least = min(run.fitted_accuracy for run in self.shuffled)
        failed = (
            "" if self.memorised else " Not tested: they have not memorised them, so their features are no control."
        )
        return f"{self.head}{more} Networks with shuffled labels reach at least {least:.3f} training accuracy.{failed}"


def all_claims(setting: Setting, data: Data, seed: int) -> Iterator[Claim]:
    """Every claim in the order of the paper's sections."""
    seeds = setting.seeds(seed)
    real, null = [learning(setting, data, one) for one in seeds], [memorising(setting, data, one) for one in seeds]
    head = (
        f"{setting.data}; {len(real)} networks of {len(setting.sites.skips)} blocks, {setting.n_samples - setting.n_test} training and "
        f"{setting.n_test} test samples (test accuracy {np.mean([run.test_accuracy for run in real]):.3f}), "
        f"{np.mean([run.at_end.final.kept.sum() for run in real]):.0f} of {setting.n_atoms} features kept."
    )
    runs = Runs(real, null, still(setting, data, seeds[0]), head)
    yield learned_late(runs)
    yield relies_on_simple(runs)
    yield reliance_appears(runs)
    yield less_robust(runs)
    yield from rides_the_skip(runs)
    yield faithful_dictionary(runs)


def _scatter(axes: Axes, runs: Sequence[Trained], values: Sequence[np.ndarray], label: str, log: bool = False) -> None:
    for index, (run, own) in enumerate(zip(runs, values)):
        axes.plot(
            run.at_end.final.complexity,
            own,
            "o",
            markersize=3,
            alpha=0.7,
            color=f"C{index}",
            label=f"network {index + 1}",
        )
    axes.set(xlabel="complexity", ylabel=label, yscale="log" if log else "linear")
    axes.legend(frameon=False, fontsize="small")


def learned_late(runs: Runs) -> Claim:
    """Complex features become readable late in training."""
    draw = np.random.default_rng(0)
    null = [
        abs(spearman(run.at_end.final.complexity, draw.permutation(run.temporal)))
        for run in runs.real
        for _ in range(N_PERMUTATIONS)
    ]
    return Claim(
        name="learned-late",
        statement="Complex features are learned later: complexity and the time at which a feature becomes readable during "
        "training rank features alike; measured is Spearman's correlation.",
        **over_seeds([spearman(run.at_end.final.complexity, run.temporal) for run in runs.real]),
        bar=Bar(">=", 0.7),
        control=float(np.mean(null)),
        control_statement="mean absolute correlation with the times permuted, which must not exceed 0.3",
        control_bar=Bar(">", 0.3),
        note=runs.head,
        plot=lambda axes: _scatter(axes, runs.real, [run.temporal for run in runs.real], "lateness in training"),
    )


def relies_on_simple(runs: Runs) -> Claim:
    """Important features are simple ones."""
    return Claim(
        name="relies-on-simple",
        statement="The network relies on simple features: importance falls with complexity; measured is Spearman's correlation.",
        **runs.against_shuffled([run.at_end.final.correlation() for run in runs.real]),
        bar=Bar("<=", -0.4),
        control=float(np.mean([run.final.correlation() for run in runs.shuffled])),
        control_statement="the same for networks trained on shuffled labels, which must stay above -0.35",
        control_bar=Bar("<=", -0.35),
        note=runs.told(
            f" With heads of random weights, which prefer nothing, the same features give "
            f"{np.mean([run.random_head for run in runs.real]):.2f}: gradient times input counts the size of a feature, and "
            "simple features are large."
        ),
        plot=lambda axes: _scatter(
            axes,
            runs.real,
            [run.at_end.final.importance for run in runs.real],
            "importance (gradient x input)",
            log=True,
        ),
    )


def reliance_appears(runs: Runs) -> Claim:
    """That reliance grows during training."""
    early, late = [run.early for run in runs.real], [run.at_end.final.correlation() for run in runs.real]

    def plot(axes: Axes) -> None:
        for index, (one, other) in enumerate(zip(early, late)):
            axes.plot([0, 1], [one, other], "o-", color=f"C{index}", label=f"network {index + 1}")
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set_xticks([0, 1], ["after epoch 1", "at the end"])
        axes.set(ylabel="correlation of complexity and importance", xlim=(-0.3, 1.3))
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="reliance-appears",
        statement="The reliance on simple features comes with training: with a dictionary fitted anew, the correlation of "
        "complexity and importance is higher after the first epoch than at the end; measured is the difference.",
        **over_seeds([one - other for one, other in zip(early, late)]),
        bar=Bar(">=", 0.2),
        control=runs.still,
        control_statement="the same with a learning rate of 0, where nothing may change",
        note=f"{runs.head} After epoch 1 {np.mean(early):.2f}, at the end {np.mean(late):.2f}.",
        plot=plot,
    )


def less_robust(runs: Runs) -> Claim:
    """Noise on the input shakes complex features more."""
    null = [spearman(run.final.complexity, run.shaken) for run in runs.shuffled]
    return Claim(
        name="less-robust",
        statement="Complex features are less robust: the variance of a standardised feature under noise of standard deviation "
        "0.1 on the input rises with its complexity; measured is Spearman's correlation.",
        **runs.against_shuffled([spearman(run.at_end.final.complexity, run.at_end.shaken) for run in runs.real]),
        bar=Bar(">=", 0.4),
        control=float(abs(np.mean(null))),
        control_statement="absolute value of the same for networks trained on shuffled labels, at most 0.3",
        control_bar=Bar(">", 0.3),
        note=runs.told(f" Before training it is {np.mean([run.untrained_shaken for run in runs.real]):.2f}."),
        plot=lambda axes: _scatter(
            axes, runs.real, [run.at_end.shaken for run in runs.real], "variance under noise", log=True
        ),
    )


def rides_the_skip(runs: Runs) -> Iterator[Claim]:
    """Simple features are in the skip stream from the first block on, and more so than complex ones."""
    ends = [run.at_end for run in runs.real]
    first, null = ([run.travel.summary()["simple_skip_first"] for run in side] for side in (ends, runs.shuffled))
    curves = [run.travel.curves() for run in ends]
    contrast = np.mean([c["simple skip"].mean() - c["simple branch"].mean() for c in curves])
    other = np.mean([c["complex skip"].mean() - c["complex branch"].mean() for c in curves])
    yield Claim(
        name="skip-first",
        statement="Simple features ride the skip stream: the alignment (linear CKA) of the simplest quarter with the input of "
        "the first block is most of that with the last block's; measured is the ratio.",
        **runs.against_shuffled(first),
        bar=Bar(">=", 0.6),
        control=float(np.mean(null)),
        control_statement="the same for networks trained on shuffled labels, at most 0.4",
        control_bar=Bar(">", 0.4),
        note=runs.told(
            f" Skip less branch, mean over blocks: {contrast:+.3f} for simple features, {other:+.3f} for complex ones; that the "
            "branches carry little of simple features is the paper's statement about a real ResNet."
        ),
        plot=lambda axes: ends[0].travel.plot(axes),
    )
    draw = np.random.default_rng(0)
    gaps = [_smallest_gap(run, run.final.complexity) for run in ends]
    permuted = [
        _smallest_gap(run, draw.permutation(run.final.complexity)) for run in ends for _ in range(N_PERMUTATIONS)
    ]

    def plot(axes: Axes) -> None:
        for index, curve in enumerate(curves):
            axes.plot(
                curve["simple skip"] - curve["complex skip"], "o-", color=f"C{index}", label=f"network {index + 1}"
            )
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set(xlabel="block", ylabel="alignment with the skip stream,\nsimple less complex")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        name="skip-simple",
        statement="Simple features are more present in the skip stream than complex ones at every block; measured is the "
        "smallest difference of the two quarters' alignment over blocks.",
        **over_seeds(gaps),
        bar=Bar(">", 0.0),
        control=float(np.mean(permuted)),
        control_statement="the same with complexities permuted among features, on average",
        note=runs.head,
        plot=plot,
    )


def _smallest_gap(run: Measured, complexity: np.ndarray) -> float:
    """Smallest difference over blocks between the simplest and the most complex quarter's alignment with the skip stream."""
    order, quarter = np.argsort(complexity, kind="stable"), len(complexity) // 4
    table = run.travel.skip
    return float((np.nanmean(table[:, order[:quarter]], 1) - np.nanmean(table[:, order[-quarter:]], 1)).min())


def faithful_dictionary(runs: Runs) -> Claim:
    """Nothing that matters is lost in the dictionary."""
    kept, random = ([getattr(run, name) for run in runs.real] for name in ("kept_accuracy", "random_accuracy"))

    def plot(axes: Axes) -> None:
        axes.bar(["dictionary", "random dictionary"], [np.mean(kept), np.mean(random)], color=["C0", "C3"])
        axes.axhline(0.99, color="0.3", linestyle="--")
        axes.set(ylabel="share of accuracy kept", ylim=(0, 1.05))

    fitted = np.mean([run.at_end.final.dictionary.reconstruction_ for run in runs.real])
    return Claim(
        name="faithful",
        statement="The dictionary stands for the layer: with the last layer replaced by its reconstruction the network keeps "
        "its test accuracy; measured is the share kept.",
        **over_seeds(kept),
        bar=Bar(">=", 0.99),
        control=float(np.mean(random)),
        control_statement="the same with a random non-negative dictionary of that size and exact codes",
        note=f"{runs.head} The dictionary explains {fitted:.3f} of the variance of the training samples.",
        plot=plot,
    )
