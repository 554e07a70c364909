"""A small language model's feed-forward block: how many neurons features need, and steering at equal divergence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.dictionary import Dictionary
from netloupe.core.losses import next_token_loss
from netloupe.core.nulls import random_direction
from netloupe.core.study import Bar, Claim
from netloupe.core.training import train
from netloupe.data.bytes_text import byte_batches, byte_windows, stdlib_bytes
from netloupe.data.stdlib_text import stdlib_docstrings
from netloupe.lenses.control.kl_matching import kl_matched_alpha, last_logits
from netloupe.lenses.dictionary.sae import SparseAutoencoder, diff_mean
from netloupe.lenses.dictionary.score import neurons_for, score
from netloupe.lenses.dictionary.snmf import SemiNMF
from netloupe.models.gpt import ByteGPT

PATH = "NETLOUPE_SNMF_MODEL"  # a folder with a Hugging Face language model, for the full preset
KL = 0.1


@dataclass(frozen=True)
class Setting:
    """``steps`` of training, ``windows`` of 64 tokens, ``k`` features, iterations, steps of the autoencoder, features steered."""

    steps: int = 1200
    windows: int = 96
    k: int = 50
    iterations: int = 300
    sae_steps: int = 2000
    steered: int = 30


@dataclass(frozen=True, eq=False)
class Language:
    """A network, the site of its feed-forward activations, token windows and neutral prompts (both ``(sample, position)``)."""

    model: nn.Module
    site: str
    windows: Tensor
    prompts: Tensor
    loss: float


def trained(setting: Setting, seed: int) -> Language:
    """Two blocks of width 64 with gated ReLU blocks of 256, trained on the standard library's docstrings."""
    model = ByteGPT(64, 2, 4, 256, 64, random_state=seed)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    history = train(
        model, byte_batches(stdlib_bytes("train"), 64, 24), steps=setting.steps, optimizer=adam, loss=next_token_loss,
        schedule="cosine", warmup=min(30, setting.steps // 4), seed=seed, clip=1.0,
    )  # fmt: skip
    held = stdlib_bytes("validation")
    prompts = byte_windows(held, 16, 8)
    windows = byte_windows(stdlib_bytes("train"), 64, setting.windows)
    return Language(model.eval(), "blocks.1.ffn.down:in", windows, prompts, float(np.mean(history.loss[-20:])))


def from_path(setting: Setting) -> list[Language]:
    """The network of the environment's path at an early, a middle and a late feed-forward block; empty without a path."""
    path = os.environ.get(PATH)
    if not path:
        return []
    from netloupe.subjects import load_model

    subject = load_model(f"hf:{path}")
    model = subject.model.to("cuda") if torch.cuda.is_available() else subject.model
    names = [n for n, _ in model.named_modules() if n.endswith(("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h"))]
    text = "\n".join(stdlib_docstrings(20_000))
    ids = torch.as_tensor(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
    windows = ids[: len(ids) // 64 * 64].view(-1, 64)
    prompt = torch.as_tensor(subject.tokenizer("I think that", return_tensors="pt")["input_ids"])
    chosen = sorted({names[len(names) // 8], names[len(names) // 2], names[-max(1, len(names) // 8)]}) if names else []
    return [Language(model, f"{name}:in", windows[: setting.windows], prompt, float("nan")) for name in chosen]


@dataclass(frozen=True, eq=False)
class Learned:
    """Activations ``(token, unit)``, the tokens that follow each, and the dictionaries."""

    rows: Tensor
    following: Tensor
    snmf: SemiNMF
    dense: SemiNMF
    sae: Dictionary
    l0: float


def learn(language: Language, setting: Setting, seed: int) -> Learned:
    """The dictionaries of one site; the autoencoder is as wide, and keeps as many codes a token, as the factorisation."""
    found = [c[language.site] for c in capture(language.model, language.windows, [language.site], batch_size=32)]
    rows = torch.cat(found)[:, :-1].cpu().float()
    following = language.windows[:, 1:].reshape(-1)
    rows = rows.reshape(-1, rows.shape[-1])
    share = max(0.01, 1 / rows.shape[1])
    options: dict[str, Any] = {"max_iter": setting.iterations, "seed": seed, "dtype": "float32"}
    snmf = SemiNMF(setting.k, sparsity=share, **options).fit(rows)
    dense = SemiNMF(setting.k, sparsity=1.0, **options).fit(rows)
    l0 = score(snmf.dictionary(), rows[:2000]).l0
    sae = SparseAutoencoder(
        setting.k, "topk", k=int(np.clip(round(l0), 1, setting.k)), steps=setting.sae_steps, rate=1e-3, dead_after=20_000, seed=seed
    )  # fmt: skip
    return Learned(rows, following, snmf, dense, sae.fit(rows).dictionary(), l0)


def sizes(learned: Learned, language: Language, label: str = "") -> tuple[Claim, Claim]:
    """Neurons that hold nine tenths of a direction's square."""
    d = learned.rows.shape[1]
    counts = {
        "SNMF": neurons_for(learned.snmf.directions_), "dense": neurons_for(learned.dense.directions_),
        "SAE": neurons_for(learned.sae),
    }  # fmt: skip
    share = {name: float(np.median(value[value > 0]) / d) for name, value in counts.items()}

    def plot(axes: Any) -> None:
        for name, value in counts.items():
            axes.step(np.sort(value) / d, np.linspace(0, 1, len(value)), label=name)
        axes.set(xscale="log", xlabel="share of neurons for 90 % of the square", ylabel="share of features")
        axes.legend(frameon=False, fontsize=7)

    ratio = share["SAE"] / share["SNMF"]
    small = Claim(
        f"group-size{label}", "a semi-NMF feature needs at most 5 % of the neurons for 90 % of its squared length (median)",
        share["SNMF"], Bar("<=", 0.05), share["dense"], "semi-NMF without winner-take-all on the same activations",
        note=f"{d} neurons, {len(learned.rows)} tokens; the network's training loss is {language.loss:.2f} nats. Winner-take-all "
        "keeps 1 %, so the number itself is set by the method; the control shows that it is not set by the data", plot=plot,
    )  # fmt: skip

    def plot_ratio(axes: Any) -> None:
        axes.bar(list(share), list(share.values()), color=["C0", "0.6", "C1"])
        axes.set(ylabel="share of neurons (median)", yscale="log")

    smaller = Claim(
        f"smaller-than-sae{label}", "a TopK autoencoder of the same width and codes a token needs at least 5 times as many neurons",
        ratio, Bar(">=", 5.0), share["SAE"] / share["dense"], "semi-NMF without winner-take-all in place of semi-NMF",
        note=f"{learned.l0:.1f} codes a token", plot=plot_ratio,
    )  # fmt: skip
    return small, smaller


def steering(learned: Learned, language: Language, setting: Setting, seed: int, label: str = "") -> list[Claim]:
    """Gain in log-odds of the tokens that follow a feature's strongest contexts, at one divergence."""
    base = last_logits(language.model, language.prompts)
    codes, directions = learned.snmf.codes_, learned.snmf.directions_
    strength = codes * np.linalg.norm(directions, axis=1)
    chosen = np.argsort(-(strength**2).sum(0), kind="stable")[: setting.steered]
    latents = learned.sae.encode(learned.rows).numpy()
    gains: dict[str, list[float]] = {name: [] for name in ("SNMF", "SAE", "DiffMean", "random")}
    missed = 0
    for j in chosen:
        top = np.argsort(-codes[:, j], kind="stable")[:25]
        tokens, counts = learned.following[torch.from_numpy(top)].unique(return_counts=True)
        wanted = tokens[counts >= 0.1 * len(top)] if bool((counts >= 0.1 * len(top)).any()) else tokens
        on = np.zeros(len(codes), int)
        on[top] = 1
        best = int((latents[top].mean(0) - latents.mean(0)).argmax())
        tried = {
            "SNMF": torch.from_numpy(directions[j]).float(), "SAE": learned.sae.directions[best],
            "DiffMean": diff_mean(learned.rows, on).directions[0].float(),
        }  # fmt: skip
        tried["random"] = random_direction(tried["SNMF"], seed * 1000 + int(j))
        for name, direction in tried.items():
            gain, converged = _gain(language, direction, wanted, base)
            missed += not converged
            gains[name].append(gain)
    return _contests({name: np.array(values) for name, values in gains.items()}, missed, label)


def _contests(table: dict[str, np.ndarray], missed: int, label: str) -> list[Claim]:
    """Semi-NMF against each rival, feature by feature."""
    said = ", ".join(f"{name} {np.median(values):.2f}" for name, values in table.items())
    note = f"KL {KL}; median gains {said}; {missed} of {sum(map(len, table.values()))} searches missed the target"

    def plot(axes: Any) -> None:
        axes.boxplot(list(table.values()), tick_labels=list(table), showfliers=False)
        axes.axhline(0, color="0.7", lw=0.8)
        axes.set(ylabel="gain in log-odds")

    def plot_pairs(axes: Any) -> None:
        for name, marker in (("SNMF", "o"), ("random", "x")):
            axes.scatter(table["DiffMean"], table[name], s=14, marker=marker, label=name)
        axes.axline((0, 0), slope=1, color="0.7", lw=0.8)
        axes.set(xlabel="gain of the difference of means", ylabel="gain")
        axes.legend(frameon=False, fontsize=7)

    rivals = (
        ("sae", "SAE", "matching autoencoder latent", plot),
        ("diffmean", "DiffMean", "difference of means", plot_pairs),
    )
    return [
        Claim(
            f"steering-{short}{label}", "at equal divergence a semi-NMF feature raises the log-odds of its contexts' next tokens more "
            f"than the {name} does (share of features)",
            float((table["SNMF"] > table[rival]).mean()), Bar(">", 0.5), float((table["random"] > table[rival]).mean()),
            "a random direction on the same neurons in the feature's place", note=note, plot=drawn,
        )
        for short, rival, name, drawn in rivals
    ]  # fmt: skip


def _gain(language: Language, direction: Tensor, wanted: Tensor, base: Tensor) -> tuple[float, bool]:
    found = kl_matched_alpha(language.model, language.site, direction, language.prompts, KL)
    edit = Dictionary(direction[None], site=language.site).steer(0, found.alpha)
    after = last_logits(language.model, language.prompts, edit)

    def odds(logits: Tensor) -> Tensor:
        p = logits.softmax(-1)[:, wanted].sum(-1).clamp(1e-12, 1 - 1e-12)
        return (p / (1 - p)).log()

    return float((odds(after) - odds(base)).mean()), found.converged
