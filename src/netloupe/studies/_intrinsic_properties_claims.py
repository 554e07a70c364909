"""The claims of the intrinsic-properties study about estimators and about networks trained on manifolds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from netloupe.core.nulls import permuted
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.sharp_manifolds import Shape, flat_samples, manifold_dataset
from netloupe.lenses.geometry.intrinsic_dimension import mle_dimension, twonn_dimension
from netloupe.lenses.geometry.label_sharpness import label_sharpness
from netloupe.lenses.geometry.scaling import GeneralisationLaw, fit_generalisation_law, rank_correlation
from netloupe.studies._intrinsic_properties_network import Recipe, Task, Trained, train_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIXELS, N_ESTIMATED, AMBIENT = 784, 1000, 64
LOW, ALL = (2, 5, 10), (2, 5, 10, 20, 40)
SHAPES: tuple[Shape, ...] = ("gaussian", "torus")
SHORT = "Not measured at this size: too few networks, trained too briefly."
ESTIMATORS = {"maximum likelihood": mle_dimension, "TwoNN": twonn_dimension}


@dataclass(frozen=True)
class Manifolds:
    """Dimensions and factors on the sharpness of the grid at ``n`` samples; dimensions and sizes of the law; test samples; seeds."""

    dims: tuple[int, ...]
    factors: tuple[float, ...]
    sharpness: float
    law_dims: tuple[int, ...]
    law_sizes: tuple[int, ...]
    n: int
    n_test: int
    n_seeds: int


def estimator_claims(seeds: Sequence[int]) -> Iterator[Claim]:
    """Both estimators find a known dimension, and keep the order above where they saturate."""
    found = {
        key: np.array(
            [[_estimated(flat_samples(N_ESTIMATED, d, PIXELS, key[0], seed), key[1]) for d in ALL] for seed in seeds]
        )
        for key in product(SHAPES, ESTIMATORS)
    }
    shuffled = np.array(
        [
            [_estimated(_shuffled(flat_samples(N_ESTIMATED, d, PIXELS, "gaussian", seed), seed)) for d in LOW]
            for seed in seeds
        ]
    )
    errors = {key: np.abs(table[:, : len(LOW)] / LOW - 1) for key, table in found.items()}
    worst = np.max(list(errors.values()), 0).max(1)
    listed = " ".join(
        f"{shape}, {name}: {', '.join(f'{v:.1f}' for v in table.mean(0))}." for (shape, name), table in found.items()
    )
    note = (
        f"{N_ESTIMATED} samples in {PIXELS} pixels, d = {', '.join(map(str, ALL))}. {listed} Pixels of Gaussians shuffled one by one: "
        f"{', '.join(f'{v:.1f}' for v in shuffled.mean(0))}."
    )

    def plot(axes: Axes) -> None:
        axes.plot(ALL, ALL, color="0.7", linewidth=1, label="truth")
        for index, ((shape, name), table) in enumerate(found.items()):
            axes.plot(ALL, table.mean(0), "o-", color=f"C{index}", markersize=3, label=f"{shape}, {name}")
        axes.plot(LOW, shuffled.mean(0), "s:", color="C7", label="shuffled pixels (control)")
        axes.set(xlabel="true dimension", ylabel="estimate", xscale="log", yscale="log")
        _ticks(axes, ALL)
        axes.legend(frameon=False, fontsize="x-small")

    yield Claim(
        "estimators", "Maximum likelihood and TwoNN find the dimension of Gaussians and of tori up to 10; measured is the largest "
        "relative error of both.",
        **over_seeds(worst.tolist()), bar=Bar("<=", 0.2), control=float(np.abs(shuffled / LOW - 1).max(1).mean()),
        control_statement="the same where every pixel is shuffled over samples by itself, so that the dimension is that of the pixels",
        note=note, plot=plot,
    )  # fmt: skip
    order = [min(rank_correlation(ALL, table[i]) for table in found.values()) for i in range(len(seeds))]
    sizes = (40, 80, 160, 320, 784)
    same = [
        [_estimated(flat_samples(N_ESTIMATED, 5, size, "gaussian", 1000 * i + seed)) for i, size in enumerate(sizes)]
        for seed in seeds
    ]
    yield Claim(
        "estimators-order", "Estimates rise with the dimension up to 40, though they saturate; measured is the lowest rank correlation.",
        **over_seeds(order), bar=Bar(">=", 1.0), control=float(np.mean([rank_correlation(sizes, row) for row in same])),
        control_statement=f"the same against the number of pixels, {', '.join(map(str, sizes))}, at dimension 5", note=note, plot=plot,
    )  # fmt: skip


def _estimated(x: np.ndarray, name: str = "maximum likelihood") -> float:
    return ESTIMATORS[name](x, n_boot=1).value


def _shuffled(x: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permuted(x, axis=0)


Key = tuple[int, float, int, int, str]
"""dimension, factor on the sharpness, samples, seed, and what is done: ``plain``, ``random`` labels, or ``doubled`` inputs"""


def _task(key: Key, grid: Manifolds) -> Task:
    d, factor, n, seed, kind = key
    parts = [
        manifold_dataset(size, d, AMBIENT, grid.sharpness * factor, seed, draw=draw)
        for draw, size in enumerate((n, grid.n_test))
    ]
    x, x_test = (torch.from_numpy(part.x) * (2 if kind == "doubled" else 1) for part in parts)
    y, y_test = (torch.from_numpy(part.y) for part in parts)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        y, y_test = (torch.randint(0, 2, labels.shape, generator=generator) for labels in (y, y_test))
    return Task(x, y, x_test, y_test, seed)


def manifold_claims(grid: Manifolds, recipe: Recipe, seed: int) -> Iterator[Claim]:
    """Loss rises with dimension and with sharpness, and falls with samples the faster the lower the dimension."""
    seeds = range(seed * 100, seed * 100 + grid.n_seeds)
    keys: list[Key] = [(d, f, grid.n, s, "plain") for d in grid.dims for f in grid.factors for s in seeds]
    keys += [(d, 1.0, grid.n, s, "random") for d in grid.dims for s in seeds if grid.factors]
    keys += [
        (d, 1.0, n, s, kind)
        for d in grid.law_dims
        for n in grid.law_sizes
        for s in seeds
        for kind in ("plain", "random")
    ]
    keys += [(4, f, grid.n, s, "doubled") for f in grid.factors for s in seeds]
    keys = list(dict.fromkeys(keys))
    found = dict(zip(keys, train_tasks([_task(key, grid) for key in keys], recipe, seed)))
    yield from _dimension_claims(found, grid, seeds)
    yield _law_claim(found, grid, seeds)
    yield from _sharpness_claims(found, grid, seeds)


def _losses(found: dict[Key, Trained], keys: Sequence[Key]) -> np.ndarray:
    return np.array([found[key].loss for key in keys])


def _dimension_claims(found: dict[Key, Trained], grid: Manifolds, seeds: Sequence[int]) -> Iterator[Claim]:
    """The loss, and the share of wrong answers, which does not depend on how sure a network is of them."""
    against = "the same with random labels"
    for name, what in (("loss-dimension", "loss"), ("error-dimension", "share of wrong answers")):
        said = (
            f"At one sharpness and number of samples the test {what} rises with the dimension; measured is the rank correlation over all "
            "networks."
        )
        if not grid.factors:
            yield Claim(name, said, None, Bar(">=", 0.9), None, against, note=SHORT)
            continue
        tables = {
            kind: np.array([
                [one.loss if what == "loss" else 1 - one.accuracy for one in (found[d, 1.0, grid.n, s, kind] for d in grid.dims)]
                for s in seeds
            ])
            for kind in ("plain", "random")
        }  # fmt: skip
        ranks = {
            kind: rank_correlation(np.tile(grid.dims, len(seeds)), table.ravel()) for kind, table in tables.items()
        }
        yield Claim(
            name, said, ranks["plain"], Bar(">=", 0.9), ranks["random"], against,
            note=f"{grid.n} samples in {AMBIENT} pixels, frequency {grid.sharpness:g}, d = {', '.join(map(str, grid.dims))}; "
            f"{_listed(tables['plain'].mean(0))}; with random labels {_listed(tables['random'].mean(0))}"
            + (f", smallest {tables['random'].min():.3g} (log 2 is {np.log(2):.3g})." if what == "loss" else "."),
            plot=_dimension_plot(tables, grid, what),
        )  # fmt: skip


def _ticks(axes: Axes, places: Sequence[int]) -> None:
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()


def _dimension_plot(tables: dict[str, np.ndarray], grid: Manifolds, what: str) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for (kind, table), colour in zip(tables.items(), ("C0", "C7")):
            axes.plot(grid.dims, table.T, "o", color=colour, markersize=3)
            axes.plot(
                grid.dims,
                table.mean(0),
                color=colour,
                label="labels of the manifold" if kind == "plain" else "random (control)",
            )
        axes.axhline(np.log(2) if what == "loss" else 0.5, color="0.6", linestyle=":", label="knowing nothing")
        axes.set(
            xscale="log",
            yscale="log" if what == "loss" else "linear",
            xlabel="dimension",
            ylabel=f"test {what}" if what == "loss" else what,
        )
        _ticks(axes, grid.dims)
        axes.legend(frameon=False, fontsize="small")

    return plot


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _law_claim(found: dict[Key, Trained], grid: Manifolds, seeds: Sequence[int]) -> Claim:
    """Slopes of log loss on log samples: how much steeper the lowest dimension's is than the highest's."""
    tables = {
        (d, kind): np.array([_losses(found, [(d, 1.0, n, s, kind) for n in grid.law_sizes]) for s in seeds])
        for d in grid.law_dims for kind in ("plain", "random")
    }  # fmt: skip
    logs = np.log(grid.law_sizes)
    slopes = {key: np.array([np.polyfit(logs, np.log(row), 1)[0] for row in table]) for key, table in tables.items()}
    low, high = grid.law_dims[0], grid.law_dims[-1]
    steeper = slopes[high, "plain"] - slopes[low, "plain"]

    def plot(axes: Axes) -> None:
        for (d, kind), table in tables.items():
            colour = "C0" if d == low else "C1"
            label = f"d = {d}" + (
                ", random labels (control)" if kind == "random" else f", slope {slopes[d, kind].mean():.2f}"
            )
            axes.plot(grid.law_sizes, table.mean(0), "o-" if kind == "plain" else ":", color=colour, label=label)
        axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="test loss")
        _ticks(axes, grid.law_sizes)
        axes.set_ylim(bottom=0.2 * min(float(table.min()) for table in tables.values()))
        axes.legend(frameon=False, fontsize="x-small", loc="lower left", ncol=2)

    runs = [(d, n, s) for d in grid.law_dims for n in grid.law_sizes for s in seeds]
    law = fit_generalisation_law(
        _losses(found, [(d, 1.0, n, s, "plain") for d, n, s in runs]), [n for _, n, _ in runs], [d for d, _, _ in runs]
    )
    return Claim(
        "loss-samples", f"The loss falls faster with samples at dimension {low} than at {high}; measured is the difference of the "
        "slopes of log loss on log samples.",
        **over_seeds(steeper.tolist()), bar=Bar(">", 0.0),
        control=float((slopes[high, "random"] - slopes[low, "random"]).mean()),
        control_statement="the same with random labels, which cannot be learned",
        note=f"{', '.join(map(str, grid.law_sizes))} samples. Slopes: "
        + "; ".join(f"d = {d}: {_listed(slopes[d, 'plain'])}" for d in grid.law_dims)
        + f" (the bound:  {', '.join(f'{-1 / d:.3g}' for d in grid.law_dims)}). On (log N)/d: slope {law.slope:.3g} +- "
        f"{law.slope_error:.2g}, R2 {law.r2:.2f}.",
        plot=plot,
    )  # fmt: skip


def _sharpness_claims(found: dict[Key, Trained], grid: Manifolds, seeds: Sequence[int]) -> Iterator[Claim]:
    rises = (
        "At one dimension (4) labels of a higher frequency are measured to be sharper and have a higher test loss; measured is the "
        "share of steps in frequency, over seeds, at which both rise."
    )
    statement = (
        "The measured sharpness tells the loss of single networks; measured is the rank correlation of the two over frequencies "
        "and seeds."
    )
    against = "the same with the sharpness of the same inputs when their labels are shuffled"
    slope_said = (
        "Sharper labels raise the loss at every dimension alike: the slope of log loss on dimension is the same for all; measured is the "
        "largest difference of two slopes in units of its standard error."
    )
    slope_against = "the same difference where the sharpest labels' dimensions are in reverse order"
    if not grid.factors:
        yield Claim("loss-sharpness", rises, None, Bar(">=", 1.0), None, against, note=SHORT)
        yield Claim("sharpness-ranks", statement, None, Bar(">=", 0.9), None, against, note=SHORT)
        yield Claim("sharpness-slope", slope_said, None, Bar("<=", 2.0), None, slope_against, note=SHORT)
        return
    keys: list[Key] = [(4, f, grid.n, s, "plain") for f in grid.factors for s in seeds]
    doubled: list[Key] = [(d, f, n, s, "doubled") for d, f, n, s, _ in keys]
    sharp, twice = (np.array([_sharpness(found[key].task) for key in some]) for some in (keys, doubled))
    tasks = [found[key].task for key in keys]
    chance = np.array(
        [_sharpness(task._replace(y=permuted(task.y, 1000 * i + task.seed))) for i, task in enumerate(tasks)]
    )
    losses, rescaled = _losses(found, keys), _losses(found, doubled)

    def plot(axes: Axes) -> None:
        for index, factor in enumerate(grid.factors):
            own = [i for i, key in enumerate(keys) if key[1] == factor]
            axes.plot(sharp[own], losses[own], "o", color=f"C{index}", label=f"frequency {grid.sharpness * factor:g}")
            axes.plot(twice[own], rescaled[own], "x", color=f"C{index}")
        axes.set(xlabel="measured sharpness (crosses: inputs doubled)", ylabel="test loss", yscale="log")
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")

    note = (
        f"Frequencies {_listed(grid.sharpness * np.array(grid.factors))}: sharpness {_listed(_by_factor(sharp, grid))}, loss "
        f"{_listed(_by_factor(losses, grid))}. With all inputs doubled, sharpness {_listed(_by_factor(twice, grid))} (ratio "
        f"{np.mean(twice / sharp):.3f}), loss {_listed(_by_factor(rescaled, grid))}, rank correlation with those before "
        f"{rank_correlation(losses, rescaled):.2f}. Labels shuffled: sharpness {_listed(_by_factor(chance, grid))}."
    )
    yield Claim(
        "loss-sharpness", rises, _both_rise(sharp, losses, grid), Bar(">=", 1.0), _both_rise(chance, losses, grid), against,
        note=note, plot=plot,
    )  # fmt: skip
    yield Claim(
        "sharpness-ranks", statement, rank_correlation(sharp, losses), Bar(">=", 0.9), rank_correlation(chance, losses), against,
        note=note, plot=plot,
    )  # fmt: skip
    law, swapped = (_grid_law(found, grid, seeds, reverse) for reverse in (False, True))

    def plot_law(axes: Axes) -> None:
        for index, factor in enumerate(grid.factors):
            means = [
                np.mean(np.log(_losses(found, [(d, factor, grid.n, s, "plain") for s in seeds]))) for d in grid.dims
            ]
            axes.plot(grid.dims, means, "o-", color=f"C{index}", label=f"frequency {grid.sharpness * factor:g}")
        axes.set(xlabel="dimension", ylabel="log test loss")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "sharpness-slope", slope_said, _largest_difference(law), Bar("<=", 2.0), _largest_difference(swapped), slope_against,
        note=f"Slopes of log loss on d: {_listed(law.per_dimension)} (standard errors {_listed(law.per_dimension_errors)}); "
        f"intercepts {_listed(law.intercepts)} at the common slope on (log N)/d.",
        plot=plot_law,
    )  # fmt: skip


def _sharpness(task: Task) -> float:
    return label_sharpness(task.x, task.y).sharpness


def _by_factor(values: np.ndarray, grid: Manifolds) -> np.ndarray:
    return values.reshape(len(grid.factors), -1).mean(1)


def _both_rise(sharp: np.ndarray, losses: np.ndarray, grid: Manifolds) -> float:
    steps = [np.diff(values.reshape(len(grid.factors), -1), axis=0) > 0 for values in (sharp, losses)]
    return float((steps[0] & steps[1]).mean())


def _grid_law(found: dict[Key, Trained], grid: Manifolds, seeds: Sequence[int], reverse: bool) -> GeneralisationLaw:
    """One line over dimensions with an intercept for each sharpness; ``reverse`` turns the dimensions of the sharpest round."""
    runs = [(d, f, s) for f in grid.factors for d in grid.dims for s in seeds]
    losses = _losses(found, [(d, f, grid.n, s, "plain") for d, f, s in runs])
    turned = dict(zip(grid.dims, reversed(grid.dims)))
    dims = [turned[d] if reverse and f == grid.factors[-1] else d for d, f, _ in runs]
    return fit_generalisation_law(losses, [grid.n] * len(runs), dims, [f"{f:04.1f}" for _, f, _ in runs])


def _largest_difference(law: GeneralisationLaw) -> float:
    slopes, errors = law.per_dimension, law.per_dimension_errors
    pairs = [(i, j) for i in range(len(slopes)) for j in range(i)]
    return float(max(abs(slopes[i] - slopes[j]) / np.hypot(errors[i], errors[j]) for i, j in pairs))
