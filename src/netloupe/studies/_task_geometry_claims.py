"""The claims of the task-geometry study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.structured_tasks import aligned_task, parities, random_kernel_task
from netloupe.lenses.geometry.alignment import kernel_alignment
from netloupe.studies._task_geometry_networks import Depth, Geometry, Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIALS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COLOURS = {"tanh": "C0", "relu": "C1"}
FROZEN = "readout frozen, plain gradient descent, noise 0.3, four conditions; measured on the means of the conditions"


@dataclass(frozen=True)
class Networks:
    """``plain``: by activation, on the unstructured task; ``mixed``: with labels dealt out at random to samples; ``separable``: by
    activation and eps of the XOR."""

    plain: Mapping[str, Sequence[Trained]]
    mixed: Mapping[str, Sequence[Trained]]
    separable: Mapping[str, Mapping[float, Sequence[Trained]]]


def _column(nets: Sequence[Trained], name: str) -> np.ndarray:
    return np.array([getattr(net.numbers, name) for net in nets])


def parallel_targets(networks: Networks) -> Iterator[Claim]:
    """Claims 1 and 2: tanh towards the targets, ReLU with the inputs."""
    numbers: dict[str, list[Geometry]] = {name: [net.numbers for net in nets] for name, nets in networks.plain.items()}
    ps, target, kept = (
        {name: np.array([getattr(one, field) for one in found]) for name, found in numbers.items()}
        for field in ("parallelism", "target", "input")
    )
    accuracy = min(net.accuracy for name in ("tanh", "relu") for net in networks.plain[name])
    others = ", ".join(f"{name} {values.mean():.2f}" for name, values in ps.items() if name not in ("tanh", "relu"))

    def bars(axes: Axes) -> None:
        names = sorted(ps, key=lambda name: -ps[name].mean())
        for place, name in enumerate(names):
            axes.barh(place, ps[name].mean(), color=COLOURS.get(name, "C7"))
            axes.plot(ps[name], np.full(len(ps[name]), place), "k.", markersize=3)
        axes.set_yticks(range(len(names)), names, fontsize="small")
        axes.set(xlabel="parallelism score of the trained distinction")

    yield Claim(
        "parallelism",
        "A tanh layer codes the trained distinction in parallel across conditions, a ReLU layer less so; measured is the "
        "difference of their parallelism scores on the unstructured task.",
        **over_seeds((ps["tanh"] - ps["relu"]).tolist()),
        bar=Bar(">=", 0.1),
        control=float((ps["relu"] - ps["identity"]).mean()),
        control_statement="ReLU less a network without a nonlinearity, which must not be below ReLU",
        control_bar=Bar(">", 0.0),
        note=f"Parallelism: tanh {ps['tanh'].mean():.2f}, ReLU {ps['relu'].mean():.2f}, {others}. {FROZEN}; least accuracy {accuracy:.3f}.",
        plot=bars,
    )

    def cloud(axes: Axes) -> None:
        for name in numbers:
            known = name in ("tanh", "relu", "identity")
            marker, colour = ("o", COLOURS.get(name, "k")) if known else (".", "0.75")
            axes.plot(kept[name], target[name], marker, color=colour, label=name if known else "_others", markersize=5)
        axes.set(xlabel="alignment with inputs (grey: other activations)", ylabel="alignment with targets")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "target-alignment",
        "A tanh layer is aligned with the targets more than a ReLU layer; measured is the share of seeds in which it is.",
        **over_seeds((target["tanh"] > target["relu"]).astype(float).tolist()),
        bar=Bar(">=", 1.0),
        control=float((target["relu"] > target["identity"]).mean()),
        control_statement="share of seeds in which ReLU is aligned more than a network without a nonlinearity",
        note="Target alignment: "
        + ", ".join(f"{name} {target[name].mean():.3f}" for name in ("tanh", "relu", "identity"))
        + ".",
        plot=cloud,
    )
    mixed = {name: _column(nets, "input") for name, nets in networks.mixed.items()}
    decoding = {
        name: float(np.mean([net.untrained_decoding for net in networks.plain[name]])) for name in ("tanh", "relu")
    }

    def pairs(axes: Axes) -> None:
        for place, sides in enumerate((kept, mixed)):
            for name in ("tanh", "relu"):
                axes.plot(
                    np.full(len(sides[name]), place),
                    sides[name],
                    "o",
                    color=COLOURS[name],
                    label=name if not place else None,
                )
            axes.plot([place] * 2, [sides["tanh"].mean(), sides["relu"].mean()], color="0.7")
        axes.set_xticks([0, 1], ["trained", "labels shuffled"])
        axes.set(xlim=(-0.5, 1.5), ylabel="alignment with inputs")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "input-alignment",
        "A ReLU layer keeps more of the inputs' geometry than a tanh layer; measured is the difference of the alignment with the inputs.",
        **over_seeds((kept["relu"] - kept["tanh"]).tolist()),
        bar=Bar(">=", 0.08),
        control=float((mixed["relu"] - mixed["tanh"]).mean()),
        control_statement="the same after training on labels dealt out at random to samples; no more than 0.05",
        control_bar=Bar(">", 0.05),
        note=f"Input alignment: tanh {kept['tanh'].mean():.2f}, ReLU {kept['relu'].mean():.2f}. Dichotomies that were not trained are "
        f"read from noisy samples with accuracy {decoding['tanh']:.3f} (tanh) and {decoding['relu']:.3f} (ReLU).",
        plot=pairs,
    )


def separability(networks: Networks) -> Iterator[Claim]:
    """Claim 3: the gap along the dial of the separable XOR."""
    dial = [eps for eps in networks.separable["tanh"] if eps > 0]
    gaps = {
        eps: _column(networks.separable["tanh"][eps], "target") - _column(networks.separable["relu"][eps], "target")
        for eps in networks.separable["tanh"]
    }

    def curves(axes: Axes) -> None:
        places = sorted(gaps)
        for name in ("tanh", "relu"):
            values = [_column(networks.separable[name][eps], "target") for eps in places]
            axes.plot(places, [each.mean() for each in values], "o-", color=COLOURS[name], label=name)
            axes.fill_between(
                places, [each.min() for each in values], [each.max() for each in values], color=COLOURS[name], alpha=0.2
            )
        axes.set(xlabel="eps: how separable the XOR is", ylabel="alignment with targets")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "separability",
        "On an XOR that is made separable by degrees a tanh layer is aligned with the targets more than a ReLU layer; measured is the "
        "smallest gap over eps 0.25, 0.5 and 1.",
        **over_seeds(np.min([gaps[eps] for eps in dial], axis=0).tolist()),
        bar=Bar(">=", 0.15),
        control=float(gaps[0.0].mean()),
        control_statement="the gap for pure XOR, eps 0, which must not favour tanh",
        control_bar=Bar(">", 0.0),
        note="Mean gaps by eps: "
        + ", ".join(f"{eps:g}: {gaps[eps].mean():.2f}" for eps in sorted(gaps))
        + f". {FROZEN}.",
        plot=curves,
    )
    scores = {
        name: {eps: _column(nets, "ccgp") for eps, nets in by_eps.items()}
        for name, by_eps in networks.separable.items()
    }
    both = {eps: (scores["tanh"][eps] == 1) & (scores["relu"][eps] < 0.5) for eps in gaps}

    def generalises(axes: Axes) -> None:
        places = sorted(gaps)
        for name in ("tanh", "relu"):
            axes.plot(places, [scores[name][eps].mean() for eps in places], "o-", color=COLOURS[name], label=name)
        axes.axhline(0.5, color="0.7")
        axes.set(xlabel="eps: how separable the XOR is", ylabel="CCGP", ylim=(-0.05, 1.05))
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "generalisation",
        "On the XOR with eps 0.25 a reader of the tanh layer generalises across conditions perfectly and one of the ReLU layer is below "
        "chance; measured is the share of seeds in which both hold.",
        **over_seeds(both[0.25].astype(float).tolist()),
        bar=Bar(">=", 1.0),
        control=float(both[0.0].mean()),
        control_statement="the same for pure XOR, eps 0",
        note=f"CCGP at eps 0.25: tanh {scores['tanh'][0.25].mean():.2f}, ReLU {scores['relu'][0.25].mean():.2f}; at eps 0: "
        f"{scores['tanh'][0.0].mean():.2f} and {scores['relu'][0.0].mean():.2f}.",
        plot=generalises,
    )


def weights(networks: Networks) -> Iterator[Claim]:
    """Claim 4: where the weights of hidden units end."""
    after, before, mixed = (
        {name: [net.weights(trained) for net in nets[name]] for name in ("tanh", "relu")}
        for nets, trained in ((networks.plain, True), (networks.plain, False), (networks.mixed, True))
    )
    cosines, initial, random = (
        {name: np.array([one.summary()["mean_cosine"] for one in found]) for name, found in sides.items()}
        for sides in (after, before, mixed)
    )

    def scatter(axes: Axes) -> None:
        for name in ("tanh", "relu"):
            axes.plot(*after[name][0].coordinates.T, "o", color=COLOURS[name], markersize=3, label=name)
        axes.set(xlabel="weight along the axis between the classes", ylabel="inside the classes")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "weights-axis",
        "Weights of tanh units end on the axis between the classes, those of ReLU units off it; measured is the difference of the mean "
        "absolute cosine with that axis, within the space of the conditions.",
        **over_seeds((cosines["tanh"] - cosines["relu"]).tolist()),
        bar=Bar(">=", 0.15),
        control=max(float((sides["tanh"] - sides["relu"]).mean()) for sides in (initial, random)),
        control_statement="the same before training, or after training on labels dealt out at random to samples, whichever is larger",
        note=f"Mean cosine after training: tanh {cosines['tanh'].mean():.3f}, ReLU {cosines['relu'].mean():.3f}; before "
        f"{initial['tanh'].mean():.3f} for both, which start from the same weights; with shuffled labels {random['tanh'].mean():.3f} and "
        f"{random['relu'].mean():.3f}. Readout frozen.",
        plot=scatter,
    )
    peak = {name: np.array([one.summary()["selectivity"] for one in found]) for name, found in after.items()}

    def selectivities(axes: Axes) -> None:
        for name in ("tanh", "relu"):
            values = np.concatenate([one.selectivity for one in after[name]])
            axes.hist(values[np.isfinite(values)], bins=30, color=COLOURS[name], alpha=0.6, label=name, density=True)
        axes.axvline(np.sqrt(3), color="0.4", linestyle=":", label="one condition alone")
        axes.set(xlabel="selectivity of a unit", ylabel="density")
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "weights-peak",
        "ReLU units peak on single conditions; measured is their mean selectivity, 1 for a unit that answers half of the four "
        "conditions and 1.73 for one that answers one alone.",
        **over_seeds(peak["relu"].tolist()),
        bar=Bar(">=", (1 + float(np.sqrt(3))) / 2),
        control=float(peak["tanh"].mean()),
        control_statement="tanh units, which must lie nearer to 1",
        note="The bar is midway between the two. Mean over units that respond to conditions differently.",
        plot=selectivities,
    )


def generators(seed: int) -> Claim:
    """Claim 5: the dial of the generators is exact."""
    errors, chance = [], []
    rng = np.random.default_rng(seed)
    for bits, n_targets in ((2, 1), (3, 1), (3, 3), (4, 2)):
        table = parities(bits)
        target = table[:, :n_targets] @ table[:, :n_targets].T
        for dial in DIALS:
            tasks = [
                aligned_task(bits, n_targets, 60, dial, seed=seed),
                random_kernel_task(target, dial, seed=seed, dim=60),
            ]
            errors.append([abs(kernel_alignment(task.means @ task.means.T, target) - dial) for task in tasks])
            loose = table * np.sqrt(rng.dirichlet(np.ones(table.shape[1])))
            chance.append(abs(kernel_alignment(loose @ loose.T, target) - dial))

    def plot(axes: Axes) -> None:
        worst = np.maximum(np.array(errors).reshape(-1, len(DIALS), 2).max(0), 1e-17)
        axes.semilogy(DIALS, worst[:, 0], "o-", label="orthogonal components")
        axes.semilogy(DIALS, worst[:, 1], "s-", label="random kernels")
        axes.semilogy(
            DIALS, np.array(chance).reshape(-1, len(DIALS)).mean(0), ":", color="C7", label="no dial (control)"
        )
        axes.axhline(1e-8, color="0.7")
        axes.set(xlabel="alignment asked for", ylabel="error of the alignment")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "generators",
        "The generators' dial is exact: centred kernel alignment of inputs and targets is what was asked for; measured is the "
        "largest error over both kinds of task, sizes and settings from 0 to 1.",
        float(np.max(errors)),
        Bar("<", 1e-8),
        float(np.min(chance)),
        "the smallest error of the same components with random weights",
        plot=plot,
    )


def images(after: Depth | None, before: Depth | None, data: str) -> Iterator[Claim]:
    """Claim 6: the same direction in perceptrons on images, layer by layer; None leaves it untested."""
    statement = (
        "In every hidden layer of a perceptron on images tanh is {} ReLU; measured is the smallest mean gap of a layer."
    )
    more, less, untrained = (
        "aligned with the targets more than",
        "aligned with the inputs less than",
        "the same before training",
    )
    if after is None or before is None:
        for name, words in (("images-target", more), ("images-input", less)):
            note = (
                "Differences of a few hundredths, which networks of the smallest preset are trained too little to show."
            )
            yield Claim(name, statement.format(words), None, Bar(">", 0.0), None, untrained, note=note)
        return
    known = [f"{name} {values.mean():.3f}" for name, values in zip(("tanh", "ReLU"), after.accuracy)]
    note = f"{data}; new images; accuracy {', '.join(known)}. By layer, tanh and ReLU: "
    sides = (
        ("images-target", after.target, before.target, 1.0, more, "targets"),
        ("images-input", after.input, before.input, -1.0, less, "inputs"),
    )
    for name, values, initial, sign, words, side in sides:
        gaps = sign * (values[0] - values[1])
        control = sign * (initial[0] - initial[1])

        def plot(axes: Axes, values: np.ndarray = values, initial: np.ndarray = initial, side: str = side) -> None:
            layers = np.arange(1, values.shape[2] + 1)
            for index, activation in enumerate(("tanh", "relu")):
                axes.errorbar(
                    layers,
                    values[index].mean(0),
                    values[index].std(0),
                    marker="o",
                    color=COLOURS[activation],
                    label=activation,
                )
                axes.plot(
                    layers, initial[index].mean(0), ":", color=COLOURS[activation], label=f"{activation}, untrained"
                )
            axes.set(xlabel="hidden layer", ylabel=f"alignment with {side}")
            axes.set_xticks(layers)
            axes.legend(frameon=False, fontsize=6)

        by_layer = "; ".join(f"{a:.3f} {b:.3f}" for a, b in zip(values[0].mean(0), values[1].mean(0)))
        weakest = int(gaps.mean(0).argmin())
        yield Claim(
            name,
            statement.format(words),
            **over_seeds(gaps[:, weakest].tolist()),
            bar=Bar(">", 0.0),
            control=float(control.mean(0).min()),
            control_statement=untrained,
            note=note + by_layer + ".",
            plot=plot,
        )


def grid_claim(gaps: Mapping[tuple[int, float, float], float] | None) -> Claim:
    """The paper's parameterised tasks: everywhere but where labels are not aligned with inputs at all."""
    statement = (
        "Over tasks with 4 to 32 conditions, all noises and all alignments above 0 a tanh layer is aligned with the targets more than "
        "a ReLU layer; measured is the share of tasks in which it is."
    )
    words = "the same share at alignment 0, where the labels are as inseparable as in an XOR"
    if gaps is None:
        return Claim(
            "grid", statement, None, Bar(">=", 0.9), None, words, note="Hundreds of networks; only in the full preset."
        )
    some, none = ([gap > 0 for (_, dial, _), gap in gaps.items() if (dial > 0) == wanted] for wanted in (True, False))

    def plot(axes: Axes) -> None:
        for bits in sorted({key[0] for key in gaps}):
            dials = sorted({key[1] for key in gaps})
            axes.plot(
                dials,
                [np.mean([gap for key, gap in gaps.items() if key[:2] == (bits, dial)]) for dial in dials],
                "o-",
                label=f"{2**bits} conditions",
            )
        axes.set(xlabel="alignment of inputs and targets", ylabel="target alignment, tanh less ReLU")
        axes.legend(frameon=False, fontsize="small")

    return Claim("grid", statement, float(np.mean(some)), Bar(">=", 0.9), float(np.mean(none)), words, plot=plot)
