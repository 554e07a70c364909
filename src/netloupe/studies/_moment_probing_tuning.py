"""The claims of the moment-probing study about adapters in the frozen network, tuned together with the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import tap
from netloupe.core.isolation import random_state as seeded
from netloupe.core.splits import holdout
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import accuracy, train
from netloupe.nn.moment_head import MomentHead
from netloupe.nn.psrp import attach_recalibration
from netloupe.studies._moment_probing_network import SITE, Data, NetworkSettings, pretrained, unseen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITES = ("relu1", "relu2")
"""the blocks' outputs, which the adapters rescale and shift"""
RATE, DECAY = 3e-3, 0.05
Adapters = Literal["none", "tuned", "random", "zero"]


@dataclass(frozen=True)
class TuningSettings:
    """How long heads and adapters are trained, and with how many networks."""

    n_epochs: int
    n_seeds: int
    batch_size: int = 64


class Tuned(nn.Module):
    """A head on the token map of a frozen network, which stays in evaluation mode."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def train(self, mode: bool = True) -> Tuned:
        """Only the head changes mode: batch norm keeps the statistics it was trained with."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        with tap(self.body, [SITE]) as values:
            self.body(images)
        return self.head(values[SITE])


class LinearHead(nn.Module):
    """A linear classifier of the mean over places, behind a layer norm as in the published head for such networks."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.linear = nn.Linear(dim, n_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits."""
        return self.linear(self.norm(maps.mean((2, 3))))


class MapHead(MomentHead):
    """The moment head on feature maps."""

    def forward(self, tokens: Tensor, cls: Tensor | None = None) -> Tensor:
        """Logits."""
        return super().forward(tokens.flatten(2).transpose(1, 2), cls)


class Runs(NamedTuple):
    """Held-out accuracies with one network: heads alone, with tuned, random and zero adapters."""

    linear: float
    moment: float
    linear_tuned: float
    moment_tuned: float
    moment_random: float
    linear_zero: float
    moment_zero: float


def tuned_accuracy(
    settings: TuningSettings,
    network: NetworkSettings,
    body: nn.Module,
    data: Data,
    kind: str,
    adapters: Adapters,
    seed: int,
) -> float:
    """Trains a head (and adapters) on half of the data and returns its accuracy on the other half.

    Raises AssertionError where a weight of the frozen network changed by as much as a bit.
    """
    images, labels = data
    fitted, judged = holdout(len(labels), 0.5, labels.cpu().numpy(), random_state=seed)
    with seeded(seed):
        head: nn.Module = (
            LinearHead(32, 5) if kind == "linear" else MapHead(32, 5, network.hidden, first="mean", norm=True)
        )
    body.requires_grad_(False)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    model = Tuned(body, head.to(images.device))
    trained = list(head.parameters())
    with ExitStack() as stack:
        if adapters != "none":
            block = attach_recalibration(body, SITES, images[:2], zero_init=adapters == "zero", random_state=seed)
            made = stack.enter_context(block)
            trained += list(made.parameters()) if adapters == "tuned" else []
        steps = settings.n_epochs * (len(fitted) // settings.batch_size)
        train(
            model, (images[fitted], labels[fitted]), steps=steps, batch_size=settings.batch_size,
            optimizer=torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY), schedule="cosine", seed=seed,
        )  # fmt: skip
        found = accuracy(model, images[judged], labels[judged])
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    return found


def runs_with(settings: TuningSettings, network: NetworkSettings, data: Data, seed: int) -> Runs:
    """Every head and every kind of adapters on one network."""
    body, probed = pretrained(network, data, seed), unseen(network, data)
    wanted: list[tuple[str, Adapters]] = [
        ("linear", "none"), ("moment", "none"), ("linear", "tuned"), ("moment", "tuned"), ("moment", "random"),
        ("linear", "zero"), ("moment", "zero"),
    ]  # fmt: skip
    return Runs(*(tuned_accuracy(settings, network, body, probed, *one, seed) for one in wanted))


def tuning_claims(settings: TuningSettings, network: NetworkSettings, data: Data, seed: int) -> Iterator[Claim]:
    """Adapters add to moment probing, and more than to linear probing."""
    runs = [runs_with(settings, network, data, one) for one in range(seed * 100, seed * 100 + settings.n_seeds)]

    def plot(axes: Axes) -> None:
        names = ["linear", "moment", "linear,\nadapters", "moment,\nadapters", "moment,\nrandom"]
        rows = [list(run[:5]) for run in runs]
        axes.bar(names, np.mean(rows, 0), color=["C7", "C0", "C7", "C0", "C3"])
        for row in rows:
            axes.plot(names, row, ".", color="0.2")
        axes.set(ylabel="held-out accuracy", ylim=(0, 1.02))

    def plot_gains(axes: Axes) -> None:
        for place, values in enumerate(
            ([r.linear_tuned - r.linear for r in runs], [r.moment_tuned - r.moment for r in runs])
        ):
            axes.plot([place] * len(values), values, "o", color=("C7", "C0")[place])
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set_xticks([0, 1], ["linear head", "moment head"])
        axes.set(xlim=(-0.5, 1.5), ylabel="accuracy gained by adapters")

    means = {name: float(np.mean([getattr(run, name) for run in runs])) for name in Runs._fields}
    head = (
        f"{network.data}, the network and classes of the frozen-network claim; adapters of width 16 on {' and '.join(SITES)}, "
        f"{settings.n_epochs} epochs of AdamW. Every weight of the network stayed bit-identical."
    )
    yield Claim(
        name="adapters",
        statement="Recalibrating adapters tuned together with the head (MP+) add to moment probing; measured is the "
        "accuracy they add.",
        **over_seeds([run.moment_tuned - run.moment for run in runs]),
        bar=Bar(">=", 0.01),
        control=round(float(np.mean([run.moment_random - run.moment for run in runs])), 12),
        control_statement="the same with adapters that keep their random start and are not tuned",
        note=f"{head} Linear {means['linear']:.3f}, with adapters {means['linear_tuned']:.3f}; moment probe "
        f"{means['moment']:.3f}, with adapters {means['moment_tuned']:.3f}.",
        plot=plot,
    )
    yield Claim(
        name="adapters-and-moments",
        statement="The adapters add more to the moment head than to a linear one; measured is the difference of the two "
        "gains in accuracy.",
        **over_seeds([(r.moment_tuned - r.moment) - (r.linear_tuned - r.linear) for r in runs]),
        bar=Bar(">", 0.0),
        control=float(np.mean([(r.moment_zero - r.moment) - (r.linear_zero - r.linear) for r in runs])),
        control_statement="the same with adapters in place that are zero and stay so, which must change nothing",
        note=head + (
            " The paper does not claim this; a linear head leaves more to be gained."
            if means["linear_tuned"] - means["linear"] > means["moment_tuned"] - means["moment"] else ""
        ),
        plot=plot_gains,
    )  # fmt: skip
