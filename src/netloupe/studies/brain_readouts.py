"""Modeling the Human Visual System: response-optimised and task-optimised models, and readouts (arXiv 2410.14031).

Between a network's feature maps and a voxel stands a readout. The paper lets masks and maps move with the image's content and finds
that it predicts voxels better than fixed masks or plain ridge regression. Here the voxels are planted, so that it is known which of them
move: objects at random places on a map, a voxel that reads one part of an object wherever it is, and others that read a place.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._brain_readouts_claims import ceilings, efficiency, identity, moving_fields, three_zones
from netloupe.studies._brain_readouts_fits import Setting

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(400, 200, 14, 4, 250, 1, (60, 400)),
    "small": Setting(1500, 400, 14, 12, 1200, 3, (200, 500, 1000, 2000), captions=1200),
    "full": Setting(8000, 1000, 28, 200, 8000, 5, (200, 1000, 4000, 8000), captions=4000, n_folds=5),
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` has one seed, four voxels, and leaves out captions, which need MiniLM; ``full`` has 200 voxels on maps of 28 by 28.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    seeds = range(seed, seed + setting.n_seeds)
    yield identity(seed)
    yield from moving_fields(setting, seeds)
    yield efficiency(setting, seeds)
    yield three_zones(setting, seeds)
    yield ceilings(seeds)
