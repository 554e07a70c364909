"""Natural language descriptions of deep visual features (arXiv 2201.11114): which phrase says most about the regions that drive a unit?

Networks learn to see planted scenes; a describer learns, from three of them, to describe regions as three annotators of differing
detail do, and is asked about other units, another network, and networks that a written letter misleads.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._milan_annotations import people_claim
from netloupe.studies._milan_claims import closed_list_claim, specific_claims, transfer_claim
from netloupe.studies._milan_editing import Edited, editing_claims, matter_claim
from netloupe.studies._milan_world import Setting, World

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(
        scenes=800, steps=80, shown=300, widths=((8, 16, 24),), epochs=50, patience=50, beam=10, edited=0, hidden=32, dissected=100,
    ),
    "small": Setting(),
    "full": Setting(
        scenes=60_000, steps=6000, shown=10_000, widths=((32, 96, 160), (48, 96, 160), (32, 128, 128)), hidden=512, epochs=100,
        edited=5, edit_scenes=20_000, edit_steps=3000, judged=2000, dissected=3000,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``full`` plants larger scenes, on a GPU if there is one, and reads people's descriptions, MILANNOTATIONS, under
    ``NETLOUPE_DATA/milannotations`` (a folder a network) with the backbone that ``NETLOUPE_MODEL`` names; without them that
    claim stays untested.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting, small = SETTINGS[preset], preset == "smoke"
    world = World(setting, seed)
    yield from specific_claims(world, small)
    yield transfer_claim(world, small)
    yield closed_list_claim(world)
    runs = [Edited(world, setting, 1000 * (seed + 1) + 100 * index) for index in range(setting.edited)]
    yield from editing_claims(runs, small)
    yield matter_claim(runs, small)
    yield people_claim(seed, preset == "full")
