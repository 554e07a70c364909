"""A small language model that has read sentences about concepts, a sparse autoencoder on it, and concepts found there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.dictionary import Dictionary
from netloupe.core.losses import next_token_loss
from netloupe.core.training import train
from netloupe.core.unit_sets import by_length
from netloupe.data.bytes_text import byte_batches, byte_windows
from netloupe.data.logic_tasks import (
    CONCEPTS,
    OBJECTS,
    TEST_TEMPLATES,
    TRAIN_TEMPLATES,
    LogicItem,
    concept_sentences,
    pronto_like,
    rail2country_like,
)  # fmt: skip
from netloupe.lenses.control.concepts import ConceptDictionary, Mode
from netloupe.lenses.control.detection import Span, concept_labels
from netloupe.lenses.dictionary.sae import SparseAutoencoder
from netloupe.models.gpt import ByteGPT

SITE, DOT = "blocks.0", "."
NAMES = tuple(CONCEPTS)
LENGTH = 32


@dataclass(frozen=True)
class Setting:
    """One preset: ``n_seeds`` networks; ``steps`` and ``documents`` of their training; latents, kept ones and steps of the autoencoder;
    ``items`` of a task, ``bases`` of random rules with and without connectives, ``n_random`` directions."""

    n_seeds: int = 3
    steps: int = 600
    documents: int = 6000
    latents: int = 512
    kept: int = 8
    sae_steps: int = 1500
    items: int = 200
    bases: tuple[int, int] = (2000, 500)
    n_random: int = 20
    width: int = 64
    hops: tuple[int, ...] = (1, 3, 5)


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes ``(token, latent)`` of texts, the text of each token, and which token shows which concept."""

    codes: np.ndarray
    samples: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class World:
    """A network, its words, and the autoencoder's dictionary at :data:`SITE`; what is found in it is kept."""

    model: nn.Module
    number: dict[str, int]
    encoder: Dictionary
    loss: float
    setting: Setting
    seed: int

    def tokens(self, words: Sequence[str]) -> list[int]:
        """Numbers of a text's words, behind a full stop: a text never starts from nothing."""
        return [self.number[DOT], *(self.number[word] for word in words)]

    def states(self, items: Sequence[LogicItem]) -> list[Tensor]:
        """Hidden states ``(word, unit)`` of every text."""
        lists = [self.tokens(item.words) for item in items]
        hidden: list[Any] = [None] * len(lists)
        for rows, tokens in by_length(lists).items():
            found = torch.cat([c[SITE] for c in capture(self.model, tokens, [SITE], batch_size=256)])
            for row, values in zip(rows, found, strict=True):
                hidden[row] = values[1:]
        return hidden

    def read(self, items: Sequence[LogicItem], whole: bool = False) -> Coded:
        """Codes of every word of every text; labels at the concepts, or (``whole``) from a concept's first word on."""
        samples = np.repeat(np.arange(len(items)), [len(item.words) for item in items])
        spans = [
            Span(at, first, len(item.words) if whole else last, concept)
            for at, item in enumerate(items) for first, last, concept in item.spans
        ]  # fmt: skip
        states = torch.cat(self.states(items))
        labels = concept_labels(spans, samples, NAMES, "all" if whole else "last")
        return Coded(self.encoder.encode(states).numpy().astype(np.float64), samples, labels)

    @cached_property
    def fitted(self) -> Coded:
        """Sentences that concepts are searched in."""
        return self.read(concept_sentences(TRAIN_TEMPLATES))

    @cached_property
    def held_out(self) -> Coded:
        """Sentences of other templates."""
        return self.read(concept_sentences(TEST_TEMPLATES))

    def concepts(self, mode: Mode, k: int = 10, labels: np.ndarray | None = None, **options: Any) -> ConceptDictionary:
        """Concepts found in the fitted sentences; all codes of a token count, as the autoencoder keeps few."""
        options = {"top": None, "search_top": None, **options}
        found = ConceptDictionary(mode, k, random_state=self.seed, **options)
        wanted = self.fitted.labels if labels is None else labels
        return found.fit(self.fitted.codes, wanted, self.fitted.samples, NAMES)

    @cached_property
    def tree(self) -> ConceptDictionary:
        """The dictionary of trees, which reads the tasks."""
        return self.concepts("relation")

    @cached_property
    def topics(self) -> ConceptDictionary:
        """Latents that are active from a concept's first word to the end of a document about it: what is pushed."""
        documents = [document(np.random.default_rng(at), NAMES[at % len(NAMES)]) for at in range(240)]
        coded = self.read(documents, whole=True)
        found = ConceptDictionary("multi", 10, top=None, search_top=None, random_state=self.seed)
        return found.fit(coded.codes, coded.labels, coded.samples, NAMES)


def document(rng: np.random.Generator, concept: str, n: int = 3) -> LogicItem:
    """Sentences about one concept in its several words; where a thing has the colour, this may be said."""
    words: list[str] = []
    spans = []
    things = OBJECTS.get(concept, ())
    for _ in range(n):
        one, other = rng.choice((*CONCEPTS[concept], *things), 2)
        kind = rng.random()
        template = str(rng.choice((*TRAIN_TEMPLATES, *TEST_TEMPLATES)))
        if kind < 0.2 and things:
            template = f"the {{}} has the colour {rng.choice(CONCEPTS[concept])}"
            one = rng.choice(things)
        elif kind < 0.4:
            template = f"the {{}} reminds us of the {other}"
        parts = template.split()
        at = len(words) + parts.index("{}")
        spans.append((at, at + 1, concept))
        words += [*(str(one) if part == "{}" else part for part in parts), DOT]
    return LogicItem(tuple(words), (spans[0],))


def corpus(n: int, seed: int) -> list[str]:
    """Words of documents about a concept each, among trains of wagons and chains of categories."""
    rng, words = np.random.default_rng(seed), []
    n_logic = max(2, n // 12)
    logic = [
        item.words
        for at in (0, 1) for item in rail2country_like(n_logic, bool(at), seed=seed + at)
    ]  # fmt: skip
    logic += [item.words for item in pronto_like(n_logic // 2, 3, seed, templates=TRAIN_TEMPLATES)]
    texts = [document(rng, str(rng.choice(NAMES))).words for _ in range(n)] + logic
    for at in rng.permutation(len(texts)):
        words += [*texts[at], DOT]
    return words


def vocabulary() -> dict[str, int]:
    """A number for every word that a task can hold."""
    texts = [item.words for item in concept_sentences((*TRAIN_TEMPLATES, *TEST_TEMPLATES))]
    texts += [item.words for hops in (1, 5) for item in pronto_like(300, hops, 0)]
    texts += [item.words for meta in (False, True) for item in rail2country_like(100, meta)]
    words = {word for text in texts for word in text} | {DOT, *["the", "has", "colour", "reminds", "us", "of"]}
    return {word: at for at, word in enumerate(sorted(words))}


def make_world(setting: Setting, seed: int) -> World:
    """Trains the network on the corpus and the autoencoder on what the network says to it."""
    number = vocabulary()
    stream = torch.tensor([number[word] for word in corpus(setting.documents, seed)])
    model = ByteGPT(
        setting.width, 2, 4, 4 * setting.width, 128, vocab=len(number), embedding_std=1.0, random_state=seed
    )
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    history = train(
        model, byte_batches(stream, LENGTH, 32), steps=setting.steps, optimizer=adam, loss=next_token_loss, schedule="cosine",
        warmup=min(30, setting.steps // 4), seed=seed, clip=1.0,
    )  # fmt: skip
    model.eval()
    windows = byte_windows(stream, LENGTH, min(1000, len(stream) // LENGTH))
    states = torch.cat([c[SITE] for c in capture(model, windows, [SITE], batch_size=256)])
    rows = states[:, 1:].reshape(-1, states.shape[-1])
    sae = SparseAutoencoder(
        setting.latents, "topk", k=setting.kept, steps=setting.sae_steps, rate=1e-3, dead_after=20_000, seed=seed
    )
    size = float((rows - rows.mean(0)).pow(2).mean().sqrt())
    learned = sae.fit(rows / size).dictionary(SITE)
    assert learned.offset is not None
    assert learned.weight is not None
    encoder = dataclasses.replace(  # of the states as they are
        learned, directions=learned.directions * size, offset=learned.offset * size, weight=learned.weight / size
    )
    return World(model, number, encoder, float(np.mean(history.loss[-20:])), setting, seed)


def prompts(world: World, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, list[str]]:
    """Texts that show the first concept of each pair and end where a concept may follow; and the second concepts."""
    rng, rows = np.random.default_rng(world.seed), []
    for concept, _ in pairs:
        told = TRAIN_TEMPLATES[0].replace("{}", str(rng.choice(CONCEPTS[concept]))).split()
        rows.append(world.tokens([*told, DOT, *["who", "could", "forget", "the"]]))
    return torch.tensor(rows), [wanted for _, wanted in pairs]
