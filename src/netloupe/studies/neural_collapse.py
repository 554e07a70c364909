"""Perturbation Analysis of Neural Collapse (arXiv 2210.16658): why features only almost collapse.

Six claims: along the gradient flow of the free-feature model the classes tighten; so they do through a thin layer, by
an amount that falls with its stiffness (a claim in two parts); the spectrum of that layer's perturbation operator is
known; the operator predicts; depth lowers NC1 layer by layer; the weight decay of the body matters more than that of
the head. The first four are exact statements about a model, the last two train networks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.data import digits, fashion_mnist
from netloupe.models.resnet import ResNet18
from netloupe.models.small import mlp
from netloupe.studies._neural_collapse_model import ModelSettings, model_claims
from netloupe.studies._neural_collapse_training import TrainingSettings, training_claims


def small_network(width: int, head_bias: bool, seed: int) -> nn.Module:
    """A perceptron with two hidden layers on flattened digits."""
    model = mlp(64, (width, width), 10, random_state=seed)
    if not head_bias:
        model.get_submodule("head").register_parameter("bias", None)
    return model


MODEL: dict[Preset, ModelSettings] = {
    "smoke": ModelSettings(n_steps=1000, record=50, n_seeds=1),
    "small": ModelSettings(n_steps=18_000, record=200, n_seeds=3),
    "full": ModelSettings(n_steps=18_000, record=200, n_seeds=10),
}
TRAINING: dict[Preset, TrainingSettings] = {
    "smoke": TrainingSettings(
        "Handwritten digits in place of Fashion-MNIST and CIFAR-10", (64, 64, 64), 12, 1,
        lambda bias, seed: small_network(64, bias, seed), ("squared error",), 12, 4, 1,
        batch_size=32, watch_every=4, shuffled=False,
    ),
    "small": TrainingSettings(
        "Handwritten digits in place of Fashion-MNIST and CIFAR-10", (256,) * 5, 40, 3,
        lambda bias, seed: small_network(128, bias, seed), ("squared error",), 120, 40, 2,
        batch_size=32,
    ),
    "full": TrainingSettings(
        "Fashion-MNIST in place of CIFAR-10", (256,) * 10, 60, 3,
        lambda bias, seed: ResNet18(1, 10, head_bias=bias, random_state=seed), ("squared error", "cross-entropy"),
        200, 40, 2, batch_size=128, watch_every=1,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train on the handwritten digits; ``full`` trains on Fashion-MNIST, from the folder
    that ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its files are missing.
    """
    if preset not in MODEL:
        raise InputError(f"preset is '{preset}', but one of {', '.join(MODEL)} is expected; choose one.")
    data = load_data(preset)
    yield from model_claims(MODEL[preset], seed)
    yield from training_claims(TRAINING[preset], data, seed)


def load_data(preset: Preset) -> tuple[Tensor, Tensor]:
    """Inputs and labels of the training claims; for ``smoke`` the first 512 digits."""
    if preset == "full":
        images, labels = fashion_mnist("train")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return images.to(device), labels.to(device)
    inputs, labels = digits(flat=True)
    return (inputs[:512], labels[:512]) if preset == "smoke" else (inputs, labels)
