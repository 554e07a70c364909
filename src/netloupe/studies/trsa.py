"""The Topology and Geometry of Neural Representations (arXiv 2309.11028): distances squashed to neighbourhoods.

Claims: the geo-topological family holds the ranked distances and adjacency; layers are identified across networks; where
individuals differ by geometry, topology identifies better; the corners of the family differ; how noise on distances acts; and
what is gained when the quantiles are chosen on other subjects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.data import fashion_mnist
from netloupe.data.digits import digits_split
from netloupe.studies._trsa_claims import corners, family, layers, noise, selection, stretched
from netloupe.studies._trsa_data import Networks, Responses, layer_responses, manifold_responses


@dataclass(frozen=True)
class Setting:
    """A preset. ``n_sets``: data sets of subjects; ``n_noise``: draws of noise; ``step`` of the grid of quantiles."""

    networks: Networks
    n_subjects: int
    n_points: int
    n_sets: int
    n_permutations: int
    n_noise: int
    step: float
    n_boot: int


NOISES = (0.02, 0.05, 0.1)
ARC = 5 / 6
ARCS = (1 / 2, 3 / 4, ARC, 11 / 12)

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(Networks(4, (64, 64, 64), 200, n_stimuli=40), 12, 40, 3, 40, 2, 0.1, 50),
    "small": Setting(Networks(), 16, 60, 6, 200, 5, 0.05, 1000),
    "full": Setting(Networks(10, (256,) * 10, 4000), 24, 60, 30, 200, 20, 0.05, 1000),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` read the handwritten digits in place of Fashion-MNIST; ``full`` has ten layers and ten seeds on Fashion-MNIST
    (from the folder that ``NETLOUPE_DATA`` names), on a GPU if there is one.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    if preset == "full":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        sides = [(x.flatten(1).to(device), y.to(device)) for x, y in (fashion_mnist("train"), fashion_mnist("test"))]
        data, words = (sides[0], sides[1]), "Fashion-MNIST"
    else:
        data, words = digits_split(flat=True), "Handwritten digits in place of Fashion-MNIST"
    networks, accuracy = layer_responses(data, setting.networks, seed)
    words = f"{words}; {setting.networks.n_seeds} perceptrons, test accuracy {accuracy:.3f}"

    def subjects(stretch: float, share: float) -> list[Responses]:
        return [
            manifold_responses(
                stretch, setting.n_subjects, setting.n_points, NOISES[index % 3], seed * 100 + index, share
            )
            for index in range(setting.n_sets)
        ]

    sets = {stretch: subjects(stretch, ARC) for stretch in (0.0, 0.25, 0.5, 0.75)}
    arcs = {share: sets[0.5] if share == ARC else subjects(0.5, share) for share in ARCS}
    yield from family(networks)
    yield from layers(networks, words, setting.n_permutations, seed)
    yield from stretched(sets, arcs)
    yield corners(sets[0.5], setting.step, setting.n_permutations, seed)
    yield noise(networks, words, setting.n_noise, seed)
    yield selection(sets, setting.step, setting.n_boot, seed)
