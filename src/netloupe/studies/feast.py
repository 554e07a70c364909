"""Event-based feature extraction using adaptive selection thresholds (arXiv 1907.07853).

Claims: the steady miss rate and equal shares follow from the steps of the thresholds alone; size pays only with thresholds; thresholds tell
convergence; a feature for noise tells the size; pooled features support a linear classifier.
"""

from __future__ import annotations

from collections.abc import Iterator

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._feast_bars import Sizes, balance, convergence, long_run, network_sizes
from netloupe.studies._feast_digits import Recordings, classification, untested

BARS: dict[Preset, Sizes] = {
    "smoke": Sizes(n_events=50_000, long=100_000, sizes=(4, 16, 32)),
    "small": Sizes(),
    "full": Sizes(n_events=1_000_000, long=5_000_000, sizes=(2, 4, 8, 16, 32, 64, 128)),
}
DIGITS: dict[Preset, Recordings] = {
    "smoke": Recordings(0, 0),
    "small": Recordings(),
    "full": Recordings(train=6000, test=1000, learned_from=10_000, n_features=100),
}
SEEDS: dict[Preset, int] = {"smoke": 1, "small": 3, "full": 5}


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` leaves the classifier untested. ``full`` takes N-MNIST from the folder in ``NETLOUPE_NMNIST`` (as tonic lays it out; extra
    ``events``), without it all small digits; it runs on the processor, for the rule is sequential.
    """
    if preset not in BARS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(BARS)} is expected; choose one.")
    seeds = range(seed, seed + SEEDS[preset])
    yield from balance(BARS[preset], seeds)
    yield long_run(BARS[preset], seeds)
    yield from convergence(BARS[preset], seeds)
    yield from network_sizes(BARS[preset], seeds)
    if preset == "smoke":
        yield from untested("recordings of ten classes are left out of the smallest preset")
    else:
        yield from classification(DIGITS[preset], seeds, preset == "full")
