"""Convergent learning: do different neural networks learn the same representations? (arXiv 1511.07543).

Networks that differ in their seed alone are compared unit by unit on images that none was trained on: one to one, one to
few, many to many, by correlation and by mutual information. An untrained network is beside every number, for images of
common brightness make even its units correlate.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._convergent_learning_claims import beyond_chance, information, means, not_one_to_one
from netloupe.studies._convergent_learning_groups import clusters, few_to_one
from netloupe.studies._convergent_learning_network import SETTINGS, train_networks


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` compare perceptrons on digits (Fashion-MNIST, which the paper's scale would ask for at least, has to be on
    the machine: ``full``); mutual information is measured at every position of a convolutional layer.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', expected one of {', '.join(SETTINGS)}")
    setting = SETTINGS[preset]
    networks = train_networks(setting, seed)
    yield beyond_chance(networks, setting, seed)
    yield from not_one_to_one(networks, setting, seed)
    yield from few_to_one(networks, setting, seed)
    yield means(networks, setting)
    yield from information(train_networks(setting, seed, convolutional=True), setting, seed)
    yield clusters(networks, setting, seed)
