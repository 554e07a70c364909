"""The claims of the feature-merging study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.lenses.similarity.feature_merging import MergeResult, merge_agreement, merge_features
from netloupe.models.small import DigitsCNN, mlp
from netloupe.studies._feature_merging_network import (
    Data,
    Nets,
    Setting,
    activations,
    train_nets,
    with_copies,
    without_smallest,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETA = 0.1
PLANTED_BETA = (
    0.02  # far below the distances of random units, above those of copies whose outgoing weights differ by a tenth
)
REMOVED = 0.35  # in the middle of the 30 to 40 % that are compared with pruning
LOST = 0.01  # accuracy that widths are compared at


def duplicates(seed: int) -> Iterator[Claim]:
    """Planted copies merge back without a change, and copies with the other sign do not merge."""
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    changes, official, restored, merged = [], [], [], {True: [], False: []}
    for model in _networks(seed):
        for flip in (False, True):
            wide, widths = with_copies(model, images[:1], 0.5, flip, seed)
            result = merge_features(wide, images[:1], PLANTED_BETA)
            planted = sum(result.original.values()) - sum(widths.values())
            merged[flip].append(len(result.merges) / planted)
            if not flip:
                changes.append(_change(wide, result, images))
                restored.append(result.complexity == widths)
                if any(isinstance(part, nn.BatchNorm2d) for part in wide.modules()):
                    official.append(
                        _change(wide, merge_features(wide, images[:1], PLANTED_BETA, bn="official"), images)
                    )
                    exact = _change(wide, merge_features(wide, images[:1], PLANTED_BETA, bn="exact"), images)
    yield Claim(
        name="duplicates-free",
        statement="Copies planted in a perceptron and in a convolutional network merge back: the original widths are restored, and no "
        "logit changes; measured is the largest change (infinite where a width is not restored).",
        measured=max(changes) if all(restored) else float("inf"),
        bar=Bar("<", 1e-5),
        control=min(official),
        control_statement="the same for the convolutional network with batch norms merged as the authors' code does",
        note=f"By network {', '.join(f'{each:.1e}' for each in changes)}; with batch norms kept and deviations added up {exact:.1e}. "
        "The authors' rule adds up variances, of which two equal channels need the fourfold.",
        plot=_bars(
            {"perceptron": changes[:1], "conv, folded": changes[1:], "conv, official": official}, "largest change of a logit", True,
        ),
    )  # fmt: skip
    yield Claim(
        name="flipped-kept",
        statement="Copies whose incoming weights have the other sign are other units, and none is merged; measured is the share merged.",
        measured=max(merged[True]),
        bar=Bar("<=", 0.0),
        control=min(merged[False]),
        control_statement="the share of true copies merged",
        note=f"Tolerance {PLANTED_BETA}, half of the units of every layer copied.",
        plot=_bars({"flipped": merged[True], "copies": merged[False]}, "share merged"),
    )


def redundant(nets: Nets, setting: Setting, data: Data, seed: int) -> Iterator[Claim]:
    """Trained networks hold units that merge, at no cost."""
    results = [merge_features(model, data.example, BETA) for model in nets.trained]
    fresh = [merge_features(model, data.example, BETA) for model in nets.untrained]
    randomly = [
        merge_features(model, data.example, BETA, random_state=seed + i) for i, model in enumerate(nets.trained)
    ]
    share, before = ([1 - each.fraction for each in group] for group in (results, fresh))
    drops, chance = (
        [100 * (right - data.accuracy(_model(each))) for right, each in zip(nets.accuracies, group, strict=True)]
        for group in (results, randomly)
    )
    left = "; ".join("/".join(str(n) for n in each.complexity.values()) for each in results)
    idle = [sum(int((each.std(0) == 0).sum()) for each in activations(model, data.test[0], list(run.original)).values())
            for model, run in zip(nets.trained, results, strict=True)]  # fmt: skip
    about = (
        f"{_described(nets, setting)} Units left of {setting.width} a layer: {left}; of the units before, "
        f"{', '.join(map(str, idle))} of {2 * setting.width} never vary on the test samples."
    )
    yield Claim(
        name="redundant-units",
        statement=f"At a tolerance of {BETA} a trained perceptron's units merge: the share merged.",
        **over_seeds(share),
        bar=Bar(">=", 0.25),
        control=float(np.mean(before)),
        control_statement="the same before training; below 0.05",
        control_bar=Bar(">=", 0.05),
        note=about,
        plot=_bars({"trained": share, "untrained": before}, "share of units merged"),
    )
    yield Claim(
        name="merging-harmless",
        statement="That costs little test accuracy, in points.",
        **over_seeds(drops),
        bar=Bar("<=", 1.5),
        control=float(np.mean(chance)),
        control_statement="the same for as many random pairs; at least 10 points",
        control_bar=Bar("<", 10.0),
        note=f"{about} Random pairs {', '.join(f'{each:.1f}' for each in chance)} points.",
        plot=_curve(nets, setting, data, seed),
    )


def against_pruning(nets: Nets, setting: Setting, data: Data, seed: int) -> Claim:
    """Merging keeps more accuracy than taking out the smallest units."""
    merged, small, removed, randomly = [], [], [], []
    for i, model in enumerate(nets.trained):
        result = merge_features(model, data.example, 1.0, REMOVED)
        merged.append(data.accuracy(_model(result)))
        small.append(data.accuracy(without_smallest(model, data, result)))
        removed.append(data.accuracy(without_smallest(model, data, result, random_state=seed + i)))
        randomly.append(data.accuracy(_model(merge_features(model, data.example, 1.0, REMOVED, random_state=seed + i))))
    gaps = [one - other for one, other in zip(merged, small, strict=True)]
    return Claim(
        name="beats-magnitude",
        statement=f"With {REMOVED:.0%} of every layer's units gone and no training after it, merging keeps at least the accuracy that "
        "taking out the units of smallest incoming times outgoing norm keeps: the difference.",
        **over_seeds(gaps),
        bar=Bar(">=", 0.0),
        control=float(np.mean(np.subtract(randomly, small))),
        control_statement="the difference for merging as many random pairs",
        note=f"Accuracy before {_listed(nets.accuracies)}, merged {_listed(merged)}, smallest out {_listed(small)}, random units out "
        f"{_listed(removed)}, random pairs merged {_listed(randomly)}.",
        plot=_bars(
            {"before": nets.accuracies, "merged": merged, "smallest out": small, "random out": removed, "random pairs": randomly},
            "test accuracy",
        ),
    )  # fmt: skip


def widths(nets: Nets, setting: Setting, data: Data, seed: int) -> Claim:
    """Wider networks keep a smaller share of their units at an equal loss of accuracy."""
    sizes, shares, fresh_shares, chosen = [], [], [], []
    for width in setting.widths:
        own = nets if width == setting.width else train_nets(setting, data, (width, width), _seeds(setting, seed))
        for model, before, right in zip(own.trained, own.untrained, own.accuracies, strict=True):
            best = (1.0, 0.0)
            for beta in setting.betas:
                result = merge_features(model, data.example, beta)
                if right - data.accuracy(_model(result)) <= LOST:
                    best = min(best, (result.fraction, beta))
            sizes.append(width)
            shares.append(best[0])
            chosen.append(best[1])
            fresh_shares.append(merge_features(before, data.example, best[1]).fraction if best[1] else 1.0)
    rank, fresh_rank = (_spearman(sizes, each) for each in (shares, fresh_shares))
    by_width = "; ".join(
        f"{width}: {np.mean([s for s, w in zip(shares, sizes, strict=True) if w == width]):.2f} (tolerance "
        f"{np.mean([b for b, w in zip(chosen, sizes, strict=True) if w == width]):.2f}, untrained "
        f"{np.mean([s for s, w in zip(fresh_shares, sizes, strict=True) if w == width]):.2f})"
        for width in setting.widths
    )

    def plot(axes: Axes) -> None:
        axes.plot(sizes, shares, "o", label="trained")
        axes.plot(sizes, fresh_shares, "x", color="0.5", label="untrained, same tolerance")
        axes.set(xlabel="width", ylabel="share of units left", xscale="log", ylim=(0, 1.05))
        axes.set_xticks(setting.widths, [str(width) for width in setting.widths])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=7)

    return Claim(
        name="wider-more-redundant",
        statement="Wider networks keep a smaller share of their units at a loss of at most one point of accuracy: the rank "
        "correlation of width and share left.",
        measured=rank,
        bar=Bar("<=", -0.5),
        control=fresh_rank,
        control_statement="the same for untrained networks at the tolerances that the trained ones allowed",
        note=f"{len(sizes)} networks. Share left by width: {by_width}.",
        plot=plot,
    )


def depth(setting: Setting, data: Data, seed: int) -> Claim:
    """Complexity rises and then falls with depth."""
    nets = train_nets(setting, data, (setting.width,) * setting.depth, _seeds(setting, seed))
    trained, fresh = (
        [list(merge_features(model, data.example, BETA).complexity.values()) for model in group]
        for group in (nets.trained, nets.untrained)
    )
    inside, control = ([float(_peaks_inside(each)) for each in group] for group in (trained, fresh))

    def plot(axes: Axes) -> None:
        for profile in trained:
            axes.plot(range(1, setting.depth + 1), profile, "o-", color="C0", markersize=3)
        for profile in fresh:
            axes.plot(range(1, setting.depth + 1), profile, "x--", color="0.6", markersize=4)
        axes.set(
            xlabel="hidden layer",
            ylabel="units left",
            ylim=(0, setting.width * 1.05),
            xticks=range(1, setting.depth + 1),
        )

    return Claim(
        name="depth-rises-falls",
        statement=f"Over {setting.depth} hidden layers of one width, most distinct units are in neither the first nor the last: the "
        "share of seeds in which that is so.",
        **over_seeds(inside),
        bar=Bar(">=", 2 / 3 - 1e-9),
        control=float(np.mean(control)),
        control_statement="the same before training",
        note=f"{_described(nets, setting)} Units left by layer: {'; '.join('/'.join(map(str, each)) for each in trained)}; before training "
        f"{'; '.join('/'.join(map(str, each)) for each in fresh)}.",
        plot=plot,
    )


def meaning(nets: Nets, data: Data, seed: int) -> Claim:
    """Units that merge do the same."""
    gaps, chance, inside, outside = [], [], [], []
    for i, model in enumerate(nets.trained):
        for random_state in (None, seed + i):
            result = merge_features(model, data.example, BETA, random_state=random_state)
            found = merge_agreement(result, activations(model, data.test[0], list(result.original)))
            pairs = [pair for pair in found.values() if not np.isnan(pair[0])]
            gap = float(np.mean([within - across for within, across in pairs])) if pairs else float("nan")
            (gaps if random_state is None else chance).append(gap)
            if random_state is None:
                inside += [within for within, _ in pairs]
                outside += [across for _, across in pairs]
    return Claim(
        name="groups-mean-the-same",
        statement="Units merged into one respond alike: their mean correlation on test samples less that of units in different groups.",
        **over_seeds(gaps),
        bar=Bar(">=", 0.3),
        control=_mean(chance),
        control_statement="the same for as many random merges",
        note=f"Within groups {_mean(inside):.3f}, across {_mean(outside):.3f}; units that never vary have no correlation and are "
        "left out.",
        plot=_bars({"merged": gaps, "random": chance}, "correlation within less across"),
    )


def _networks(seed: int) -> list[nn.Module]:
    """A perceptron and a convolutional network with random weights, the batch norms with statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = DigitsCNN(width=8)
    draw = torch.Generator().manual_seed(seed)
    for part in conv.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.weight, part.bias, part.running_mean, part.running_var):
                if value is not None:
                    value.data = 0.5 + torch.rand(value.shape, generator=draw)
    return [mlp(64, (24, 16), 10, random_state=seed).double().eval(), conv.double().eval()]


def _change(model: nn.Module, result: MergeResult, images: Tensor) -> float:
    with torch.no_grad():
        return float((_model(result)(images) - model(images)).abs().max())


def _model(result: MergeResult) -> nn.Module:
    assert result.model is not None
    return result.model


def _seeds(setting: Setting, seed: int) -> range:
    return range(100 * seed, 100 * seed + setting.n_seeds)


def _peaks_inside(profile: Sequence[int]) -> bool:
    return max(profile[1:-1]) > max(profile[0], profile[-1])


def _spearman(sizes: Sequence[float], shares: Sequence[float]) -> float:
    """Rank correlation; 0 where all shares are one."""
    return 0.0 if len(set(shares)) < 2 else float(spearmanr(sizes, shares).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _described(nets: Nets, setting: Setting) -> str:
    return f"{len(nets.trained)} perceptrons on {setting.data} (test accuracies {_listed(nets.accuracies)})."


def _curve(nets: Nets, setting: Setting, data: Data, seed: int) -> Callable[[Axes], None]:
    """Accuracy against share merged, for tolerances: the first network."""
    model = nets.trained[0]
    runs = [
        [merge_features(model, data.example, beta, random_state=state) for beta in setting.betas]
        for state in (None, seed)
    ]
    lines = [([1 - run.fraction for run in group], [data.accuracy(_model(run)) for run in group]) for group in runs]

    def plot(axes: Axes) -> None:
        for (share, right), label in zip(lines, ("closest pairs", "random pairs"), strict=True):
            axes.plot(share, right, "o-", markersize=3, label=label)
        axes.axhline(nets.accuracies[0], color="0.6", linestyle="--", linewidth=1)
        axes.set(xlabel="share of units merged", ylabel="test accuracy", ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize=7)

    return plot


def _bars(groups: dict[str, Sequence[float]], label: str, log: bool = False) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for place, values in enumerate(groups.values()):
            spread = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(place + spread, np.maximum(values, 1e-17) if log else values, "o", markersize=4)
        axes.set(ylabel=label, xlim=(-0.5, len(groups) - 0.5), yscale="log" if log else "linear")
        axes.set_xticks(range(len(groups)), list(groups), fontsize=7)

    return plot
