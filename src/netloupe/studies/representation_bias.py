"""Learned feature representations are biased by complexity, learning order, position, and more (arXiv 2405.05847).

Perceptrons learn two independent features of a vector perfectly; the variance that each takes in the last hidden layer is
unequal nevertheless. Claims: simple beats complex, first beats late, frequent beats rare; and what this does to RSA, PCA,
steering and downstream readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.studies._representation_bias_claims import Networks, consequences, inequality, regimes
from netloupe.studies._representation_bias_network import Recipe, Run, Trained, train_runs, untrained

EASY_HARD, EASY_HARDER, HARDS, EASIES = (
    ("majority", "xor"),
    ("majority", "parity3"),
    ("xor", "xor"),
    ("majority", "majority"),
)
DROPOUTS = (0.0, 0.1, 0.3)
PAPER_WIDTHS = (256, 128, 64, 64)


@dataclass(frozen=True)
class Setting:
    """A preset: ``shallow`` for inequality and consequences; ``deep`` and ``deep_sgd`` for order, prevalence and dropout."""

    shallow: Recipe
    deep: Recipe | None
    deep_sgd: Recipe | None
    n_seeds: int


SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(Recipe((128, 128), 0.0, "adam", 1e-3, 600, n_test=1024), None, None, 1),
    "small": Setting(
        Recipe((128, 128), 0.0, "adam", 1e-3, 2500),
        Recipe(PAPER_WIDTHS, 0.01, "adam", 1e-3, 2500),
        Recipe(PAPER_WIDTHS, 0.01, "sgd", 1e-2, 4000), 3,
    ),
    "full": Setting(
        Recipe((128, 128), 0.0, "adam", 1e-3, 20_000, n_train=32_768, n_test=16_384),
        Recipe(PAPER_WIDTHS, 0.01, "adam", 1e-3, 20_000, n_train=32_768, n_test=16_384),
        Recipe(PAPER_WIDTHS, 0.01, "sgd", 1e-2, 20_000, n_train=32_768, n_test=16_384), 10,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` trains six shallow networks and leaves order, prevalence and dropout untested; ``full`` has ten seeds, larger
    sets and eight times the steps, on a GPU if there is one.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    seeds = range(seed, seed + setting.n_seeds)
    kinds = {
        "easy-hard": (EASY_HARD, (1.0, 1.0)), "easy-harder": (EASY_HARDER, (1.0, 1.0)), "hards": (HARDS, (1.0, 1.0)),
        "easies": (EASIES, (1.0, 1.0)), "easy": (EASY_HARD, (1.0, 0.0)), "hard": (EASY_HARD, (0.0, 1.0)),
    }  # fmt: skip
    shallow = _grouped(
        {name: [Run(each, s, prevalence=shown) for s in seeds] for name, (each, shown) in kinds.items()}, setting.shallow, seed, 20
    )  # fmt: skip
    before = untrained([Run(EASY_HARD, s) for s in seeds], setting.shallow)
    deep = sgd = None
    if setting.deep is not None and setting.deep_sgd is not None:
        orders = {
            "together": [Run(EASY_HARD, s) for s in seeds], "hard first": [Run(EASY_HARD, s, 1) for s in seeds],
            "easy first": [Run(EASY_HARD, s, 0) for s in seeds], "hards": [Run(HARDS, s) for s in seeds],
            "one first": [Run(HARDS, s, 0) for s in seeds],
        }  # fmt: skip
        sgd = _grouped(orders, setting.deep_sgd, seed)
        more = {f"dropout {rate:g}": [Run(EASY_HARD, s, dropout=rate) for s in seeds] for rate in DROPOUTS}
        more["rare"] = [Run(HARDS, s, prevalence=(1.0, 0.1)) for s in seeds]
        deep = _grouped({name: orders[name] for name in ("hard first", "easy first", "hards", "one first")} | more,
                        setting.deep, seed)  # fmt: skip
    networks = Networks(shallow, before, deep, sgd)
    yield from inequality(networks)
    yield from regimes(networks, DROPOUTS)
    yield from consequences(networks)


def _grouped(wanted: dict[str, list[Run]], recipe: Recipe, seed: int, looks: int = 0) -> dict[str, list[Trained]]:
    """All runs as one stack, then by name again."""
    found = iter(train_runs([run for runs in wanted.values() for run in runs], recipe, seed, looks))
    return {name: [next(found) for _ in runs] for name, runs in wanted.items()}
