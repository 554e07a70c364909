"""The moment-probing study on tokens of text, about which the paper says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from netloupe.core.batches import Batch
from netloupe.core.capture import capture
from netloupe.core.nulls import permuted
from netloupe.core.study import Bar, Claim
from netloupe.core.training import train
from netloupe.data import stdlib_docstrings
from netloupe.lenses.information.moment_probe import MomentProbe, second_order_gain
from netloupe.models.vit import TokenTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENGTH, N_TOKENS = 64, 128


@dataclass(frozen=True)
class TextSettings:
    """How long a small language model learns, and how many texts are probed for how long."""

    n_steps: int
    n_texts: int
    n_epochs: int
    d_model: int = 64
    n_layers: int = 2
    limit: int | None = None


def characters(text: str) -> Tensor:
    """The first characters of a text as numbers; those outside ASCII become a question mark."""
    return torch.tensor([ord(one) if ord(one) < N_TOKENS else ord("?") for one in text[:LENGTH]])


def ordered_or_not(n_texts: int, limit: int | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(training texts, probed texts, labels)``: label 1 where the words stand in their own order, 0 where shuffled."""
    rng = np.random.default_rng(seed)
    long = [text for text in stdlib_docstrings(limit) if len(text) > LENGTH + 16 and text.isascii()]
    order = rng.permutation(len(long))
    texts = [long[index] for index in order]
    labels = torch.from_numpy(rng.permutation(np.arange(n_texts) % 2))
    probed = []
    for text, kept in zip(texts[:n_texts], labels.tolist()):
        words = text[: LENGTH + 16].split()
        probed.append(characters(" ".join(words if kept else rng.permutation(words).tolist())))
    return torch.stack([characters(text) for text in texts[n_texts:]]), torch.stack(probed), labels


def next_character(output: Any, batch: Batch) -> Tensor:
    """Cross-entropy of each next character."""
    ids = batch.args[0]
    return F.cross_entropy(output[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def text_claim(settings: TextSettings, seed: int) -> Claim:
    """What second moments of a language model's tokens say about the order of words."""
    training, probed, labels = ordered_or_not(settings.n_texts, settings.limit, seed)
    model = TokenTransformer(
        N_TOKENS,
        LENGTH,
        d_model=settings.d_model,
        d_ff=4 * settings.d_model,
        n_layers=settings.n_layers,
        random_state=seed,
    )

    def batch(step: int, generator: torch.Generator) -> Tensor:
        return training[torch.randint(len(training), (32,), generator=generator)]

    history = train(model, batch, steps=settings.n_steps, loss=next_character, schedule="cosine", seed=seed)
    tokens = torch.cat([part["norm"] for part in capture(model, probed, ["norm"], batch_size=256)])
    probe = MomentProbe(hidden=64, epochs=settings.n_epochs, random_state=seed)
    real = second_order_gain(tokens, labels, probe, random_state=seed)
    null = second_order_gain(tokens, permuted(labels, seed), probe, random_state=seed)

    def plot(axes: Axes) -> None:
        names = ["mean, linear", "mean, perceptron", "moment probe"]
        for shift, found, label in ((-0.2, real, "order of words"), (0.2, null, "permuted labels")):
            values = [found.mean_accuracy, found.mlp_accuracy, found.moment_accuracy]
            axes.bar(np.arange(3) + shift, values, 0.38, label=label, color="C0" if found is real else "C3")
        axes.set_xticks(range(3), names)
        axes.axhline(0.5, color="0.4", linestyle=":")
        axes.set(ylabel="held-out accuracy", ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize="small")

    low, high = real.gain_accuracy_interval
    return Claim(
        name="text",
        statement="Do second moments say more than the mean of a language model's tokens, too? Measured is the lower end "
        "of the 95 % interval of the accuracy gained in telling texts from the same texts with their words shuffled.",
        measured=low,
        bar=Bar(">", 0.0),
        control=null.gain_accuracy_interval[0],
        control_statement="the same with permuted labels",
        note=f"Not a claim of the paper, which has no text. A character-level transformer of {settings.n_layers} blocks, "
        f"{settings.d_model} wide, {settings.n_steps} steps on docstrings of the standard library (loss "
        f"{np.mean(history.loss[-20:]):.2f} nats a character); {settings.n_texts} texts of {LENGTH} characters. Gain "
        f"{real.gain_accuracy:+.3f} ({low:+.3f} to {high:+.3f}): linear {real.mean_accuracy:.3f}, moment probe "
        f"{real.moment_accuracy:.3f}, equally large perceptron on the mean {real.mlp_accuracy:.3f}.",
        plot=plot,
    )
