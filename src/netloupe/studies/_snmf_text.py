"""Codes of a sentence encoder's feed-forward block against the topic of the sentence."""

from __future__ import annotations

import ast
import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from netloupe.core.capture import capture
from netloupe.core.dictionary import Dictionary, pca_dictionary
from netloupe.core.errors import NetloupeError
from netloupe.core.nulls import random_direction
from netloupe.core.study import Bar, Claim
from netloupe.lenses.dictionary.sae import SparseAutoencoder
from netloupe.lenses.dictionary.score import score
from netloupe.lenses.dictionary.snmf import SemiNMF

MODULES = ("argparse", "asyncio", "collections", "datetime.py", "_pydatetime.py", "decimal.py", "_pydecimal.py", "email", "http",
           "logging", "multiprocessing", "tkinter", "unittest", "urllib", "xml")  # fmt: skip
SITE, K = "encoder.layer.3.intermediate", 50
NAMES = ("topics", "near-sae", "above-pca")
STATEMENTS = (
    "the best code of a topic tells its held-out tokens from others, above shuffled topics (mean AUC minus the largest of 20 shuffles)",
    "semi-NMF codes tell topics as well as those of a TopK autoencoder of the same width (mean AUC, difference)",
    "semi-NMF codes tell topics better than principal components (mean AUC, difference)",
)
BARS = (Bar(">", 0.05), Bar(">=", -0.03), Bar(">", 0.0))


def sentences(n_topics: int = 10, per_topic: int = 20) -> list[list[str]]:
    """Sentences of docstrings, a list for each module of the standard library that has enough of them."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    for name in MODULES:
        place = root / name if (root / name).exists() else root / f"{name}.py"
        texts: dict[str, None] = {}
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place] * place.is_file():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    folded = " ".join((ast.get_docstring(node) or "").split())
                    texts |= dict.fromkeys(s for s in re.split(r"(?<=[.!?]) ", folded) if 40 <= len(s) <= 200)
        if len(texts) >= per_topic:
            spread = np.linspace(0, len(texts) - 1, per_topic).astype(int)
            found.append([list(texts)[i] for i in spread])
    return found[:n_topics]


def untested(why: str) -> list[Claim]:
    """The three claims, not measured."""
    return [
        Claim(name, statement, None, bar, None, "see the note", note=why)
        for name, statement, bar in zip(NAMES, STATEMENTS, BARS, strict=True)
    ]


def concepts(iterations: int, sae_steps: int, seed: int) -> list[Claim]:
    """The three claims with MiniLM, where it is installed."""
    from netloupe.subjects import load_model

    try:
        subject = load_model("minilm")
    except NetloupeError as error:
        return untested(f"needs MiniLM: {error}")
    topics = sentences()
    rows, labels, held = [], [], []
    for topic, texts in enumerate(topics):
        batch = subject.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        captured = torch.cat([c[SITE] for c in capture(subject.model, dict(batch), [SITE], batch_size=32)])
        for i, (values, mask) in enumerate(zip(captured, batch["attention_mask"], strict=True)):
            kept = values[: int(mask.sum())][1:-1]  # start and end tokens would take components of their own
            rows.append(kept)
            labels += [topic] * len(kept)
            held += [i % 2 == 1] * len(kept)
    x, y, test = torch.cat(rows), np.array(labels), np.array(held)
    snmf = SemiNMF(K, max_iter=iterations, seed=seed, dtype="float32").fit(x[~test]).dictionary().to(torch.float32)
    l0 = score(snmf, x[~test]).l0
    keep = int(np.clip(round(l0), 1, K))
    sae = SparseAutoencoder(K, "topk", k=keep, steps=sae_steps, rate=1e-3, dead_after=20_000, seed=seed).fit(x[~test])
    random = torch.stack([random_direction(f, seed * 1000 + i) for i, f in enumerate(snmf.directions)])
    kinds = {
        "SNMF": snmf, "SAE": sae.dictionary(), "PCA": pca_dictionary(x[~test], K), "random": Dictionary(random, "nonnegative"),
    }  # fmt: skip
    coded = {name: one.encode(x).double().numpy() for name, one in kinds.items()}
    auc = {name: best_codes(codes, y, test) for name, codes in coded.items()}
    rng = np.random.default_rng(seed)
    shuffles = [best_codes(coded["SNMF"], _shuffled(y, rng), test).mean() for _ in range(21)]
    mean = {name: float(values.mean()) for name, values in auc.items()}

    def plot(axes: Any) -> None:
        axes.boxplot(list(auc.values()), tick_labels=list(auc))
        axes.axhline(max(shuffles[1:]), color="C3", ls=":", label="shuffled topics")
        axes.set(ylabel="AUC of the best code")
        axes.legend(frameon=False, fontsize=7)

    values = (mean["SNMF"] - max(shuffles[1:]), mean["SNMF"] - mean["SAE"], mean["SNMF"] - mean["PCA"])
    controls = (
        (
            float(shuffles[0] - max(shuffles[1:])),
            "one more shuffle of the topics, in runs of 15 tokens, in place of the topics",
        ),
        (mean["random"] - mean["SAE"], "random directions on the same neurons, encoded alike, in place of semi-NMF"),
        (mean["random"] - mean["PCA"], "random directions on the same neurons, encoded alike, in place of semi-NMF"),
    )
    note = f"{len(topics)} modules, {len(x)} tokens, {l0:.1f} codes a token; AUC " + ", ".join(
        f"{name} {value:.3f}" for name, value in mean.items()
    )
    return [
        Claim(name, statement, value, bar, control, said, note=note, plot=plot)
        for name, statement, value, bar, (control, said) in zip(NAMES, STATEMENTS, values, BARS, controls, strict=True)
    ]


def best_codes(codes: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """For each topic the AUC, on held-out tokens, of the code (and sign) that tells it best on the others."""
    found = []
    for topic in np.unique(labels):
        fit = _auc(codes[~test], labels[~test] == topic)
        best = int(np.abs(fit - 0.5).argmax())
        judged = roc_auc_score(labels[test] == topic, codes[test, best])
        found.append(judged if fit[best] >= 0.5 else 1 - judged)
    return np.array(found)


def _auc(codes: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return np.array([roc_auc_score(positive, column) for column in codes.T])


def _shuffled(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Topics dealt anew to whole runs of about a sentence, so that tokens of a sentence stay together."""
    runs = np.arange(len(labels)) // 15
    return rng.permutation(labels[np.minimum(np.unique(runs) * 15 + 7, len(labels) - 1)])[runs]
