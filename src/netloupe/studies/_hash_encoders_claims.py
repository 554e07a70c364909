"""The claims of the hash-encoders study about perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from netloupe.core.nulls import permuted
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.trajectory import monotonicity
from netloupe.lenses.geometry.code_classes import CodeCategorization, code_categorization
from netloupe.lenses.geometry.codes import PackedCodes, redundancy_ratio
from netloupe.lenses.geometry.hash_phases import REGIMES, Cell, HashPhaseChart, HashPhases, regimes
from netloupe.studies._hash_encoders_network import Codes, Data, Grown, Net, noisy_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

K = 9
UNTESTED = "Not measured at this size: one seed and half the training do not tell it from its control."
NARROWEST, WIDEST = 7, 60
"""networks up to the one width are to repeat codes, from the other on they are not to"""


@dataclass(frozen=True)
class Grid:
    """Widths and epochs of the curves, sample sizes (of ``middle``-wide networks), and the chart's widths and epochs."""

    widths: tuple[int, ...]
    epochs: tuple[int, ...]
    sizes: tuple[int, ...]
    chart_widths: tuple[int, ...]
    chart_epochs: tuple[int, ...]
    narrow: int = 20
    middle: int = 40
    wide: int = 100


@dataclass(frozen=True)
class Measured:
    """The trained networks' codes, and what the claims read from them."""

    grown: Grown
    data: Data
    grid: Grid
    seeds: tuple[int, ...]
    last: int

    def codes(self, net: Net, epoch: int | None = None) -> Codes:
        """A network's codes at an epoch, the last by default."""
        return self.grown[net][self.last if epoch is None else epoch]

    def redundancy(self, net: Net, epoch: int | None = None) -> float:
        """Of the training samples."""
        return redundancy_ratio(self.codes(net, epoch).train)

    def knn(
        self, net: Net, epoch: int | None = None, reference: int | None = None, y: torch.Tensor | None = None
    ) -> float:
        """Test accuracy of the nearest among the first ``reference`` training codes (None: all); ``y`` are their classes."""
        codes, labels = self.codes(net, epoch), self.data.y if y is None else y
        part = slice(0, reference)
        found = code_categorization(
            codes.train[part], labels[part], codes.test, self.data.y_test, methods=("knn",), k=min(K, reference or K)
        )
        return found.knn or 0.0

    def categorized(self, net: Net, epoch: int | None = None) -> CodeCategorization:
        """All three methods with the true classes."""
        codes = self.codes(net, epoch)
        return code_categorization(codes.train, self.data.y, codes.test, self.data.y_test)

    @cached_property
    def pixels_knn(self) -> float:
        """Test accuracy of K-NN on the inputs themselves, in Euclidean distance."""
        from sklearn.neighbors import KNeighborsClassifier

        model = KNeighborsClassifier(K).fit(self.data.x.numpy(), self.data.y.numpy())
        return float(model.score(self.data.x_test.numpy(), self.data.y_test.numpy()))

    def table(self, measure: Callable[[int, int], float], columns: Sequence[int]) -> np.ndarray:
        """``(seed, column)`` of ``measure(seed, column)``."""
        return np.array([[measure(seed, column) for column in columns] for seed in self.seeds])


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in np.atleast_2d(values).mean(0))


def _curves(
    columns: Sequence[float], tables: dict[str, np.ndarray], x: str, y: str, log: bool = True
) -> Callable[[Axes], None]:
    """Mean and range over seeds of several ``(seed, column)`` tables."""

    def plot(axes: Axes) -> None:
        places = np.asarray(columns, float)
        if log and places.min() <= 0:
            axes.set_xscale("symlog", linthresh=1)
        elif log:
            axes.set_xscale("log")
        for index, (label, table) in enumerate(tables.items()):
            colour = "C7" if "control" in label else f"C{index}"
            axes.plot(places, table.mean(0), "o-", color=colour, label=label, markersize=3)
            axes.fill_between(places, table.min(0), table.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=x, ylabel=y, ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize="small")

    return plot


def width_claims(m: Measured) -> Iterator[Claim]:
    """Narrow networks repeat codes, wide ones do not."""
    widths = m.grid.widths
    trained = m.table(lambda seed, width: m.redundancy(Net(width, seed)), widths)
    untrained = m.table(lambda seed, width: m.redundancy(Net(width, seed), 0), widths)
    random = m.table(lambda seed, width: redundancy_ratio(m.codes(Net(width, seed)).random), widths)
    twice = m.table(lambda seed, width: _doubled(m.codes(Net(width, seed)).train), widths)
    narrow, wide = (
        [i for i, width in enumerate(widths) if test(width)]
        for test in (lambda w: w <= NARROWEST, lambda w: w >= WIDEST)
    )
    plot = _curves(
        widths, {"trained": trained, "untrained": untrained, "random inputs, trained": random},
        "units in the hidden layer", "share of samples that repeat a code",
    )  # fmt: skip
    note = (
        f"One hidden layer, {m.data.n} training samples, widths {', '.join(map(str, widths))}. Redundancy on training samples: "
        f"{_listed(trained)}; untrained: {_listed(untrained)}; of {len(m.data.x_test)} random inputs in [-1, 0]: {_listed(random)}. "
        f"With every sample given twice it is at least {twice.min():.3f} at every width."
    )
    yield Claim(
        "narrow-redundant",
        f"Networks with at most {NARROWEST} units give nearly all training samples a code that another has; measured is the "
        "smallest redundancy.",
        **over_seeds(trained[:, narrow].min(1).tolist()), bar=Bar(">=", 0.9),
        control=float(trained[:, wide].max()),
        control_statement=f"the largest redundancy with at least {WIDEST} units", note=note, plot=plot,
    )  # fmt: skip
    yield Claim(
        "wide-unique",
        f"Networks with at least {WIDEST} units give every training sample a code of its own; measured is the largest "
        "redundancy.",
        **over_seeds(trained[:, wide].max(1).tolist()), bar=Bar("<=", 0.01),
        control=float(np.mean(trained[:, [i for i, width in enumerate(widths) if width == m.grid.narrow]])),
        control_statement=f"the same with {m.grid.narrow} units", note=note,
        plot=_curves(widths, {"training samples": trained, "each given twice (control)": twice},
                     "units in the hidden layer", "share of samples that repeat a code"),
    )  # fmt: skip
    order = [monotonicity(row.tolist()) for row in trained]
    null = [
        monotonicity(permuted(torch.from_numpy(row), 31 * i + m.seeds[0]).tolist()) for i, row in enumerate(trained)
    ]
    yield Claim(
        "width-order", "Redundancy falls with width; measured is the rank correlation of the two.",
        **over_seeds(order), bar=Bar("<=", -0.95), control=float(np.mean(null)),
        control_statement="the same with widths in random order", note=note, plot=plot,
    )  # fmt: skip


def _doubled(codes: PackedCodes) -> float:
    return redundancy_ratio(PackedCodes.concat([codes, codes]))


def class_claims(m: Measured) -> Iterator[Claim]:
    """Three simple algorithms read the class from the bits of a wide network."""
    wide = m.grid.wide
    trained = [m.categorized(Net(wide, seed)) for seed in m.seeds]
    untrained = [m.categorized(Net(wide, seed), 0) for seed in m.seeds]
    shuffled = [m.categorized(Net(wide, seed, label_noise=1.0)) for seed in m.seeds]
    own = float(np.mean([m.codes(Net(wide, seed)).accuracy for seed in m.seeds]))
    chance = [m.knn(Net(wide, seed, label_noise=1.0), y=noisy_labels(m.data.y, 1.0, seed)) for seed in m.seeds]

    def column(found: list[CodeCategorization], name: str) -> list[float]:
        return [float(getattr(one, name)) for one in found]

    def plot(name: str) -> Callable[[Axes], None]:
        labels = {
            "knn": "K-NN accuracy",
            "logistic": "logistic regression's accuracy",
            "kmeans_train": "K-Means purity",
        }

        def draw(axes: Axes) -> None:
            groups = {"true labels": trained, "untrained": untrained, "shuffled labels": shuffled}
            for place, found in enumerate(groups.values()):
                values = column(found, name)
                axes.bar(place, np.mean(values), color=f"C{place}", alpha=0.6)
                axes.plot([place] * len(values), values, "k.", markersize=4)
            axes.set(xticks=range(3), xticklabels=list(groups), ylim=(0, 1), ylabel=labels[name])
            if name == "knn":
                axes.axhline(m.pixels_knn, color="0.5", linestyle=":", label=f"K-NN on pixels {m.pixels_knn:.3f}")
                axes.legend(fontsize="small", loc="lower left")

        return draw

    note = (
        f"{wide} units. The network's own test accuracy is {own:.3f}, K-NN on the pixels {m.pixels_knn:.3f}. "
        + " ".join(
            f"{label}: K-NN {np.mean(column(found, 'knn')):.3f}, logistic {np.mean(column(found, 'logistic')):.3f}, K-Means purity "
            f"{np.mean(column(found, 'kmeans_train')):.3f} (one class a cluster {np.mean(column(found, 'matched_train')):.3f})."
            for label, found in (("Trained", trained), ("Untrained", untrained), ("Shuffled labels", shuffled))
        )
        + f" Read with its own shuffled labels, the last has K-NN {np.mean(chance):.3f}."
    )
    for name, statement, bar in (
        ("knn", "K-NN (k = 9) reads the class of test samples from the code; measured is its accuracy.", 0.95),
        (
            "logistic",
            "One-against-one logistic regression reads the class of test samples from the code; measured is its accuracy.",
            0.95,
        ),
        ("kmeans", "K-Means clusters of the training codes are of one class each; measured is their purity.", 0.8),
    ):
        field = "kmeans_train" if name == "kmeans" else name
        yield Claim(
            f"class-{name}", statement, **over_seeds(column(trained, field)), bar=Bar(">=", bar),
            control=float(np.mean(column(untrained, field))), control_statement="the same of untrained networks",
            note=note, plot=plot(field),
        )  # fmt: skip


def time_claims(m: Measured) -> Iterator[Claim]:
    """Training makes the codes of a narrow network more unique and more telling."""
    epochs, narrow, wide = m.grid.epochs, m.grid.narrow, m.grid.wide
    redundant, telling = (
        {
            width: m.table(lambda seed, epoch, measure=measure, width=width: measure(Net(width, seed), epoch), epochs)
            for width in (narrow, wide)
        }
        for measure in (m.redundancy, m.knn)
    )
    note = (
        f"Epochs {', '.join(map(str, epochs))}. Width {narrow}: redundancy {_listed(redundant[narrow])}, K-NN "
        f"{_listed(telling[narrow])}; width {wide}: {_listed(redundant[wide])} and {_listed(telling[wide])}."
    )
    for name, what, tables, sign, bar in (
        ("time-unique", "the redundancy of training samples falls", redundant, 1, 0.3),
        ("time-knn", "the K-NN accuracy of codes rises", telling, -1, 0.15),
    ):
        labelled = {f"{narrow} units": tables[narrow], f"{wide} units (control)": tables[wide]}
        yield Claim(
            name, f"In a network of {narrow} units {what} over training; measured is by how much.",
            **over_seeds((sign * (tables[narrow][:, 0] - tables[narrow][:, -1])).tolist()), bar=Bar(">=", bar),
            control=float((sign * (tables[wide][:, 0] - tables[wide][:, -1])).mean()),
            control_statement=f"the same with {wide} units, whose codes are near their best untrained", note=note,
            plot=_curves(epochs, labelled, "epochs", "redundancy" if sign > 0 else "K-NN accuracy"),
        )  # fmt: skip


def size_claims(m: Measured) -> Iterator[Claim]:
    """More training data, better codes."""
    sizes, width = m.grid.sizes, m.grid.middle

    def published(noise: float) -> np.ndarray:
        def measure(seed: int, size: int) -> float:
            return m.knn(Net(width, seed, size, noise), None, size, noisy_labels(m.data.y, noise, seed))

        return m.table(measure, sizes)

    grown, chance = published(0.0), published(1.0)
    fresh = m.table(lambda seed, size: m.knn(Net(width, seed, sizes[-1]), 0, size), sizes)
    fixed, shuffled = (
        m.table(lambda seed, size, noise=noise: m.knn(Net(width, seed, size, noise)), sizes) for noise in (0.0, 1.0)
    )
    note = (
        f"{width} units, {', '.join(map(str, sizes))} samples, repeated to the full length so that every network takes as many "
        f"steps. K-NN among the codes trained on: {_listed(grown)}; shuffled labels: {_listed(chance)}; an untrained network with as "
        f"many codes to compare with: {_listed(fresh)}. K-NN among all {m.data.n} codes: {_listed(fixed)}; shuffled: {_listed(shuffled)}."
    )

    def ranks(table: np.ndarray) -> list[float]:
        return [monotonicity(row.tolist()) for row in table]

    said = (
        "K-NN among the codes of the samples trained on improves with their number; measured is the rank correlation of size and "
        "accuracy."
    )
    against = "the same of an untrained network, with as many of its codes to compare with"
    if m.grid.chart_epochs:
        yield Claim(
            "size-published", said, **over_seeds(ranks(grown)), bar=Bar(">=", 0.9), control=float(np.mean(ranks(fresh))),
            control_statement=against,
            note=note + " More codes to compare with help by themselves; the next claim keeps these equal.",
            plot=_curves(sizes, {"trained": grown, "shuffled labels": chance, "untrained (control)": fresh},
                         "training samples, also compared with", "K-NN accuracy"),
        )  # fmt: skip
    else:
        yield Claim("size-published", said, None, Bar(">=", 0.9), None, against, note=UNTESTED)
    yield Claim(
        "size-codes", "Networks trained on more samples have codes that tell more of the class, compared with the same number of "
        "codes; measured is the rank correlation of size and K-NN accuracy.",
        **over_seeds(ranks(fixed)), bar=Bar(">=", 0.9), control=float(np.mean(ranks(shuffled))),
        control_statement="the same of networks trained on shuffled labels, read with the true ones", note=note,
        plot=_curves(sizes, {"trained": fixed, "shuffled labels (control)": shuffled}, "training samples", "K-NN accuracy"),
    )  # fmt: skip


def phase_claim(m: Measured) -> Claim:
    """Size and training time make a chart of three regimes."""
    statement = (
        "Over width and training time there are under-, critically and sufficiently expressive networks, and after the last epoch "
        "a wider network is in no lower regime; measured is the share of regimes that occur times the share of steps in width that "
        "do not lead down."
    )
    against = (
        "the same of networks trained on shuffled labels, read with the true ones and compared with the best accuracy of networks "
        "trained on true labels"
    )
    if not m.grid.chart_epochs:
        return Claim("regimes", statement, None, Bar(">=", 1.0), None, against, note=UNTESTED)
    true, shuffled = (_chart(m, noise) for noise in (0.0, 1.0))
    top = true.knn
    control = regimes(shuffled.redundancy_train, shuffled.knn, top)
    counts = ", ".join(f"{name} {int((true.regime == i).sum())}" for i, name in enumerate(REGIMES))
    others = ", ".join(f"{name} {int((control == i).sum())}" for i, name in enumerate(REGIMES))
    return Claim(
        "regimes", statement, _ordered(true.regime), Bar(">=", 1.0), _ordered(control), against,
        note=f"Means of {len(m.seeds)} seeds. Cells: {counts}; shuffled labels: {others}. Last epoch, by width "
        f"{', '.join(f'{w:g}' for w in true.sizes)}: {', '.join(map(str, true.regime[-1]))}; shuffled {', '.join(map(str, control[-1]))}.",
        plot=true.plot,
    )  # fmt: skip


def _ordered(regime: np.ndarray) -> float:
    return len(np.unique(regime)) / 3 * float((np.diff(regime[-1]) >= 0).mean())


def _chart(m: Measured, noise: float) -> HashPhases:
    """The chart of means over seeds."""
    charts = []
    for seed in m.seeds:

        def cell(width: int, epoch: int, seed: int = seed) -> Cell:
            codes = m.codes(Net(width, seed, label_noise=noise), epoch)
            return Cell(codes.train, m.data.y, codes.test, m.data.y_test)

        chart = HashPhaseChart(
            m.grid.chart_widths, m.grid.chart_epochs, cell, methods=("knn",), names=("units", "epochs")
        )
        charts.append(chart.run())
    means = {
        name: np.mean([getattr(one, name) for one in charts], 0)
        for name in ("redundancy_train", "redundancy_test", "knn", "logistic", "kmeans")
    }
    regime = regimes(means["redundancy_train"], means["knn"], means["knn"])
    return HashPhases(charts[0].sizes, charts[0].axis2, **means, regime=regime, names=charts[0].names)
