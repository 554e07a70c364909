"""How the built-in networks come to be: trained on first use, kept in the user's cache folder, never shipped as weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from netloupe.core.capture import run_all
from netloupe.core.errors import InputError, StoreError, SubjectError
from netloupe.core.isolation import pinned_threads
from netloupe.core.losses import next_token_loss
from netloupe.core.tensorfile import write_tensors
from netloupe.core.training import accuracy, train
from netloupe.data.bytes_text import byte_batches, byte_windows, stdlib_bytes, unigram_entropy
from netloupe.data.digits import digits_split
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.models.gpt import ByteGPT
from netloupe.models.small import DigitsCNN, mlp
from netloupe.models.vit import ViT

FASHION_STEPS = 2000


@dataclass(frozen=True)
class Recipe:
    """A network, its data and its training; ``run`` trains it in place and returns the numbers worth telling."""

    name: str
    summary: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, bool], dict[str, float]]
    data: str
    version: int = 1  # raised when build or run change, so that a cached network of old is not taken for this one


def _train_digits(model: nn.Module, progress: bool) -> dict[str, float]:
    (inputs, labels), (test_inputs, test_labels) = digits_split()
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    history = train(
        model, (inputs, labels), steps=440, batch_size=64, optimizer=adam, schedule="cosine", warmup=20,
        seed=0, progress=progress, describe="training on digits",
    )  # fmt: skip
    return {
        "steps": float(history.n_steps),
        "train_accuracy": accuracy(model, inputs, labels),
        "test_accuracy": accuracy(model, test_inputs, test_labels),
    }


def _train_fashion(model: nn.Module, progress: bool) -> dict[str, float]:
    (inputs, labels), (test_inputs, test_labels) = fashion_mnist("train"), fashion_mnist("test")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    history = train(
        model, (inputs, labels), steps=FASHION_STEPS, batch_size=64, optimizer=adam, schedule="cosine", warmup=100,
        seed=0, clip=1.0, progress=progress, describe="training on Fashion-MNIST",
    )  # fmt: skip
    return {
        "steps": float(history.n_steps),
        "train_accuracy": accuracy(model, inputs[:10_000], labels[:10_000]),
        "test_accuracy": accuracy(model, test_inputs, test_labels),
    }


def _train_bytes(model: nn.Module, progress: bool) -> dict[str, float]:
    """Nats a byte on docstrings that were not trained on, beside what the frequencies of bytes alone give."""
    held_out = stdlib_bytes("validation")
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    history = train(
        model, byte_batches(stdlib_bytes("train"), 64, 24), steps=500, optimizer=adam, loss=next_token_loss,
        schedule="cosine", warmup=30, seed=0, clip=1.0, progress=progress, describe="training on the standard library's text",
    )  # fmt: skip
    windows = byte_windows(held_out, 64, min(512, len(held_out) // 64))
    total = 0.0
    for output, batch in run_all(model, windows, batch_size=64):
        total += float(next_token_loss(output, batch)) * batch.n_samples
    return {
        "steps": float(history.n_steps),
        "test_loss": total / len(windows),
        "unigram_entropy": unigram_entropy(held_out),
    }


def _digits_cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DigitsCNN()


RECIPES: dict[str, Recipe] = {
    "digits-cnn": Recipe(
        "digits-cnn", "a convolutional network of 38,000 parameters on 8x8 handwritten digits", _digits_cnn, _train_digits, "digits"
    ),
    "digits-mlp": Recipe(
        "digits-mlp", "a perceptron with two hidden layers of 128 on 8x8 handwritten digits",
        lambda: mlp(64, (128, 128), 10, random_state=0), _train_digits, "digits",
    ),
    "digits-vit": Recipe(
        "digits-vit", "a vision transformer of three blocks on 8x8 handwritten digits",
        lambda: ViT(8, 2, 10, d_model=48, d_ff=192, random_state=0), _train_digits, "digits",
    ),
    "fashion-vit": Recipe(
        "fashion-vit", "a vision transformer of four blocks on Fashion-MNIST (its idx files must lie on this machine)",
        lambda: ViT(28, 7, 10, d_model=64, d_ff=256, n_layers=4, random_state=0), _train_fashion, "fashion-mnist",
    ),
    "stdlib-gpt": Recipe(
        "stdlib-gpt", "a byte-level language model of four gated blocks on the docstrings of Python's standard library",
        lambda: ByteGPT(96, 4, 4, 256, 64, random_state=0), _train_bytes, "stdlib-bytes",
    ),
}  # fmt: skip


def cache_folder() -> Path:
    """``$NETLOUPE_CACHE``, else ``netloupe`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if os.environ.get("NETLOUPE_CACHE"):
        return Path(os.environ["NETLOUPE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netloupe"


def get_recipe(name: str) -> Recipe:
    """A recipe by name; SubjectError lists those there are."""
    if name not in RECIPES:
        raise SubjectError(f"there is no recipe '{name}'; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def trained(name: str, progress: bool = False) -> nn.Module:
    """The recipe's network, trained now or read from the cache; in eval mode."""
    recipe = get_recipe(name)
    path = cache_folder() / "recipes" / f"{name}-v{recipe.version}-torch{torch.__version__.split('+')[0]}.safetensors"
    model = recipe.build()
    if path.is_file():
        try:
            model.load_state_dict(load_file(str(path)))
            return model.eval()
        except (SafetensorError, RuntimeError):
            model = recipe.build()  # a broken cache is made anew
    with pinned_threads(1):
        recipe.run(model, progress)
    with contextlib.suppress(StoreError):  # without a writable cache it is trained anew each time
        save_weights(model, path)
    return model.eval()


def save_weights(model: nn.Module, path: Path, metadata: dict[str, Any] | None = None) -> Path:
    """Writes a network's state as safetensors, whole or not at all."""
    return write_tensors(
        model.state_dict(), path, {key: str(value) for key, value in (metadata or {}).items()}, "weights"
    )


def run_recipe(name: str, folder: Path, progress: bool = True) -> tuple[Path, dict[str, float]]:
    """Trains a recipe anew into ``folder/<name>.safetensors`` and returns the path and its numbers."""
    recipe = get_recipe(name)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file, expected a folder for the trained network")
    model = recipe.build()
    with pinned_threads(1):
        numbers = recipe.run(model, progress)
    return save_weights(model, folder / f"{name}.safetensors", {"recipe": name, **numbers}), numbers
