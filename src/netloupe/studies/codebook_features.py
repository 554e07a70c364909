"""Codebook features (arXiv 2310.17230): can hidden states be made of a few entries of a learned table, to be read and edited?

A token-level finite state machine with more states than the network has units, a plain network that reads it, and the same with
codebooks. Claims: attention is cheap to quantise; codes name states better than units, and decide; more states than units fit;
the reconstruction term matters; more codes a vector cost less; and a topic's codes steer a language model (not tested here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim, Preset
from netloupe.studies._codebook_features_claims import (
    accuracy_claims,
    bits_claims,
    capacity_claims,
    gradient_claims,
    interchange_claim,
    naming_claim,
)
from netloupe.studies._codebook_features_network import Setting, World

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting((25, 4, 5), (16, 2, 2), 13, 32, 60, (300, 70), (1e-2, 5e-3), 128, sweeps=False),
    "small": Setting((36, 6, 6), (24, 2, 2), 17, 64, 144, (1500, 700), (5e-3, 3e-3), 512),
    "full": Setting((100, 10, 10), (128, 4, 4), 128, 512, 1000, (20_000, 20_000), (1e-3, 1e-3), 512, from_plain=False),
}
"""``full`` is the paper's size, every network trained from the start, on a GPU if there is one."""

SWEEPS = {
    "purity rises with codes": "the more codes a table has, the larger the share of them that fires on one pair of digits only",
    "as many codes as states": "every feed-forward table uses at least as many codes as there are states",
    "reconstruction term, error": "without the reconstruction term in the tables' gradient the reconstruction error is larger",
    "reconstruction term, codes in use": "and fewer codes are in use",
    "more codes a vector, less loss": "with more codes a vector in feed-forward tables the loss never rises",
    "both at k = 1 is worst": "one code a vector in attention and feed-forward blocks loses most",
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control. Raises InputError for another preset."""
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    world = World(SETTINGS[preset], seed)
    yield from accuracy_claims(world)
    yield naming_claim(world)
    yield interchange_claim(world)
    sweeps: list[Callable[[World], Iterator[Claim]]] = [capacity_claims, gradient_claims, bits_claims]
    for claims in sweeps if world.setting.sweeps else ():
        yield from claims(world)
    for name, statement in SWEEPS.items() if not world.setting.sweeps else ():
        yield _not_tested(
            name, statement, "Not tested at this size: it needs ten networks more than there is time for."
        )
    yield _not_tested(
        "steering by a code",
        "forcing a topic's codes makes generated text turn to the topic at least three times as often",
        "Not tested: a language model that writes words needs far more training than the five minutes of the small size; "
        "the tools (CodeIndex.search, switch_on, CodebookModel.force) work on any network.",
    )


def _not_tested(name: str, statement: str, why: str) -> Claim:
    return Claim(name, statement, None, Bar(">", 0.0), None, "none at this size", note=why)
