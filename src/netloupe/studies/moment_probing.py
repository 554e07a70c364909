"""Tuning Pre-trained Model via Moment Probing (arXiv 2307.11342): what tokens' second moments add to their mean.

Claims: where a class is written in covariances alone the moment probe reads it and a linear probe cannot; where it is in
the mean nothing is gained; on a frozen convolutional network the moment probe beats the linear one, and covariances
an equally large perceptron on the mean; the compact statistic is near the full covariance; small adapters add to it,
and more than they add to a linear head; and what it gives on tokens of text, where the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.data import digits, fashion_mnist
from netloupe.studies._moment_probing_network import NetworkSettings, network_claims
from netloupe.studies._moment_probing_planted import PlantedSettings, planted_claims
from netloupe.studies._moment_probing_text import TextSettings, text_claim
from netloupe.studies._moment_probing_tuning import TuningSettings, tuning_claims

PLANTED: dict[Preset, PlantedSettings] = {
    "smoke": PlantedSettings(n_samples=400, n_epochs=20, n_seeds=1),
    "small": PlantedSettings(n_samples=2000, n_epochs=30, n_seeds=3),
    "full": PlantedSettings(n_samples=2000, n_epochs=60, n_seeds=10),
}
NETWORK: dict[Preset, NetworkSettings] = {
    "smoke": NetworkSettings("handwritten digits in place of Fashion-MNIST", 60, 16, 1, parity_samples=400),
    "small": NetworkSettings("handwritten digits in place of Fashion-MNIST", 400, 60, 3),
    "full": NetworkSettings("Fashion-MNIST", 4000, 30, 3, hidden=128, n_probed=4000),
}
TUNING: dict[Preset, TuningSettings] = {
    "smoke": TuningSettings(n_epochs=8, n_seeds=1),
    "small": TuningSettings(n_epochs=60, n_seeds=3),
    "full": TuningSettings(n_epochs=80, n_seeds=3),
}
TEXT: dict[Preset, TextSettings] = {
    "smoke": TextSettings(n_steps=5, n_texts=120, n_epochs=3, limit=800),
    "small": TextSettings(n_steps=400, n_texts=2000, n_epochs=20),
    "full": TextSettings(n_steps=8000, n_texts=6000, n_epochs=30, d_model=128, n_layers=4),
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` use the handwritten digits; ``full`` uses Fashion-MNIST, from the folder that
    ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its files are missing.
    """
    if preset not in PLANTED:
        raise InputError(f"preset is '{preset}', but one of {', '.join(PLANTED)} is expected; choose one.")
    data = load_data(preset)
    yield from planted_claims(PLANTED[preset], seed)
    yield from network_claims(NETWORK[preset], data, seed)
    yield from tuning_claims(TUNING[preset], NETWORK[preset], data, seed)
    yield text_claim(TEXT[preset], seed)


def load_data(preset: Preset) -> tuple[Tensor, Tensor]:
    """Images ``(sample, 1, height, width)`` and labels."""
    if preset != "full":
        return digits()
    images, labels = fashion_mnist("train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return images.to(device), labels.to(device)
