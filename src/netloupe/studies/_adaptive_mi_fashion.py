"""The claim of the adaptive-mi study on real images, which only its full preset measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data import fashion_mnist
from netloupe.studies._adaptive_mi_runs import Copy, Settings, plain, train_stack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIDDEN_WIDTHS = (32, 12, 10, 7, 5)
BAR = Bar(">", 0.0)
STATEMENT = (
    "On real images too, the narrow upper layers of a tanh network lose bits about the input; measured is I(X;T) with "
    "adaptive bins before training less that after it, mean of the last two hidden layers."
)
CONTROL = "the same network at a learning rate of 0"


def fashion_claim(settings: Settings, seed: int) -> Claim:
    """The claim, or why it is not measured here."""
    if not settings.fashion:
        note = "Needs the Fashion-MNIST files and a GPU: run the full preset."
        return Claim("images", STATEMENT, None, BAR, None, CONTROL, note=note)
    images, labels = fashion_mnist("train")
    seen, seen_labels = fashion_mnist("test")
    data = images.flatten(1), labels, seen.flatten(1)[:10_000], seen_labels[:10_000]
    return image_claim(settings, seed, *data)


def image_claim(
    settings: Settings, seed: int, images: Tensor, labels: Tensor, seen: Tensor, seen_labels: Tensor, n_seeds: int = 5
) -> Claim:
    """Measured on given images ``(sample, pixel)``, labels and the samples on which layers are looked at."""
    copies = [*plain("tanh", range(1000 * seed, 1000 * seed + n_seeds), rate=1e-3), Copy("tanh", 1000 * seed, 0.0)]
    widths = (images.shape[1], *HIDDEN_WIDTHS, int(torch.cat([labels, seen_labels]).max()) + 1)
    # as many steps as the other networks take, but no more than a hundred epochs of 60,000 images
    steps = min(settings.steps, 23_400)
    runs = train_stack(copies, images, labels, steps, settings.looks, widths, seen, seen_labels)
    drops = [float(each.drop[3:5].mean()) for each in runs]

    def plot(axes: Axes) -> None:
        steps_ = np.maximum(runs[0].steps, 0.5)
        for index in range(len(HIDDEN_WIDTHS)):
            curve = np.mean([each.ebab[:, index] for each in runs[:-1]], 0)
            axes.plot(steps_, curve, color=f"C{index}", label=f"layer {index + 1}")
        axes.set(xscale="log", xlabel="step", ylabel="I(X;T), bits")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        "images", STATEMENT, bar=BAR, control=drops[-1], control_statement=CONTROL, plot=plot,
        note=f"Widths {'-'.join(map(str, widths))}, {steps} steps; {len(seen)} images looked at; accuracies on images left "
        f"out {min(r.accuracy for r in runs[:-1]):.2f} to {max(r.accuracy for r in runs[:-1]):.2f}.",
        **over_seeds(drops[:-1]),
    )  # fmt: skip
