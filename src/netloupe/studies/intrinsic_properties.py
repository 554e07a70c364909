"""The effect of intrinsic dataset properties on generalisation (arXiv 2401.08865): dimension, label sharpness, and what they
foretell.

Claims: the estimators find a known dimension; test loss grows with it and falls with samples the more slowly the higher it is;
sharper labels are worse at equal dimension and easier to attack; layers have a lower dimension than the data, the less the deeper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netloupe.core.errors import InputError
from netloupe.core.study import Claim, Preset
from netloupe.data.digits import digits
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.studies._intrinsic_properties_claims import Manifolds, estimator_claims, manifold_claims
from netloupe.studies._intrinsic_properties_network import Recipe
from netloupe.studies._intrinsic_properties_pairs import Pairs, draw_pairs, pair_claims


@dataclass(frozen=True)
class Setting:
    """A preset: repetitions of the estimators, the grid on manifolds, and the pairs of classes."""

    n_estimates: int
    manifolds: Manifolds
    recipe: Recipe
    pair_recipe: Recipe
    n_pairs: int
    n_train: int
    n_pair_seeds: int


SETTINGS: dict[Preset, Setting] = {
    "smoke": Setting(
        1, Manifolds((2, 4, 8), (), 3.0, (2, 8), (125, 500), 500, 500, 1), Recipe((64, 64), 400), Recipe(steps=150), 10, 240, 1,
    ),
    "small": Setting(
        3, Manifolds((2, 4, 8, 16), (1.0, 2.0, 4.0), 3.0, (2, 8), (125, 250, 500, 1000, 2000), 1000, 2000, 3),
        Recipe((128, 128), 1500), Recipe(steps=600), 45, 240, 2,
    ),
    "full": Setting(
        10, Manifolds((2, 4, 8, 16), (1.0, 2.0, 4.0), 3.0, (2, 8), (125, 250, 500, 1000, 2000, 4000, 8000), 1000, 10_000, 10),
        Recipe((512, 512), 10_000), Recipe((512, 512, 512), 5000), 45, 1750, 5,
    ),
}  # fmt: skip


def run(preset: Preset, seed: int = 0) -> Iterator[Claim]:
    """All claims, each with its control.

    ``smoke`` and ``small`` use manifolds made for the purpose and pairs of classes of the handwritten digits; ``full`` has pairs of
    Fashion-MNIST, from the folder that ``NETLOUPE_DATA`` names, on a GPU if there is one. Raises SubjectError where its files are
    missing.
    """
    if preset not in SETTINGS:
        raise InputError(f"preset is '{preset}', but one of {', '.join(SETTINGS)} is expected; choose one.")
    setting = SETTINGS[preset]
    yield from estimator_claims(range(seed * 100, seed * 100 + setting.n_estimates))
    yield from manifold_claims(setting.manifolds, setting.recipe, seed)
    x, y = digits(flat=True) if preset != "full" else _fashion()
    pairs = Pairs(x, y, draw_pairs(int(y.max()) + 1, setting.n_pairs, seed), setting.n_train, setting.n_pair_seeds)
    yield from pair_claims(
        pairs, setting.pair_recipe, seed, "Handwritten digits" if preset != "full" else "Fashion-MNIST"
    )


def _fashion():
    images, labels = fashion_mnist("train")
    return images.flatten(1), labels
