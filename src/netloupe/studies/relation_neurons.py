"""On relation-specific neurons in large language models (arXiv 2502.17355): do some units serve one kind of fact?

Units are ranked by how well their mean response tells prompts of a relation from others, the best are zeroed, and facts about other
subjects are asked. The small presets plant relations in an invented language that a two-layer network learns by heart; a last
claim looks at a text encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim, Preset
from netloupe.studies._relation_neurons_claims import (
    beyond_size_claim,
    cumulative_claim,
    exactness_claim,
    existence_claims,
    overlap_claim,
    wording_claim,
)
from netloupe.studies._relation_neurons_network import Setting, llm_world, planted_world
from netloupe.studies._relation_neurons_text import text_claim

SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(5, 30, 6, 260, 96, 1, 10, 100, (3, 4)),
    "small": Setting(8, 120, 12, 1000, 256, 3, 6, 500, (4, 5), texts=40),
    "full": Setting(12, 0, 0, 0, 0, 1, 3, 1000, (0, 1), texts=100),
}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train on planted facts; ``full`` reads the language model at ``NETLOUPE_MODEL`` and the relations under
    ``NETLOUPE_DATA/lre``, with the published sizes of sets. Raises SubjectError where these are missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    make = llm_world if preset == "full" else planted_world
    worlds = [make(setting, 100 * seed + index) for index in range(setting.n_seeds)]
    yield from existence_claims(worlds)
    yield exactness_claim(worlds[0])
    yield cumulative_claim(worlds)
    if preset == "full":
        yield _not_here("shared facts", Bar(">=", 1.5))
        yield _not_here("other wording", Bar(">", 0.0))
    else:
        yield overlap_claim(worlds)
        yield wording_claim(worlds)
    yield text_claim(setting.texts, 100 * seed)
    yield beyond_size_claim(worlds)


def _not_here(name: str, bar: Bar) -> Claim:
    return Claim(
        name,
        "as in the small preset",
        None,
        bar,
        None,
        "as in the small preset",
        note="needs planted facts in several wordings",
    )
