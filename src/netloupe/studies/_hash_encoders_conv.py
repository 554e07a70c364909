"""The convolutional network of the hash-encoders study, with codes of every position and of whole channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from netloupe.core.nulls import untrained
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import train
from netloupe.lenses.geometry.code_classes import CodeCategorization, code_categorization
from netloupe.lenses.geometry.codes import Spatial, network_codes
from netloupe.models.resnet import ResNet18
from netloupe.models.small import DigitsCNN
from netloupe.studies._hash_encoders_network import Data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VARIANTS: tuple[Spatial, ...] = ("all", "sum")
MOST_CODED = 5000
"""samples of either set whose codes are compared: with a bit for every position a code takes tens of kilobytes"""


def conv_claim(data: Data, steps: int, seeds: Sequence[int]) -> Claim:
    """The bits of a convolutional network tell the class too, position by position and channel by channel."""
    statement = (
        "K-NN on the codes of a convolutional network reads the class, with a bit for every position as well as with one for every "
        "channel (the sum over its positions); measured is the lower accuracy."
    )
    control = "the same of the untrained network"
    if not steps:
        return Claim(
            "conv", statement, None, Bar(">=", 0.95), None, control, note="Not trained at this size: it takes too long."
        )
    found = [_measured(data, steps, seed) for seed in seeds[:3]]

    def means(which: int, variant: Spatial, name: str) -> float:
        return float(np.mean([getattr(one[which][variant], name) for one in found]))

    notes = [
        f"{label}, {'every position' if variant == 'all' else 'channels'}: {means(which, variant, 'n_bits'):.0f} bits that vary, "
        f"redundancy {means(which, variant, 'redundancy_train'):.3f}, K-NN {means(which, variant, 'knn'):.3f}."
        for which, label in enumerate(("Trained", "Untrained"))
        for variant in VARIANTS
    ]
    return Claim(
        "conv", statement, **over_seeds([min(cast(float, one[0][v].knn) for v in VARIANTS) for one in found]), bar=Bar(">=", 0.95),
        control=float(np.mean([min(cast(float, one[1][v].knn) for v in VARIANTS) for one in found])), control_statement=control,
        note=" ".join(notes), plot=_plot(means),
    )  # fmt: skip


def _measured(
    data: Data, steps: int, seed: int
) -> tuple[dict[Spatial, CodeCategorization], dict[Spatial, CodeCategorization]]:
    """Categorisation of both variants' codes, of the trained and of the untrained network."""
    side = round(data.x.shape[1] ** 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = DigitsCNN() if side == 8 else ResNet18(1, 10, random_state=seed)
    x, x_test = (part.view(-1, 1, side, side) for part in (data.x, data.x_test))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fresh = untrained(model, seed).to(device)
    model = model.to(device)
    adam = torch.optim.Adam(model.parameters(), 1e-2 if side == 8 else 1e-3)
    train(model, (x, data.y), steps=steps, batch_size=64, optimizer=adam, schedule="cosine", seed=seed)

    def read(network: nn.Module) -> dict[Spatial, CodeCategorization]:
        found: dict[Spatial, CodeCategorization] = {}
        for variant in VARIANTS:
            train_codes, test_codes = (
                network_codes(network, part[:MOST_CODED], spatial=variant) for part in (x, x_test)
            )
            found[variant] = code_categorization(
                train_codes, data.y[:MOST_CODED], test_codes, data.y_test[:MOST_CODED], methods=("knn",)
            )
        return found

    return read(model), read(fresh)


def _plot(means: Callable[[int, Spatial, str], float]) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for which, label in enumerate(("trained", "untrained")):
            places = np.arange(2) + 0.4 * which
            axes.bar(places, [means(which, v, "knn") for v in VARIANTS], 0.38, label=label, color=("C0", "C7")[which])
        axes.set(
            xticks=[0.2, 1.2], xticklabels=["a bit a position", "a bit a channel"], ylabel="K-NN accuracy", ylim=(0, 1)
        )
        axes.legend(fontsize="small", loc="lower left")

    return plot
