"""What the sparsing-law study shares: how large each preset is, its text, and language models looked at while they learn."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW

from netloupe.core.losses import next_token_loss
from netloupe.core.study import Preset
from netloupe.core.training import train
from netloupe.data.bytes_text import byte_batches, byte_windows, file_bytes, stdlib_bytes
from netloupe.lenses.activity.cett import SparsityProbe
from netloupe.models.gpt import ByteGPT
from netloupe.nn.ffn import Activation

ACTIVATIONS: tuple[Activation, ...] = ("relu", "silu")


@dataclass(frozen=True)
class Shape:
    """Width, depth, heads and hidden width of a language model."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int

    @property
    def slimness(self) -> float:
        """Width over depth."""
        return self.d_model / self.n_layers

    @property
    def n_parameters(self) -> int:
        """Without embeddings, for gated blocks."""
        return self.n_layers * self.d_model * (4 * self.d_model + 3 * self.d_ff)


@dataclass(frozen=True)
class Settings:
    """How large a preset is. The bars of the claims are the same in all of them."""

    shape: Shape
    steps: int
    every: int
    """steps between two looks; the first look is after the warm-up"""
    warmup: int
    n_seeds: int
    n_windows: int
    """validation windows; their tokens are what every sparsity is measured on"""
    shapes: tuple[Shape, ...]
    shape_steps: int
    shape_batch: int
    batch: int = 24
    context: int = 64
    n_texts: int | None = None
    n_fits: int = 1
    """noise draws of each published law"""
    sizes: tuple[Shape, ...] = ()
    """further sizes whose limits only the full preset looks at"""
    from_file: bool = False


SETTINGS: dict[Preset, Settings] = {
    "smoke": Settings(
        Shape(32, 2, 2, 80), steps=48, every=12, warmup=8, n_seeds=1, n_windows=16,
        shapes=(Shape(16, 4, 2, 40), Shape(18, 3, 1, 44), Shape(22, 2, 1, 56), Shape(32, 1, 2, 80)),
        shape_steps=16, shape_batch=8, n_texts=300,
    ),
    "small": Settings(
        Shape(64, 4, 2, 160), steps=384, every=48, warmup=32, n_seeds=3, n_windows=48,
        shapes=(Shape(60, 7, 2, 150), Shape(72, 5, 2, 180), Shape(96, 3, 4, 240), Shape(116, 2, 2, 290), Shape(160, 1, 4, 400)),
        shape_steps=300, shape_batch=8, n_fits=2,
    ),
    "full": Settings(
        Shape(512, 10, 8, 1280), steps=30_000, every=1000, warmup=500, n_seeds=3, n_windows=64,
        shapes=tuple(
            Shape(width, depth, width // 64, 5 * width // 2)
            for width, depth in ((320, 32), (384, 22), (448, 16), (512, 12), (640, 8), (768, 5), (960, 3), (1216, 2), (1664, 1))
        ),
        shape_steps=10_000, shape_batch=128, batch=128, context=512, n_fits=20,
        sizes=(Shape(320, 8, 5, 800), Shape(768, 12, 12, 1920)), from_file=True,
    ),
}  # fmt: skip


class Text(NamedTuple):
    """Training bytes and validation windows ``(window, position)``."""

    train: Tensor
    validation: Tensor


def load_text(settings: Settings) -> Text:
    """The standard library's docstrings; for the full preset the file that ``NETLOUPE_TEXT`` names."""
    if settings.from_file:
        train_bytes, validation = file_bytes("train"), file_bytes("validation")
    else:
        train_bytes = stdlib_bytes("train", settings.n_texts)
        validation = stdlib_bytes("validation", settings.n_texts)
    return Text(train_bytes, byte_windows(validation, settings.context, settings.n_windows))


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Trained(NamedTuple):
    """A network and its weights at every look after the warm-up: step and state."""

    model: ByteGPT
    states: list[tuple[int, dict[str, Tensor]]]
    state: str


def train_model(
    settings: Settings, text: Text, activation: Activation, seed: int, *,
    shape: Shape | None = None, steps: int | None = None, every: int | None = None, batch: int | None = None, rate: float = 3e-3,
) -> Trained:  # fmt: skip
    """A byte language model; the rate stays constant after the warm-up, as in the paper's stable stage."""
    shape = settings.shape if shape is None else shape
    steps = settings.steps if steps is None else steps
    model = build(settings, activation, seed, shape)
    states: list[tuple[int, dict[str, Tensor]]] = []

    def keep(network: torch.nn.Module, step: int) -> dict[str, float]:
        if step > settings.warmup or rate == 0:
            states.append((step, {name: value.detach().clone() for name, value in network.state_dict().items()}))
        return {}

    history = train(
        model, byte_batches(text.train, settings.context, settings.batch if batch is None else batch), steps=steps,
        optimizer=lambda parameters: AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.1 if rate else 0.0),
        loss=next_token_loss, warmup=settings.warmup, seed=seed, watch=keep,
        watch_every=settings.every if every is None else every, clip=1.0, precision="bfloat16",
    )  # fmt: skip
    return Trained(model.eval(), states, history.state)


def build(settings: Settings, activation: Activation, seed: int, shape: Shape | None = None) -> ByteGPT:
    """An untrained network of the preset's shape, or another."""
    shape = settings.shape if shape is None else shape
    return ByteGPT(
        shape.d_model,
        shape.n_layers,
        shape.n_heads,
        shape.d_ff,
        settings.context,
        activation=activation,
        random_state=seed,
    ).to(device())


def probe_of(model: ByteGPT, text: Text) -> SparsityProbe:
    """A probe on all validation windows."""
    return SparsityProbe(
        model,
        text.validation.to(device()),
        max_tokens=text.validation.numel(),
        batch_size=16,
        sites="blocks.*.ffn.down",
    )


def probes_at(trained: Trained, text: Text) -> list[tuple[int, SparsityProbe]]:
    """A probe of every look, each with a network of its own."""
    found = []
    for step, state in trained.states:
        model = copy.deepcopy(trained.model)
        model.load_state_dict(state)
        found.append((step, probe_of(model, text)))
    return found
