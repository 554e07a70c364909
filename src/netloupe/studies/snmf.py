"""Decomposing MLP activations into interpretable features via semi-non-negative matrix factorisation (arXiv 2506.10920).

Claims: planted sparse features are recovered; features of a language model need few neurons; codes tell topics; features steer
at equal disturbance; factorising again gives a tree.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._snmf_network import Setting, from_path, learn, sizes, steering, trained
from netloupe.studies._snmf_planted import Sizes, nested, recovery
from netloupe.studies._snmf_text import concepts, untested

PLANTED: dict[Preset, Sizes] = {
    "smoke": Sizes(d=200, n=1000, k=8, own=10, iterations=150, sae_steps=100),
    "small": Sizes(),
    "full": Sizes(iterations=2000),
}
NETWORK: dict[Preset, Setting] = {
    "smoke": Setting(steps=80, windows=24, k=16, iterations=60, sae_steps=100, steered=4),
    "small": Setting(),
    "full": Setting(windows=1024, k=100, iterations=2000, sae_steps=20_000, steered=100),
}
SEEDS: dict[Preset, int] = {"smoke": 1, "small": 3, "full": 5}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` leaves the topics untested, for they need an installed sentence encoder. ``full`` takes a Hugging Face language model
    from the folder in ``NETLOUPE_SNMF_MODEL``, at an early, a middle and a late block, on a GPU if there is one; without it, the small
    network with more text.
    """
    if preset not in PLANTED:
        raise InputError(f"preset is '{preset}', but one of {', '.join(PLANTED)} is expected; choose one.")
    seeds, setting = range(seed, seed + SEEDS[preset]), NETWORK[preset]
    yield recovery(PLANTED[preset], seeds)
    given = from_path(setting) if preset == "full" else []
    for index, language in enumerate(given or [trained(setting, seed)]):
        label = f"-{index}" if given else ""
        learned = learn(language, setting, seed)
        yield from sizes(learned, language, label)
        yield from steering(learned, language, setting, seed, label)
    if preset == "smoke":
        yield from untested("needs MiniLM, which the smallest preset does not load")
    else:
        yield from concepts(300 if preset == "small" else 2000, 1000 if preset == "small" else 20_000, seed)
    yield from nested(
        600 if preset == "smoke" else 4000, 150 if preset == "smoke" else 500, 30 if preset == "smoke" else 200, seeds
    )
