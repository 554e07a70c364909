"""FIND: a function interpretation benchmark (arXiv 2309.03886): does an explainer really find out what a black box does?

Functions with known truth - curves, programs on strings, units that respond to words - are explained within a budget of calls by
interpreters that need no language model, and the explanations are graded.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._find_curves import family_claim, generator_claims, interval_claims, lenient_claim
from netloupe.studies._find_words import Setting, hint_claims, string_claim

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(300, 24, 40, 40, 24, 800),
    "small": Setting(),
    "full": Setting(10_000, 4000, 4000, 1000, 200, None, minilm=True),
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    Entity units live in a space of words counted from the documentation of Python's standard library; ``full`` takes MiniLM
    (sentence-transformers, its weights on this machine) instead.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    yield from generator_claims(setting.generated, seed)
    yield lenient_claim(400, seed)
    yield from interval_claims(setting.curves, seed)
    yield family_claim(setting.noisy, seed)
    yield string_claim(setting, seed)
    yield from hint_claims(setting, seed)
