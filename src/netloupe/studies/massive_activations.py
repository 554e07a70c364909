"""Hidden Dynamics of Massive Activations in Transformer Training (arXiv 2508.03616): how the largest values emerge.

Nine claims: the five-parameter curve is fittable and its peak is found; the peak has a closed form; the curve beats step
responses; ratios are learned and follow the curve; planted massive scalars are found, and zeroing them matters where
replacing them by their mean does not; the architecture foretells the curve. The curves and the table are synthetic with
known answers, the trajectories are those of a byte language model, far too small to have massive activations in the
strict sense.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._massive_activations_curves import curve_claims, step_claim
from netloupe.studies._massive_activations_network import growth_claims, planted_claims, table_claim
from netloupe.studies._massive_activations_setting import SETTINGS, load_text, watch_ratios


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train on the docstrings of Python's standard library; ``full`` on the text file that
    ``NETLOUPE_TEXT`` names, on a GPU if there is one. Raises SubjectError where that file is missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    settings = SETTINGS[preset]
    text = load_text(settings)
    yield from curve_claims(settings, seed)
    trajectories = [watch_ratios(settings, text, seed * 100 + index) for index in range(settings.n_seeds)]
    yield step_claim(settings, trajectories, seed)
    yield from growth_claims(settings, text, trajectories, seed)
    yield from planted_claims(trajectories[0], text, seed)
    yield table_claim(seed)
