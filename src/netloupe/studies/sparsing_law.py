"""Sparsing Law (arXiv 2411.02335): how many feed-forward neurons can be skipped, and how that moves with data and shape.

Nine claims: the metric hits the error and the perplexity it is asked for; its rule costs less than its rivals; ReLU
networks are sparser than SiLU networks and no worse; with more data the two move apart; the fitters recover the
published laws and tell their families; slim networks are sparser than wide ones up to a knot. The first and the
fitters are exact or synthetic, the others train byte language models.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._sparsing_law_models import model_claims, shape_claim
from netloupe.studies._sparsing_law_setting import SETTINGS, load_text
from netloupe.studies._sparsing_law_synthetic import family_claim, limit_claim, threshold_claim


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` train on the docstrings of Python's standard library; ``full`` on the text file that
    ``NETLOUPE_TEXT`` names, on a GPU if there is one. Raises SubjectError where that file is missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    settings = SETTINGS[preset]
    text = load_text(settings)
    yield threshold_claim(range(seed * 100, seed * 100 + 3))
    yield from model_claims(settings, text, range(seed * 100, seed * 100 + settings.n_seeds))
    yield limit_claim(range(seed * 100, seed * 100 + settings.n_fits))
    yield family_claim(range(seed * 100, seed * 100 + settings.n_fits))
    yield shape_claim(settings, text, seed)
