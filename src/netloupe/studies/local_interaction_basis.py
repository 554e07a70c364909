"""The local interaction basis (arXiv 2405.10928): does a basis that looks at the next layer find features that interact with few?

Two planted blocks, modular addition, handwritten digits and a language model on bytes, with principal components beside it
everywhere. Claims: it separates what is independent, needs fewer edges, drops what does not matter, and orders what does; and,
as the paper reports, it gains nothing on language models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._local_interaction_basis_claims import (
    addition_claims,
    block_claims,
    importance_claims,
    language_claim,
)
from netloupe.studies._local_interaction_basis_networks import addition_network, digits_network, fashion_network


@dataclass(frozen=True)
class Setting:
    """A preset: modulus, hidden width, steps and seeds of addition; steps of digits and of the language model (0: none)."""

    p: int
    width: int
    steps: int
    n_seeds: int
    digits_steps: int
    text_steps: int


SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(11, 40, 600, 1, 500, 0),
    "small": Setting(31, 96, 3000, 3, 2000, 400),
    "full": Setting(113, 512, 20_000, 3, 11_000, 5000),
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``full`` has the published modulus of 113 and, in place of digits, a perceptron 784-100-100-10 on Fashion-MNIST, from the
    folder that ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its files are missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    seeds = tuple(range(seed * 100, seed * 100 + setting.n_seeds))
    yield from block_claims(seeds)
    most = 2048 if preset == "full" else None
    networks = [addition_network(setting.p, setting.width, setting.steps, s, most) for s in seeds]
    yield from addition_claims(networks, setting.p, seeds)
    grown = fashion_network if preset == "full" else digits_network
    yield from importance_claims([grown(setting.digits_steps, s) for s in seeds])
    yield language_claim(setting.text_steps, seed)
