"""What only the full preset of the lazy-neuron study measures: a transformer by size and by data, and on text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from netloupe.core.batches import Batch
from netloupe.core.study import Bar, Claim
from netloupe.data.ablations import fresh_random, random_inputs, random_labels
from netloupe.data.stdlib_text import stdlib_docstrings
from netloupe.lenses.activity.sparsity import activity_report
from netloupe.models.vit import TokenTransformer
from netloupe.studies._lazy_neuron_emergence import RATE, build_vit, margin, rank_trend, watch_vit
from netloupe.studies._lazy_neuron_setting import (
    BATCH,
    Activity,
    Images,
    Settings,
    adamw,
    plot_activity,
    watch_activity,
)

LENGTH, TEXT_LAYERS = 128, 6
N_UNTRAINED = 5


def full_claims(settings: Settings, images: Images, seed: int) -> Iterator[Claim]:
    """Width and depth of the transformer, the four kinds of data, and a language model on bytes."""
    shorter = replace(settings, vit_looks=min(settings.vit_looks, settings.sweep_looks))
    yield width_claim(shorter, images, seed, settings.sweep_widths)
    yield depth_claim(shorter, images, seed, settings.sweep_depths)
    yield data_claim(shorter, images, seed)
    yield text_claim(shorter, seed)


def _untrained(settings: Settings, images: Images, seed: int, **changes: int) -> float:
    """Mean share of active MLP units of a few untrained transformers."""
    test = F.pad(images.test[:1000], (settings.vit.pad,) * 4)
    starts = range(seed, seed + N_UNTRAINED)
    models = (build_vit(settings, images, start, **changes) for start in starts)
    return float(np.mean([activity_report(model, test).active_fraction.mean() for model in models]))


def width_claim(settings: Settings, images: Images, seed: int, widths: tuple[int, ...]) -> Claim:
    """Wider MLPs: a smaller share, a larger number."""
    curves = {f"d_ff {width}": watch_vit(settings, images, seed, d_ff=width) for width in widths}
    shares = np.array([curve.active[-1].mean() for curve in curves.values()])
    before = np.array([_untrained(settings, images, seed, d_ff=width) for width in widths])
    return Claim(
        "transformer-width",
        "The wider the MLPs of a transformer, the smaller the share and the larger the number of their active units "
        "(measured: the smallest logarithm of either ratio between neighbouring widths).",
        margin(shares, np.array(widths)),
        Bar(">", 0.0),
        margin(before, np.array(widths)),
        f"The same transformers before training, mean of {N_UNTRAINED} initialisations; 0.05 is allowed for chance.",
        control_bar=Bar(">", 0.05),
        note="; ".join(f"{name}: {curve.told()}" for name, curve in curves.items()) + ".",
        plot=partial(plot_activity, curves=curves),
    )


def depth_claim(settings: Settings, images: Images, seed: int, depths: tuple[int, ...]) -> Claim:
    """Deeper transformers: a smaller share."""
    curves = {f"{depth} blocks": watch_vit(settings, images, seed, n_layers=depth) for depth in depths}
    before = np.array([_untrained(settings, images, seed, n_layers=depth) for depth in depths])
    return Claim(
        "transformer-depth",
        "The deeper the transformer, the smaller the share of active MLP units (measured: the smallest logarithm of "
        "its ratio between neighbouring depths).",
        fall(np.array([curve.active[-1].mean() for curve in curves.values()])),
        Bar(">", 0.0),
        fall(before),
        f"The same transformers before training, mean of {N_UNTRAINED} initialisations; 0.05 is allowed for chance.",
        control_bar=Bar(">", 0.05),
        note="; ".join(f"{name}: {curve.told()}" for name, curve in curves.items()) + ".",
        plot=partial(plot_activity, curves=curves),
    )


def fall(shares: np.ndarray) -> float:
    """The smallest logarithm of a share over the next one; above 0 where each is smaller than the one before."""
    return float(np.min(np.log(shares[:-1] / shares[1:])))


def data_claim(settings: Settings, images: Images, seed: int) -> Claim:
    """True labels, random labels, random inputs and endless random data all make a transformer sparser."""
    size = tuple(images.train.shape[1:])
    drawn = random_labels(images.train_labels, 10, random_state=seed)
    kinds = {
        "true labels": (images.train, images.train_labels),
        "random labels": (images.train, drawn),
        "random inputs": (random_inputs(images.train, seed), images.train_labels),
    }
    unseen = random_inputs(images.test, seed + 1)
    curves = {
        name: watch_vit(settings, images._replace(
            train=inputs, train_labels=labels, test=unseen if name == "random inputs" else images.test
        ), seed)
        for name, (inputs, labels) in kinds.items()
    }  # fmt: skip
    pad, draw = (settings.vit.pad,) * 4, fresh_random(size, 10, BATCH)

    def endless(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, labels = draw(step, generator)
        return F.pad(inputs, pad), labels

    curves["fresh random data"] = watch_activity(
        build_vit(settings, images, seed), endless, F.pad(unseen, pad), steps=settings.vit_looks * settings.vit_steps,
        every=settings.vit_steps, optimizer=adamw(RATE), seed=seed,
    )  # fmt: skip
    control = watch_vit(replace(settings, vit_looks=1), images, seed, rate=0.0)
    return Claim(
        "transformer-data",
        "A transformer gets sparser on true labels, random labels, random inputs and fresh random data alike "
        "(measured: the largest ratio of the share of active units after training to that before).",
        max(_ratio(curve) for curve in curves.values()),
        Bar("<", 1.0),
        _ratio(control),
        "True labels with learning rate 0.",
        note="; ".join(f"{name}: {curve.told(0)} to {curve.told()}" for name, curve in curves.items()) + ".",
        plot=partial(plot_activity, curves=curves),
    )


def _ratio(curve: Activity) -> float:
    return float(curve.active[-1].mean() / curve.active[0].mean())


def byte_windows(length: int, n_held_out: int = 64) -> tuple[Tensor, Tensor]:
    """The standard library's docstrings as bytes: training text ``(byte,)`` and held-out windows ``(n, length)``."""
    text = "\n".join(stdlib_docstrings()).encode("utf-8", errors="replace")
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    n_tail = n_held_out * length
    return ids[:-n_tail], ids[-n_tail:].view(n_held_out, length)


def next_byte_loss(output: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each byte given those before it."""
    ids = batch.args[0]
    return F.cross_entropy(output[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def text_claim(settings: Settings, seed: int) -> Claim:
    """A causal language model on bytes gets sparser as it trains."""
    text, held_out = byte_windows(LENGTH)
    sizes = settings.vit

    def draw(step: int, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator)
        return text[starts[:, None] + torch.arange(LENGTH)]

    def run(rate: float) -> Activity:
        model = TokenTransformer(
            256, LENGTH, d_model=sizes.d_model, d_ff=sizes.d_ff, n_layers=min(TEXT_LAYERS, sizes.n_layers),
            n_heads=sizes.n_heads, random_state=seed,
        )  # fmt: skip
        return watch_activity(
            model, draw, held_out, steps=settings.vit_looks * settings.vit_steps, every=settings.vit_steps,
            optimizer=adamw(rate), seed=seed, loss=next_byte_loss,
        )  # fmt: skip

    curve, control = run(RATE), run(0.0)
    return Claim(
        "language-model",
        "Training a language model lowers the share of active MLP units steadily (measured: rank correlation of the "
        "share with training time, initialisation included).",
        rank_trend(curve.active.mean(1)),
        Bar("<=", -1.0),
        rank_trend(control.active.mean(1)),
        "The same model with learning rate 0.",
        note=f"Bytes of the standard library's docstrings, {settings.vit_looks * settings.vit_steps} steps of {BATCH} "
        f"windows of {LENGTH}: active share {curve.told(0)} before, {curve.told()} after.",
        plot=partial(plot_activity, curves={"Adam": curve, "learning rate 0": control}),
    )
