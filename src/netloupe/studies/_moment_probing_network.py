"""The claims of the moment-probing study about the frozen token map of a convolutional network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.isolation import random_state as seeded
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import train
from netloupe.data.planted_tokens import planted_tokens
from netloupe.lenses.information.moment_probe import (
    MomentProbe,
    SecondOrder,
    moment_features,
    second_order,
    second_order_gain,
)
from netloupe.lenses.information.probes import LinearProbe, judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITE = "map"
"""where the tokens are read: the feature map before pooling"""
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class NetworkSettings:
    """How the network is trained on classes 0-4, and its tokens of classes 5-9 are probed."""

    data: str
    n_steps: int
    n_epochs: int
    n_seeds: int
    hidden: int = 64
    n_probed: int | None = None
    parity_samples: int = 2000

    def seeds(self, seed: int) -> range:
        """One number for each network."""
        return range(seed * 100, seed * 100 + self.n_seeds)


def build(side: int, random_state: int) -> nn.Sequential:
    """Two blocks of convolution, batch norm and ReLU, pooled to a map of 4 x 4 (or 7 x 7) tokens of 32 units."""
    with seeded(random_state):
        return nn.Sequential(OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1, bias=False), norm1=nn.BatchNorm2d(16), relu1=nn.ReLU(), pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1, bias=False), norm2=nn.BatchNorm2d(32), relu2=nn.ReLU(),
            map=nn.Identity() if side < 28 else nn.MaxPool2d(2),
            mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(32, 5),
        ))  # fmt: skip


def pretrained(settings: NetworkSettings, data: Data, seed: int) -> nn.Sequential:
    """The network trained on the first five classes."""
    images, labels = data
    known = labels < 5
    model = build(images.shape[-1], seed).to(images.device)
    train(model, (images[known], labels[known]), steps=settings.n_steps, schedule="cosine", seed=seed)
    return model.eval()


def unseen(settings: NetworkSettings, data: Data) -> Data:
    """Images and labels of the last five classes, the first ``n_probed`` of them."""
    images, labels = data
    chosen = labels >= 5
    return images[chosen][: settings.n_probed], labels[chosen][: settings.n_probed] - 5


def tokens_of(model: nn.Module, images: Tensor) -> Tensor:
    """``(sample, position, unit)`` of the map."""
    return torch.cat([part[SITE].cpu() for part in capture(model, images, [SITE], batch_size=256)])


N_SHUFFLES = 8
"""how often the tokens are shuffled anew, so that chance is measured on eight times as many samples"""


def shuffled(tokens: Tensor, seed: int) -> Tensor:
    """Each unit's map comes from another sample: nothing belongs together any more, and no sample to its label."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.stack([unit[torch.randperm(len(tokens), generator=generator)] for unit in tokens.unbind(-1)], -1)
        for _ in range(N_SHUFFLES)
    ]
    return torch.cat(made)


class Probed(NamedTuple):
    """Everything measured on one network."""

    trained: SecondOrder
    broken: SecondOrder
    closed: SecondOrder
    parity: SecondOrder
    full: float
    n_inputs: tuple[int, int]


def probed(settings: NetworkSettings, data: Data, seed: int) -> Probed:
    """The readers on the network's tokens, on shuffled tokens, and on tokens of known parity."""
    images, labels = unseen(settings, data)
    tokens, labels = tokens_of(pretrained(settings, data, seed), images), labels.cpu()
    probe = MomentProbe(hidden=settings.hidden, epochs=settings.n_epochs, random_state=seed)
    brief = probe.unfitted(epochs=max(1, settings.n_epochs // N_SHUFFLES))
    n_units = tokens.shape[-1]
    upper = np.triu_indices(n_units)
    flat = moment_features(tokens, (1,))
    centred = tokens.double().numpy() - flat[:, None]
    covariance = np.matmul(centred.transpose(0, 2, 1), centred)[:, upper[0], upper[1]] / tokens.shape[1]
    whole = judge(
        LinearProbe(random_state=seed), np.hstack([flat, covariance]), labels, chance=False, random_state=seed
    )
    head = probe.head(n_units, 5)
    return Probed(
        second_order_gain(tokens, labels, probe, random_state=seed),
        second_order_gain(shuffled(tokens, seed), labels.repeat(N_SHUFFLES), brief, random_state=seed),
        second_order(tokens, labels),
        second_order(*planted_tokens("parity", settings.parity_samples, 2, random_state=seed)),
        whole.accuracy,
        (n_units + covariance.shape[1], head.first_order.in_features + head.second_order.in_features),
    )


def network_claims(settings: NetworkSettings, data: Data, seed: int) -> Iterator[Claim]:
    """Moment probing beats a linear probe; covariances beat size; the compact statistic is near the full one."""
    runs = [probed(settings, data, one) for one in settings.seeds(seed)]
    first = runs[0]
    head = (
        f"{settings.data}: a convolutional network trained on classes 0-4, its feature map of classes 5-9 probed, "
        f"{first.trained.n_fitted} samples fitted and {first.trained.n_judged} held out, for each of {len(runs)} networks."
    )
    yield gain_claim(runs, head)
    yield size_claim(runs, head)
    yield compact_claim(runs, head)


def gain_claim(runs: list[Probed], head: str) -> Claim:
    """On a real network's tokens the moment probe is better than the linear one, with every network."""

    def plot(axes: Axes) -> None:
        names = ["mean,\nlinear", "mean,\nperceptron", "moment\nprobe", "shuffled,\nlinear", "shuffled,\nmoments"]
        rows = [
            [
                r.trained.mean_accuracy,
                r.trained.mlp_accuracy,
                r.trained.moment_accuracy,
                r.broken.mean_accuracy,
                r.broken.moment_accuracy,
            ]
            for r in runs
        ]
        axes.bar(names, np.mean(rows, 0), color=["C7", "C2", "C0", "C3", "C3"])
        for row in rows:
            axes.plot(names, row, ".", color="0.2")
        axes.axhline(0.2, color="C3", linestyle=":", label="chance")
        axes.set(ylabel="held-out accuracy", ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize="small")

    gains = [run.trained.gain_accuracy for run in runs]
    linear, moment = (
        np.mean([getattr(r.trained, name) for r in runs]) for name in ("mean_accuracy", "moment_accuracy")
    )
    return Claim(
        name="frozen-network",
        statement="On frozen features of a real network moment probing is more accurate than linear probing, with every "
        "network; measured is the smallest difference over networks.",
        measured=float(min(gains)),
        values=tuple(gains),
        bar=Bar(">=", 0.03),
        control=float(np.mean([run.broken.gain_accuracy for run in runs])),
        control_statement="the mean difference where each unit's map comes from another image, so that both fall to chance",
        note=f"{head} Linear {linear:.3f}, moment probe {moment:.3f}; shuffled: linear "
        f"{np.mean([r.broken.mean_accuracy for r in runs]):.3f}, moment probe "
        f"{np.mean([r.broken.moment_accuracy for r in runs]):.3f}.",
        plot=plot,
    )


def size_claim(runs: list[Probed], head: str) -> Claim:
    """What covariances add is not what any larger reader of the mean would add."""
    measured = [run.closed.moment_accuracy - run.closed.mlp_accuracy for run in runs]
    control = [run.parity.moment_accuracy - run.parity.mlp_accuracy for run in runs]

    def plot(axes: Axes) -> None:
        for place, values in ((0, measured), (1, control)):
            axes.plot([place] * len(values), values, "o", color=f"C{3 * place}")
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set_xticks([0, 1], ["network's tokens", "parity of the mean\n(control)"])
        axes.set(xlim=(-0.5, 1.5), ylabel="covariances less perceptron, accuracy")

    return Claim(
        name="beyond-size",
        statement="An equally large nonlinear reader of the mean gains less than second moments do; measured is the "
        "accuracy of a linear probe of means and covariances (closed form) less that of a perceptron on the means with "
        "as many parameters.",
        **over_seeds(measured),
        bar=Bar(">", 0.0),
        control=float(np.mean(control)),
        control_statement="the same where the class is the parity of two units' means, which covariances cannot know",
        note=f"{head} {runs[0].closed.n_parameters[1]} and {runs[0].closed.n_parameters[2]} parameters. Covariances "
        f"add {np.mean([r.closed.gain_bits for r in runs]):.2f} bits to the mean's "
        f"{np.mean([r.closed.mean_bits for r in runs]):.2f}, the perceptron "
        f"{np.mean([r.closed.mlp_gain_bits for r in runs]):.2f}.",
        plot=plot,
    )


def compact_claim(runs: list[Probed], head: str) -> Claim:
    """Cross-moments of neighbouring heads lose little against the full covariance."""
    measured = [run.full - run.trained.moment_accuracy for run in runs]
    control = [run.full - run.trained.mean_accuracy for run in runs]
    whole, few = runs[0].n_inputs

    def plot(axes: Axes) -> None:
        sizes = [32, few, whole]
        for run in runs:
            axes.plot(
                sizes, [run.trained.mean_accuracy, run.trained.moment_accuracy, run.full], "o-", color="C0", alpha=0.6
            )
        axes.set(
            xscale="log",
            xlabel="inputs of the classifier: mean, moment probe, full covariance",
            ylabel="held-out accuracy",
        )
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()

    return Claim(
        name="compact",
        statement="The compact second moments come near the full covariance with at least three times fewer classifier "
        "inputs; measured is by how much full covariance with a linear classifier is more accurate.",
        **over_seeds(measured),
        bar=Bar("<=", 0.02),
        control=float(np.mean(control)),
        control_statement="the same for the mean alone, which must fall further behind",
        note=f"{head} {whole} inputs for mean and full covariance, {few} for the moment probe, "
        f"{whole / few:.1f} times fewer.",
        plot=plot,
    )
