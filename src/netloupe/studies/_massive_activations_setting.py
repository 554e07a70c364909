"""What the massive-activations study shares: how large each preset is, its curves, and ratios watched during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW

from netloupe.core.capture import observe
from netloupe.core.losses import next_token_loss
from netloupe.core.study import Preset
from netloupe.core.training import train
from netloupe.data.bytes_text import byte_batches, byte_windows, file_bytes, stdlib_bytes
from netloupe.lenses.activity.massive import MassiveTracker, massive_of
from netloupe.lenses.dynamics.emergence import peak_time_of
from netloupe.models.gpt import ByteGPT

NOISE = 0.02
END = 143_000.0
TIMES = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *np.round(np.linspace(1000, END, 26))], dtype=float)
"""37 steps spaced as the public checkpoints of Pythia are"""


@dataclass(frozen=True)
class Settings:
    """How large a preset is. The bars of the claims are the same in all of them."""

    n_curves: int
    n_formulas: int
    grid: int
    """points of the grid on which a peak is looked for"""
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    steps: int
    every: int
    n_seeds: int
    n_windows: int
    growth: float
    """factor that the last layer's ratio must reach by the last step"""
    batch: int = 24
    context: int = 64
    n_texts: int | None = None
    from_file: bool = False


SETTINGS: dict[Preset, Settings] = {
    "smoke": Settings(
        n_curves=8, n_formulas=10, grid=100_000, d_model=32, n_layers=2, n_heads=2, d_ff=80, steps=32, every=4, n_seeds=1,
        n_windows=8, growth=1.3, n_texts=300,
    ),
    "small": Settings(
        n_curves=40, n_formulas=50, grid=1_000_000, d_model=96, n_layers=4, n_heads=4, d_ff=256, steps=1024, every=64,
        n_seeds=2, n_windows=32, growth=1.3,
    ),
    "full": Settings(
        n_curves=400, n_formulas=1000, grid=1_000_000, d_model=512, n_layers=6, n_heads=8, d_ff=1280, steps=20_000, every=500,
        n_seeds=3, n_windows=64, growth=1.5, batch=128, context=512, from_file=True,
    ),
}  # fmt: skip


class Text(NamedTuple):
    """Training bytes and validation windows ``(window, position)``."""

    train: Tensor
    validation: Tensor


def load_text(settings: Settings) -> Text:
    """The standard library's docstrings; for the full preset the file that ``NETLOUPE_TEXT`` names."""
    if settings.from_file:
        parts = file_bytes("train"), file_bytes("validation")
    else:
        parts = stdlib_bytes("train", settings.n_texts), stdlib_bytes("validation", settings.n_texts)
    return Text(parts[0], byte_windows(parts[1], settings.context, settings.n_windows))


@dataclass(frozen=True)
class Formula:
    """``A exp(-lambda x) log x + K`` with ``x = gamma t + t0``, and when it peaks."""

    amplitude: float
    lam: float
    gamma: float
    t0: float
    limit: float

    def __call__(self, t: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
        x = self.gamma * t + self.t0
        return self.amplitude * np.exp(-self.lam * x) * np.log(x) + self.limit

    @property
    def peak(self) -> float:
        """From the closed form."""
        found = peak_time_of(self.lam, self.gamma, self.t0)
        assert found is not None
        return found


def draw_formula(draw: np.random.Generator, early: bool) -> Formula:
    """A curve that peaks between a twentieth and a half of training, or between one and a half and five times its length."""
    lam = 10 ** draw.uniform(-1.3, 0)
    x = _peak_argument(lam)
    t0 = draw.uniform(0.5, min(1.5, 0.8 * x))
    peak = END * (draw.uniform(0.05, 0.5) if early else draw.uniform(1.5, 5))
    return Formula(draw.uniform(1, 50), lam, (x - t0) / peak, t0, draw.uniform(1, 20))


def _peak_argument(lam: float) -> float:
    found = peak_time_of(lam, 1.0, 0.0)
    assert found is not None
    return found


def noisy(curve: Callable[[np.ndarray], np.ndarray], draw: np.random.Generator) -> Float[np.ndarray, " time"]:
    """A curve at the 37 steps, with noise of 2 % of its range."""
    values = curve(TIMES)
    return values + NOISE * np.ptp(values) * draw.standard_normal(len(values))


class Trajectory(NamedTuple):
    """Ratios during one training: ``steps`` ``(look,)``, ``ratios`` and ``errors`` ``(look, layer)``; ``reference`` of normal numbers."""

    steps: np.ndarray
    ratios: np.ndarray
    errors: np.ndarray
    reference: float
    model: ByteGPT


def block_sites(model: ByteGPT) -> list[str]:
    """The residual stream after every block."""
    return [f"blocks.{index}" for index in range(len(model.blocks))]


def watch_ratios(settings: Settings, text: Text, seed: int, rate: float = 3e-3) -> Trajectory:
    """Trains a byte language model and follows the ratio of the largest to the median value after every block.

    Looks at steps 0, 16, 32 and then at every ``settings.every``-th (at fewer where that is less).
    """
    # embeddings of size 1: untrained blocks then add little, and every layer starts near what normal numbers give
    model = ByteGPT(
        settings.d_model, settings.n_layers, settings.n_heads, settings.d_ff, settings.context,
        activation="silu", embedding_std=1.0, random_state=seed,
    ).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # fmt: skip
    device = next(model.parameters()).device
    windows, wanted = text.validation.to(device), {16, 32}

    def look(network: nn.Module, step: int) -> dict[str, float]:
        if step % settings.every and step not in wanted:
            return {}
        seen = observe(network, windows, {"massive": MassiveTracker}, block_sites(model))
        found = [massive_of(seen.result(site, "massive")) for site in block_sites(model)]
        row = {f"ratio {i}": one.ratio for i, one in enumerate(found)} | {
            f"error {i}": one.error for i, one in enumerate(found)
        }
        return row | {"reference": found[0].reference}

    history = train(
        model, byte_batches(text.train, settings.context, settings.batch), steps=settings.steps, loss=next_token_loss, seed=seed,
        optimizer=lambda parameters: AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.1 if rate else 0.0),
        warmup=min(32, settings.every), watch=look, watch_every=min(16, settings.every), clip=1.0, precision="bfloat16",
    )  # fmt: skip
    rows = [row for row in history.watched if "reference" in row]
    layers = range(settings.n_layers)
    return Trajectory(
        np.array([row["step"] for row in rows]),
        np.array([[row[f"ratio {i}"] for i in layers] for row in rows]),
        np.array([[row[f"error {i}"] for i in layers] for row in rows]),
        rows[0]["reference"],
        model.eval(),
    )


def still(settings: Settings) -> Settings:
    """A few steps, all looked at: for a network that does not learn."""
    return replace(settings, steps=4, every=1)
