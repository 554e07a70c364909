"""Noise-resilient diffusion spectral entropy (arXiv 2312.04823): what it counts, and what training does to it.

Ten claims: on made-up points the entropy counts clusters and dimensions, and the mutual information follows labels; in
training both rise, the information only where labels mean something; at matched scale the entropy falls; and an
initialisation of low entropy trains no worse. The last two need real images and a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim, Preset, over_seeds
from netloupe.data import digits, fashion_mnist
from netloupe.lenses.information.diffusion import (
    classic_entropy,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
)
from netloupe.models.resnet import ResNet18
from netloupe.models.small import DigitsCNN, mlp
from netloupe.studies._dse_training import Training, contrastive_claim, initialisation_claim, training_claims

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLUSTERS = (1, 2, 4, 8)
DIMENSIONS = (1, 2, 4, 8)
APART = 40.0
SIDE = 60.0
CORRUPTION = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BINS = (2, 3, 5)


@dataclass(frozen=True)
class Settings:
    """How large a preset is."""

    n_points: int
    n_seeds: int
    training: Training


def _perceptron(seed: int) -> nn.Module:
    return mlp(64, (128, 64), 10, random_state=seed)


def _digits_cnn(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsCNN()


def _resnet(seed: int) -> nn.Module:
    return ResNet18(1, 10, random_state=seed)


SETTINGS: dict[Preset, Settings] = {
    "smoke": Settings(
        400, 1, Training("the first 600 handwritten digits", _perceptron, _digits_cnn, epochs=5, memory_epochs=8,
                         every=5, n_measured=300, n_seeds=1, init_seeds=2, contrastive_epochs=4,
                         init_epochs=6),
    ),
    "small": Settings(
        400, 3, Training("handwritten digits", _perceptron, _digits_cnn, epochs=30, memory_epochs=120, every=3,
                         n_measured=1000, n_seeds=3, init_seeds=3, contrastive_epochs=30,
                         init_epochs=12),
    ),
    "full": Settings(
        400, 10, Training("Fashion-MNIST", _resnet, _resnet, epochs=30, memory_epochs=120, every=3, n_measured=5000,
                          n_seeds=3, init_seeds=3, contrastive_epochs=100, batch_size=128),
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train on the handwritten digits; ``full`` trains a ResNet-18 on Fashion-MNIST, from the folder
    that ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its files are missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    settings = SETTINGS[preset]
    data = load_data(preset)
    seeds = range(100 * seed, 100 * seed + settings.n_seeds)
    yield cluster_claim(settings, seeds)
    yield dimension_claim(settings, seeds)
    yield from label_claims(settings, seeds)
    yield from training_claims(settings.training, data, seed)
    yield contrastive_claim(settings.training, data, seed)
    yield initialisation_claim(settings.training, load_data(preset, flat=False), seed)


def load_data(preset: Preset, flat: bool = True) -> tuple[Tensor, Tensor]:
    """Inputs and labels of the trainings."""
    if preset == "full":
        images, labels = fashion_mnist("train")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return images.to(device), labels.to(device)
    inputs, labels = digits(flat=flat)
    return (inputs[:600], labels[:600]) if preset == "smoke" else (inputs, labels)


def blobs(n: int, k: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``k`` unit Gaussians whose centres are ``APART`` from each other, ``(n, d)``, and which blob each point is of."""
    draw, labels = np.random.default_rng(seed), np.arange(n) % k
    return np.eye(d)[labels] * APART / np.sqrt(2) + draw.standard_normal((n, d)), labels


def cluster_claim(settings: Settings, seeds: Sequence[int]) -> Claim:
    """Diffused for long enough, the entropy of k tight clusters is log2 k."""

    def errors(seed: int, shuffled: bool) -> list[float]:
        found = []
        for k in CLUSTERS:
            z, _ = blobs(settings.n_points, k, 20, seed)
            if shuffled:
                draw = np.random.default_rng(seed + 1)
                z = np.stack([draw.permutation(column) for column in z.T], axis=1)
            found.append(diffusion_spectral_entropy(z, t=4) - np.log2(k))
        return found

    measured = [max(abs(error) for error in errors(seed, False)) for seed in seeds]
    # one cluster is one cluster in any order of its columns
    control = [min(abs(error) for error in errors(seed, True)[1:]) for seed in seeds]
    first = {
        t: [diffusion_spectral_entropy(blobs(settings.n_points, k, 20, seeds[0])[0], t=t) for k in CLUSTERS]
        for t in (1, 2, 4)
    }

    def plot(axes: Axes) -> None:
        axes.plot(CLUSTERS, np.log2(CLUSTERS), "k--", linewidth=1, label="log2 k")
        for index, (t, found) in enumerate(first.items()):
            axes.plot(CLUSTERS, found, "o-", color=f"C{index}", label=f"t = {t}")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="clusters k", ylabel="entropy, bits")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="clusters",
        statement="At diffusion time 4 the entropy of k tight clusters is log2 k; measured is the largest distance from "
        "it over k = 1, 2, 4, 8.",
        **over_seeds(measured),
        bar=Bar("<=", 0.05),
        control=float(np.mean(control)),
        control_statement="the smallest such distance over k = 2, 4, 8 once every coordinate is shuffled by itself",
        note=f"{settings.n_points} points in 20 dimensions, centres {APART:g} apart, standard deviation 1, sigma 10. At t = 1 "
        f"the noise adds to it: {' / '.join(f'{value:.2f}' for value in first[1])} bits.",
        plot=plot,
    )


def dimension_claim(settings: Settings, seeds: Sequence[int]) -> Claim:
    """The entropy grows with the number of dimensions that points fill."""

    def cube(seed: int, k: int) -> np.ndarray:
        z = np.zeros((settings.n_points, 20))
        z[:, :k] = np.random.default_rng(seed).uniform(0, SIDE, (settings.n_points, k))
        return z

    curves = np.array([[diffusion_spectral_entropy(cube(seed, k)) for k in DIMENSIONS] for seed in seeds])
    turned = []
    for seed, curve in zip(seeds, curves):
        rotation = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((20, 20)))[0]
        turned.append(abs(diffusion_spectral_entropy(cube(seed, 1) @ rotation) - curve[0]))

    def plot(axes: Axes) -> None:
        axes.plot(DIMENSIONS, curves.T, "o-", color="C0")
        axes.axhline(np.log2(settings.n_points), color="0.6", linestyle="--", label="log2 n")
        axes.set(xlabel="dimensions filled, of 20", ylabel="entropy, bits")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="dimension",
        statement="The entropy grows with intrinsic dimension; measured is the smallest step between uniform cubes of 1, 2, "
        "4 and 8 of 20 dimensions.",
        **over_seeds(np.diff(curves, axis=1).min(1).tolist()),
        bar=Bar(">", 0.0),
        control=float(max(turned)),
        control_statement="largest change when the one-dimensional set is turned into all 20; unchanged to 1e-8",
        control_bar=Bar(">", 1e-8),
        note=f"{settings.n_points} points, side {SIDE:g}, sigma 10, t = 1: "
        f"{' / '.join(f'{value:.2f}' for value in curves.mean(0))} bits.",
        plot=plot,
    )


def corrupted(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels of which a random share is drawn anew."""
    draw = np.random.default_rng(seed + 7)
    return np.where(draw.random(len(labels)) < share, draw.integers(0, labels.max() + 1, len(labels)), labels)


def label_claims(settings: Settings, seeds: Sequence[int]) -> Iterator[Claim]:
    """The mutual information follows the share of labels that are true, where binning in many dimensions sees none."""
    n, curves, binned = settings.n_points, [], []
    for seed in seeds:
        z, labels = blobs(n, 5, 20, seed)
        wide, _ = blobs(n, 5, 100, seed)
        references = [corrupted(labels, share, seed) for share in CORRUPTION]
        curves.append([diffusion_spectral_mutual_information(z, each, seed=seed)[0] for each in references])
        binned.append([
            [
                diffusion_spectral_mutual_information(
                    wide, each, seed=seed, entropy=lambda rows, bins=bins: classic_entropy(rows, bins)
                )[0]
                for each in references
            ]
            for bins in BINS
        ])  # fmt: skip
    table = np.array(curves)
    falls = bool((np.diff(table.mean(0)) < 0).all())
    worst = float(np.abs(binned).max())

    def plot(axes: Axes) -> None:
        axes.plot(CORRUPTION, table.T, "o-", color="C0", alpha=0.6, label="diffusion, d = 20")
        for index, bins in enumerate(BINS):
            axes.plot(
                CORRUPTION,
                np.array(binned)[:, index].mean(0),
                "s:",
                color=f"C{index + 1}",
                label=f"{bins} bins, d = 100",
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="share of labels drawn at random", ylabel="bits about the label")
        handles, names = axes.get_legend_handles_labels()
        axes.legend(*zip(*dict(zip(names, zip(handles, names))).values()), frameon=False, fontsize="small")

    note = (
        f"{n} points in 5 blobs, {APART:g} apart, standard deviation 1, sigma 10, t = 1; bits at corruptions 0 to 1: "
        f"{' / '.join(f'{value:.2f}' for value in table.mean(0))}."
    )
    yield Claim(
        name="labels",
        statement="Mutual information falls with every share of labels that is corrupted; measured are the bits at none, "
        "counted as 0 where the mean curve rises anywhere.",
        **over_seeds([float(curve[0]) if falls else 0.0 for curve in table]),
        bar=Bar(">=", 1.5),
        control=worst,
        control_statement="largest size of the same from 2, 3 or 5 bins a dimension at d = 100, where it must be within 0.05",
        control_bar=Bar(">", 0.05),
        note=note,
        plot=plot,
    )
    yield Claim(
        name="labels-random",
        statement="With all labels corrupted it is zero; measured is its size.",
        **over_seeds(np.abs(table[:, -1]).tolist()),
        bar=Bar("<=", 0.05),
        control=float(np.abs(table[:, 0]).mean()),
        control_statement="the same with true labels",
        note=note,
        plot=lambda axes: _two(axes, np.abs(table[:, -1]), np.abs(table[:, 0])),
    )


def _two(axes: Axes, measured: np.ndarray, control: np.ndarray) -> None:
    for place, values in enumerate((measured, control)):
        axes.plot(np.full(len(values), place), values, "o", color=f"C{place}")
    axes.axhline(0.05, color="0.6", linestyle="--", label="bar")
    axes.set_xticks([0, 1], ["all labels random", "true labels"])
    axes.set(ylabel="size of the information, bits", xlim=(-0.5, 1.5))
    axes.legend(frameon=False, fontsize="small")
