"""Understanding Visual Feature Reliance through the Lens of Complexity (arXiv 2407.06076).

Features are atoms of a non-negative dictionary of the last layer; a feature is complex if a linear reader finds it only in
late layers. Claims: complex features are learned late; the network relies on simple ones, and comes to do so during training;
complex features are less robust; simple ones travel on the skip connections; and the dictionary stands for the layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.data import digits, fashion_mnist
from netloupe.models.residual import ResidualMLP
from netloupe.models.resnet import ResNet18
from netloupe.studies._v_complexity_claims import all_claims
from netloupe.studies._v_complexity_network import Setting, Sites


def perceptron(width: int, n_blocks: int) -> Sites:
    """A residual perceptron on flattened digits, and its sites."""
    blocks = tuple(f"blocks.{index}" for index in range(n_blocks))
    return Sites(
        lambda seed: ResidualMLP(64, width, n_blocks, 10, seed), (*blocks, "features"),
        tuple(f"{name}:in" for name in blocks), tuple(f"{name}.branch" for name in blocks),
    )  # fmt: skip


_BLOCKS = tuple(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))
DIGITS = "Handwritten digits and a residual perceptron in place of ImageNet and ResNet50"
SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(
        data=DIGITS, sites=perceptron(48, 4), n_samples=1000, n_test=300, n_atoms=32, n_epochs=12,
        checkpoints=(0, 1, 3, 6, 12), n_seeds=1, n_draws=3, patience=1,
    ),
    "small": Setting(
        data=DIGITS, sites=perceptron(96, 6), n_samples=1797, n_test=497, n_atoms=48, n_epochs=40,
        checkpoints=(0, 1, 2, 3, 5, 8, 12, 20, 30, 40), n_seeds=4, n_draws=20,
    ),
    "full": Setting(
        data="Fashion-MNIST and ResNet-18 in place of ImageNet and ResNet50",
        sites=Sites(
            lambda seed: ResNet18(1, 10, random_state=seed), ("stem", "relu", *_BLOCKS, "features"),
            tuple(f"{name}:in" for name in _BLOCKS), tuple(f"{name}.norm2" for name in _BLOCKS),
        ),
        n_samples=20_000, n_test=5000, n_atoms=2000, n_epochs=40,
        checkpoints=(*range(11), 12, 14, 16, 20, 24, 28, 32, 36, 40), n_seeds=2, n_draws=20, n_shaken=2000, batch_size=128,
        nmf_batch=1024,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train a residual perceptron on the handwritten digits; ``full`` trains ResNet-18 on
    Fashion-MNIST, from the folder that ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its
    files are missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    yield from all_claims(SETTINGS[preset], load_data(preset), seed)


def load_data(preset: Preset) -> tuple[Tensor, Tensor]:
    """Inputs and labels, as many as the preset takes."""
    n_samples = SETTINGS[preset].n_samples
    if preset == "full":
        images, labels = fashion_mnist("train")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return images[:n_samples].to(device), labels[:n_samples].to(device)
    inputs, labels = digits(flat=True)
    return inputs[:n_samples], labels[:n_samples]
