"""Task structure and nonlinearity jointly determine learned representational geometry (arXiv 2401.13558).

Networks with one hidden layer learn tasks whose input and label geometry are known. Claims: tanh layers take on the geometry of
the labels, ReLU layers keep more of the inputs'; by how much is set by how separable the labels are; units of ReLU layers
specialise; the generators are exact; and perceptrons on images show the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.data import fashion_mnist
from netloupe.data.digits import digits_split
from netloupe.data.structured_tasks import aligned_task, separable_xor, unstructured_task
from netloupe.nn.activations import activation
from netloupe.studies._task_geometry_claims import (
    Networks,
    generators,
    grid_claim,
    images,
    parallel_targets,
    separability,
    weights,
)
from netloupe.studies._task_geometry_networks import ImageRecipe, Recipe, image_depth, train_shallow

EPS = (0.25, 0.5, 1.0, 0.0)
NOISE = 0.3
OTHERS = ("hardtanh", "softplus", "clip", "noisy_relu")
ABLATIONS = ("tanh", "relu")


@dataclass(frozen=True)
class Setting:
    """A preset. ``n_others``: seeds of the activations beside tanh, ReLU and identity. ``grid``: bits, alignments and noises."""

    recipe: Recipe
    images: ImageRecipe | None
    n_seeds: int
    n_others: int
    grid: tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]] | None = None


SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(Recipe(64, 60, 800, 1000, 100), None, 2, 0),
    "small": Setting(Recipe(), ImageRecipe(), 5, 2),
    "full": Setting(
        Recipe(), ImageRecipe((256,) * 5, 5000), 20, 5,
        ((2, 3, 4, 5), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 0.1, 0.3)),
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``small`` reads the handwritten digits in place of Fashion-MNIST and leaves the grid of tasks untested, ``smoke`` the images
    too; ``full`` trains twenty seeds, five hidden layers on Fashion-MNIST (from the folder that ``NETLOUPE_DATA`` names), on a GPU if there
    is one.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    networks = _networks(setting, seed)
    yield from parallel_targets(networks)
    yield from separability(networks)
    yield from weights(networks)
    yield generators(seed)
    yield from _images(preset, setting, seed)
    yield grid_claim(None if setting.grid is None else _grid(setting, seed))


def _images(preset: Preset, setting: Setting, seed: int) -> Iterator[Claim]:
    if setting.images is None:
        return images(None, None, "")
    if preset == "full":
        train, test = fashion_mnist("train"), fashion_mnist("test")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        sides = [(x.flatten(1).to(device), y.to(device)) for x, y in (train, test)]
        data, words = (sides[0], sides[1]), "Fashion-MNIST"
    else:
        data, words = digits_split(flat=True), "Handwritten digits in place of Fashion-MNIST"
    after, before = (image_depth(data, setting.images, setting.n_seeds, seed, trained) for trained in (True, False))
    return images(after, before, words)


def _networks(setting: Setting, seed: int) -> Networks:
    recipe, seeds = setting.recipe, range(seed * 100, seed * 100 + setting.n_seeds)
    plain = [unstructured_task(4, recipe.dim, NOISE, seed=s) for s in seeds]
    xors = {eps: [separable_xor(recipe.dim, eps, NOISE, seed=s) for s in seeds] for eps in EPS}
    tasks = [*plain, *plain, *(task for eps in EPS for task in xors[eps])]
    shuffled = [False] * len(plain) + [True] * len(plain) + [False] * (len(EPS) * len(plain))
    plains, mixed, separable = {}, {}, {}
    for name in ("tanh", "relu"):
        found = train_shallow(tasks, name, recipe, shuffled, looks=20)
        n = setting.n_seeds
        plains[name], mixed[name] = found[:n], found[n : 2 * n]
        separable[name] = {eps: found[(2 + i) * n : (3 + i) * n] for i, eps in enumerate(EPS)}
    plains["identity"] = train_shallow(plain, "identity", recipe)
    few = plain[: setting.n_others]
    if few:
        plains |= {name: train_shallow(few, name, recipe) for name in OTHERS}
        plains |= {
            f"{name}, linear gradient": train_shallow(few, activation(name, "linear"), recipe) for name in ABLATIONS
        }
        plains |= {
            f"{name}, readout trained": train_shallow(few, name, recipe, freeze_output=False) for name in ABLATIONS
        }
    return Networks(plains, mixed, separable)


def _grid(setting: Setting, seed: int) -> dict[tuple[int, float, float], float]:
    """Mean gap of the target alignment, tanh less ReLU, by bits, alignment and noise."""
    assert setting.grid is not None
    found = {}
    for bits in setting.grid[0]:
        for alignment in setting.grid[1]:
            for noise in setting.grid[2]:
                seeds = range(seed * 100, seed * 100 + setting.n_seeds)
                tasks = [aligned_task(bits, 1, setting.recipe.dim, alignment, noise, s) for s in seeds]
                sides = [
                    [one.numbers.target for one in train_shallow(tasks, name, setting.recipe)] for name in ABLATIONS
                ]
                found[bits, alignment, noise] = sum(a - b for a, b in zip(*sides)) / len(tasks)
    return found
