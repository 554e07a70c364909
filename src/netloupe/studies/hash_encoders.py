"""Neural networks behave as hash encoders (arXiv 2101.05490): is each sample alone in its linear region, and does the region
tell its class?

Perceptrons of many widths, at several epochs and on samples of several sizes, trained as published. Claims: narrow networks
repeat codes and wide ones do not; K-NN, logistic regression and K-Means read the class from the bits; training and data make
codes better; size and training time make a chart of three regimes; convolutional networks do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netloupe.core.errors import InputError
from netloupe.core.splits import holdout
from netloupe.core.study import Claim, Preset
from netloupe.data.digits import digits
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.studies._hash_encoders_claims import (
    Grid,
    Measured,
    class_claims,
    phase_claim,
    size_claims,
    time_claims,
    width_claims,
)
from netloupe.studies._hash_encoders_conv import conv_claim
from netloupe.studies._hash_encoders_network import Data, Net, Recipe, train_nets


@dataclass(frozen=True)
class Setting:
    """A preset: the recipe, the grids and how many seeds; ``conv_steps`` is 0 where no convolutional network is trained."""

    recipe: Recipe
    grid: Grid
    n_seeds: int
    conv_steps: int


N_TEST = 397
WIDTHS = (3, 7, 10, 15, 20, 30, 40, 60, 100)
OFFICIAL_WIDTHS = (3, 7, 10, 15, 20, 23, 27, 30, 33, 37, 40, 43, 47, 50, 53, 57, 60, 65, 70, 75, 80, 90, 100)
OFFICIAL_EPOCHS = (0, 1, 3, 6, 10, 20, 30, 40, 60, 80, 100, 120, 140, 160, 180, 200)
OFFICIAL_SIZES = (10, 30, 60, 100, 300, 600, 1000, 2000, 3000, 6000, 10_000, 20_000, 30_000, 40_000)
SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(
        Recipe(30, drop_every=10),
        Grid((3, 7, 20, 30, 60, 100), (0, 1, 10, 30), (10, 100, 400, 1400), (), ()), 1, 0,
    ),
    "small": Setting(
        Recipe(60),
        Grid(WIDTHS, (0, 1, 3, 6, 10, 20, 60), (10, 20, 40, 80, 150, 300, 600, 1000, 1400),
             (3, 10, 20, 30, 40, 100), (1, 3, 6, 20, 60)), 5, 600,
    ),
    "full": Setting(
        Recipe(200),
        Grid(OFFICIAL_WIDTHS, OFFICIAL_EPOCHS, OFFICIAL_SIZES, (3, 10, 20, 30, 40, 60, 100), (1, 3, 10, 30, 100, 200)), 10, 7500,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train on the handwritten digits, 1,400 against 397 drawn at random (writers are in both); ``full``
    on Fashion-MNIST, from the folder that ``NETLOUPE_DATA`` names, with the published grids and ten repeats, on a GPU if there
    is one. Raises SubjectError where its files are missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    grid, data = setting.grid, load_data(preset)
    seeds = tuple(range(seed * 100, seed * 100 + setting.n_seeds))
    nets = [Net(width, s) for s in seeds for width in {*grid.widths, *grid.chart_widths, grid.narrow, grid.wide}]
    nets += [Net(width, s, label_noise=1.0) for s in seeds for width in {*grid.chart_widths, grid.wide}]
    nets += [Net(grid.middle, s, size, noise) for s in seeds for size in grid.sizes for noise in (0.0, 1.0)]
    grown = train_nets(nets, data, setting.recipe, (*grid.epochs, *grid.chart_epochs))
    measured = Measured(grown, data, grid, seeds, setting.recipe.epochs)
    yield from width_claims(measured)
    yield from class_claims(measured)
    yield from time_claims(measured)
    yield from size_claims(measured)
    yield phase_claim(measured)
    yield conv_claim(data, setting.conv_steps, seeds)


def load_data(preset: Preset) -> Data:
    """Training and test samples, flattened, in [0, 1]; of Fashion-MNIST the first 48,000 of the training split, as published."""
    if preset == "full":
        (x, y), (x_test, y_test) = fashion_mnist("train"), fashion_mnist("test")
        return Data(x[:48_000].flatten(1), y[:48_000], x_test.flatten(1), y_test)
    inputs, labels = digits(flat=True)
    fitted, judged = holdout(len(inputs), N_TEST / len(inputs))
    return Data(inputs[fitted], labels[fitted], inputs[judged], labels[judged])
