"""What the lazy-neuron study shares: how large each preset is, its data, and activity watched during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from netloupe.core.study import Preset
from netloupe.core.training import Loss, train
from netloupe.data.digits import digits_split
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.lenses.activity.sparsity import activity_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH = 128
EPOCH_IMAGES = 10_000
"""images between two looks at the transformer, so that small data sets get as many steps as large ones"""


@dataclass(frozen=True)
class Transformer:
    """Sizes of the study's vision transformer; ``pad`` pixels are added around each image so that patches fit."""

    patch_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    pad: int = 0


@dataclass(frozen=True)
class Settings:
    """How large a preset is. The bars of the claims are the same in all of them."""

    n_draws: int
    n_seeds: int
    noise_seeds: int
    """of the networks trained with random labels, whose results vary most"""
    steps: int
    width: int
    widths: tuple[int, ...]
    vit: Transformer
    vit_looks: int
    vit_steps: int
    """steps between two looks"""
    vit_seeds: int
    topk_width: int
    topk_steps: int
    ks: tuple[int, ...] = (64, 16, 8)
    """survivors of the top-k layers; the claims about noise are on the last two"""
    n_train: int | None = None
    fashion: bool = False
    random_side: int = 28
    """side of the images that are nothing but random pixels"""
    sweep_widths: tuple[int, ...] = (256, 1024, 4096, 8192)
    sweep_depths: tuple[int, ...] = (3, 6, 12, 24)
    sweep_looks: int = 20
    """sizes of the transformers that only the full preset trains, and their looks"""


SETTINGS: dict[Preset, Settings] = {
    "smoke": Settings(
        n_draws=1000, n_seeds=1, noise_seeds=1, steps=60, width=64, widths=(16, 64), vit=Transformer(2, 32, 64, 2, 2), vit_looks=2,
        vit_steps=10, vit_seeds=1, topk_width=128, topk_steps=150, n_train=500, random_side=16,
    ),
    "small": Settings(
        n_draws=4000, n_seeds=2, noise_seeds=3, steps=600, width=256, widths=(64, 256, 1024), vit=Transformer(2, 64, 256, 3, 4),
        vit_looks=5, vit_steps=EPOCH_IMAGES // BATCH, vit_seeds=2, topk_width=512, topk_steps=2500,
    ),
    "full": Settings(
        n_draws=100_000, n_seeds=5, noise_seeds=5, steps=5000, width=1024, widths=(64, 256, 1024, 4096),
        vit=Transformer(8, 384, 1536, 12, 6, pad=2), vit_looks=100, vit_steps=60_000 // BATCH, vit_seeds=1,
        topk_width=2048, topk_steps=25_000, ks=(512, 256, 128, 64, 16, 8), fashion=True,
    ),
}  # fmt: skip


class Images(NamedTuple):
    """Images in [0, 1], ``(sample, 1, height, width)``, and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_images(settings: Settings) -> Images:
    """Fashion-MNIST for the full preset, handwritten digits otherwise."""
    if settings.fashion:
        return Images(*fashion_mnist("train"), *fashion_mnist("test"))
    (train_images, train_labels), (test_images, test_labels) = digits_split()
    n_train = settings.n_train
    return Images(train_images[:n_train], train_labels[:n_train], test_images, test_labels)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def adam(rate: float) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Adam without weight decay, which would make units sparse by itself."""
    return lambda parameters: Adam(parameters, lr=rate)


def adamw(rate: float) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """AdamW with its decay switched off, for the same reason."""
    return lambda parameters: AdamW(parameters, lr=rate, weight_decay=0.0)


class Activity(NamedTuple):
    """Activity on held-out inputs during training: ``step`` ``(look,)``, the others ``(look, site)``."""

    step: np.ndarray
    active: np.ndarray
    dead: np.ndarray
    state: str

    def told(self, look: int = -1) -> str:
        """Active and dead share at one look, averaged over sites."""
        return f"{self.active[look].mean():.3f} (dead units {self.dead[look].mean():.3f})"


def watch_activity(
    model: nn.Module,
    data: Any,
    held_out: Tensor,
    *,
    steps: int,
    every: int,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    seed: int,
    loss: Loss | None = None,
    batch_size: int = BATCH,
) -> Activity:
    """Trains ``model`` and looks at the output of all its ReLUs before, every so many steps, and after."""

    def look(network: nn.Module, step: int) -> dict[str, float]:
        report = activity_report(network, held_out, batch_size=512)
        active, dead = report.active_fraction, report.dead_fraction
        return {f"active {i}": active[i] for i in range(len(report))} | {
            f"dead {i}": dead[i] for i in range(len(report))
        }

    history = train(
        model.to(device()), data, steps=steps, batch_size=batch_size, optimizer=optimizer, seed=seed, loss=loss,
        watch=look, watch_every=every,
    )  # fmt: skip
    n_sites = sum(name.startswith("active") for name in history.watched[0])
    active, dead = (np.stack([history.column(f"{name} {i}") for i in range(n_sites)], 1) for name in ("active", "dead"))
    return Activity(history.column("step"), active, dead, history.state)


def plot_activity(axes: Axes, curves: dict[str, Activity], bar: float | None = None) -> None:
    """Active share (solid) and dead share (dotted) over training."""
    for index, (label, curve) in enumerate(curves.items()):
        axes.plot(curve.step, curve.active.mean(1), color=f"C{index}", label=label)
        axes.plot(curve.step, curve.dead.mean(1), color=f"C{index}", linestyle=":")
    if bar is not None:
        axes.axhline(bar, color="0.4", linestyle="--", linewidth=0.8)
    axes.set(xlabel="step", ylabel="share active (dotted: dead)", ylim=(-0.02, 1.05 + 0.09 * len(curves)))
    axes.legend(frameon=False, fontsize="small", loc="upper right")
