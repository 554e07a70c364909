"""Network feature complexity and iterative feature merging (arXiv 2310.06756).

Units that are computed and read alike are one feature. Claims: copies merge without a trace; trained layers hold redundant units,
wider ones more; what merges means the same, and merging beats pruning by size without any data.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._feature_merging_claims import (
    against_pruning,
    depth,
    duplicates,
    meaning,
    redundant,
    widths,
)
from netloupe.studies._feature_merging_network import Setting, load, train_nets

BETAS = tuple(np.round(np.geomspace(0.02, 0.5, 12), 4).tolist())
SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting("digits", 64, (16, 64), 3, 1, 2000, BETAS[::3]),
    "small": Setting("digits", 64, (32, 64, 128, 256), 5, 3, 4000, BETAS),
    "full": Setting("Fashion-MNIST", 64, (32, 64, 128, 256, 512, 1024), 5, 5, 20_000, tuple(np.geomspace(0.01, 0.5, 30).tolist())),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control; perceptrons on digits, or (``full``) on Fashion-MNIST from where it lies."""
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', expected one of {', '.join(SETTINGS)}")
    setting = SETTINGS[preset]
    yield from duplicates(seed)
    data = load(setting)
    seeds = range(100 * seed, 100 * seed + setting.n_seeds)
    nets = train_nets(setting, data, (setting.width, setting.width), seeds)
    yield from redundant(nets, setting, data, seed)
    yield against_pruning(nets, setting, data, seed)
    yield widths(nets, setting, data, seed)
    yield depth(setting, data, seed)
    yield meaning(nets, data, seed)
