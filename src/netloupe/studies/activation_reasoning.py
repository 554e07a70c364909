"""ActivationReasoning: logical reasoning in latent activation spaces (arXiv 2510.18184).

Claims: the reasoner is exact; latents detect concepts, trees on them best; with rules the accuracy does not fall with the length of the
chain; concepts that are never mentioned are derived; pushing towards a derived concept raises its words; thresholds matter.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._activation_reasoning_claims import (
    country_claim,
    detection_claims,
    hop_claims,
    steering_claims,
    threshold_claim,
)
from netloupe.studies._activation_reasoning_logic import exact_claim
from netloupe.studies._activation_reasoning_network import Setting, make_world

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(1, 150, 1200, 256, 8, 300, 40, (150, 60), 5, hops=(1, 5)),
    "small": Setting(),
    "full": Setting(5, 3000, 20_000, 1024, 16, 10_000, 1000, (2000, 500), 50),
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control, on networks that are trained here on sentences about twelve concepts."""
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    yield exact_claim(setting.bases, seed)
    worlds = [make_world(setting, 100 * seed + at) for at in range(setting.n_seeds)]
    yield from detection_claims(worlds)
    yield threshold_claim(worlds)
    yield from hop_claims(worlds)
    yield country_claim(worlds)
    yield from steering_claims(worlds)
