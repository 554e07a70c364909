"""Networks of the relation-neurons study with what was asked of them: trained on planted facts, or read from a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from netloupe.core.batches import Batch
from netloupe.core.errors import SubjectError
from netloupe.core.training import train
from netloupe.core.unit_sets import UnitSpace, mlp_projections, pooled_responses
from netloupe.data.triples import load_lre, require_disjoint_subjects, subject_split, synthetic_relations
from netloupe.lenses.control.deactivate import Questions, answer
from netloupe.lenses.control.relation_drops import DropMatrix, drop_matrix
from netloupe.lenses.naming.relation_units import UnitRanking, rank_units
from netloupe.models.gpt import ByteGPT
from netloupe.subjects.models import load_model

SHARES = (0.01, 0.03, 0.06, 0.10, 0.15, 0.25)
PUBLISHED_SIZES = (100, 1000, 3000, 10_000, 25_000, 50_000)


@dataclass(frozen=True)
class Setting:
    """One preset. ``pair``: relations with the same facts; ``texts``: texts a topic for MiniLM, 0 for none."""

    n_relations: int
    n_subjects: int
    n_objects: int
    steps: int
    batch: int
    n_seeds: int
    n_shuffles: int
    n_draws: int
    pair: tuple[int, int]
    texts: int = 0


@dataclass(frozen=True)
class World:
    """A network, what its units say to the prompts they are ranked on, and questions about other subjects.

    ``templates`` of the prompts and ``judged_templates`` of the questions; ``sizes``: of the sets.
    """

    model: nn.Module
    space: UnitSpace
    responses: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    templates: np.ndarray
    questions: Questions
    judged_templates: np.ndarray
    sizes: tuple[int, ...]
    setting: Setting
    seed: int

    @cached_property
    def ranking(self) -> UnitRanking:
        """Units by average precision for each relation."""
        return self.rank(self.labels)

    @cached_property
    def shuffled(self) -> list[UnitRanking]:
        """The same with labels that mean nothing."""
        draw = np.random.default_rng(self.seed + 11)
        return [self.rank(draw.permutation(self.labels)) for _ in range(self.setting.n_shuffles)]

    @cached_property
    def curve(self) -> list[DropMatrix]:
        """What the best units of every size do."""
        return [self.drops(self.ranking.sets(k)) for k in self.sizes]

    def rank(self, labels: np.ndarray, rows: Any = slice(None)) -> UnitRanking:
        """Units by average precision for labels of some of the prompts."""
        return rank_units(self.responses[rows], labels[rows], random_state=self.seed)

    def drops(self, sets: Sequence[Any], questions: Questions | None = None, **options: Any) -> DropMatrix:
        """Losses of log-probability with sets of units off."""
        asked = self.questions if questions is None else questions
        options = {"n_draws": self.setting.n_draws, "random_state": self.seed, **options}
        return drop_matrix(self.model, self.space, sets, asked, **options)


def planted_world(setting: Setting, seed: int) -> World:
    """A gated language model of two layers that has learned planted facts by heart, read at its 864 units.

    All facts are trained on, as a pretrained network knows the subjects it is asked about; units are ranked on two subjects in
    three and questions are about the others.
    """
    facts = synthetic_relations(
        setting.n_relations, setting.n_subjects, setting.n_objects, seed=seed, shared=[setting.pair]
    )
    model = ByteGPT(48, 2, 4, 192, 8, activation="silu", vocab=facts.vocab, random_state=seed)
    train(
        model, (facts.prompts, facts.answers), steps=setting.steps, batch_size=setting.batch, schedule="cosine", warmup=50,
        optimizer=lambda parameters: Adam(parameters, lr=3e-3), loss=_last_token_loss,
        seed=seed,
    )  # fmt: skip
    fit, judge = subject_split(facts.subjects.numpy(), setting.n_subjects // 3, seed)
    known, asked = facts.rows(torch.from_numpy(fit)), facts.rows(torch.from_numpy(judge))
    require_disjoint_subjects(known.subjects.tolist(), asked.subjects.tolist())
    right = answer(
        model, Questions(known.prompts, known.answers, known.relations.numpy(), known.subjects.numpy())
    ).correct
    known = known.rows(torch.from_numpy(right))  # never ranked on what the network does not know
    responses, space = pooled_responses(model, known.prompts, mlp_projections(model))
    questions = Questions(asked.prompts, asked.answers, asked.relations.numpy(), asked.subjects.numpy())
    return World(
        model, space, responses, known.relations.numpy(), known.subjects.numpy(), known.templates.numpy(), questions,
        asked.templates.numpy(), tuple(round(share * len(space)) for share in SHARES), setting, seed,
    )  # fmt: skip


def _last_token_loss(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return F.cross_entropy(logits[:, -1], batch.labels)


def llm_world(setting: Setting, seed: int) -> World:
    """The network at ``NETLOUPE_MODEL`` (a Hugging Face folder) and the relations under ``NETLOUPE_DATA/lre`` with over 300 facts.

    Fifty facts of each are asked about, none of whose subjects is among those that units are ranked on; those are only prompts that
    are answered right. Raises SubjectError where either is missing or fewer than two relations have five known facts.
    """
    folder, data = os.environ.get("NETLOUPE_MODEL"), os.environ.get("NETLOUPE_DATA")
    if not folder or not data:
        raise SubjectError(
            "the full preset needs NETLOUPE_MODEL, a Hugging Face folder, and NETLOUPE_DATA, which holds lre/"
        )
    relations = load_lre(Path(data) / "lre", min_pairs=301)
    subject = load_model(folder)
    if subject.tokenizer is None or len(relations) < 2:
        raise SubjectError(
            f"a tokenizer and two relations of over 300 facts are needed; there are {len(relations)} relations"
        )
    model = subject.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return world_of_text(model, subject.tokenizer, relations, setting, seed, 50)


def world_of_text(
    model: nn.Module, tokenizer: Any, relations: Sequence[Any], setting: Setting, seed: int, n_eval: int
) -> World:
    """A world from relations in words; an answer's tokens are those the tokenizer adds to the prompt."""
    prompts, answers, labels, names = [], [], [], []
    for index, relation in enumerate(relations):
        for name, thing in relation.pairs:
            start = tokenizer(relation.templates[0].replace("{}", name))["input_ids"]
            prompts.append(list(start))
            answers.append(list(tokenizer(f" {thing.strip()}", add_special_tokens=False)["input_ids"]))
            labels.append(index)
            names.append(name)
    y, subjects = np.array(labels), np.array(names)
    draw = np.random.default_rng(seed)
    first = [draw.choice(np.flatnonzero(y == index), n_eval, replace=False) for index in range(len(relations))]
    judged = np.sort(np.concatenate(first))
    fitted = np.flatnonzero(~np.isin(subjects, subjects[judged]))

    def questions(rows: np.ndarray) -> Questions:
        return Questions([prompts[row] for row in rows], [answers[row] for row in rows], y[rows], subjects[rows])

    known = fitted[answer(model, questions(fitted), batch_size=32).correct]
    counts = np.bincount(y[known], minlength=len(relations))
    kept = np.flatnonzero(counts >= 5)
    if len(kept) < 2:
        raise SubjectError(
            f"the network knows {counts.tolist()} facts of the relations; five of two relations are needed"
        )
    place = np.full(len(relations), -1)
    place[kept] = np.arange(len(kept))
    y = place[y]
    known, judged = known[y[known] >= 0], judged[y[judged] >= 0]
    responses, space = pooled_responses(model, [prompts[row] for row in known], mlp_projections(model), batch_size=32)
    sizes = (
        tuple(k for k in PUBLISHED_SIZES if k < len(space))
        if len(space) > 100_000
        else tuple(max(1, round(share * len(space))) for share in SHARES)
    )
    zeros = np.zeros(len(y), dtype=np.int64)
    return World(
        model,
        space,
        responses,
        y[known],
        subjects[known],
        zeros[known],
        questions(judged),
        zeros[judged],
        sizes,
        setting,
        seed,
    )
