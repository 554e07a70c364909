"""Switching units off, and what a network still knows of each group of facts.

Source: Liu et al., "On Relation-Specific Neurons in Large Language Models", arXiv 2502.17355.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from netloupe.core.capture import run_all
from netloupe.core.errors import InputError
from netloupe.core.intervene import ablate, intervene
from netloupe.core.unit_sets import UnitSpace, by_length

Value = Literal["zero", "mean", "resample"]


@contextmanager
def deactivate(
    model: nn.Module,
    units: Mapping[str, Any],
    value: Value | float = "zero",
    *,
    reference: Mapping[str, Tensor] | None = None,
    random_state: int = 0,
) -> Iterator[None]:
    """In the block the chosen outputs are held at ``value`` at every position, of prompts and of what is generated.

    Args:
        units: site to its units, as :meth:`netloupe.core.unit_sets.UnitSpace.split` gives them.
        value: ``zero`` (or 0.0), as published; ``mean``: the mean of ``reference`` (of the batch without one); ``resample``: values of
            other samples. Zero may be far from anything the unit ever says.
        reference: site to rows ``(sample, [position,] unit)`` that means and samples are taken from.

    Raises InputError for another value, and the errors of :func:`netloupe.core.intervene.intervene`.
    """  # fmt: skip
    if value not in ("zero", "mean", "resample", 0, 0.0):
        raise InputError(f"value is {value!r}, expected zero, mean or resample")
    how: Value = "zero" if isinstance(value, (int, float)) else value
    edits = []
    for site, chosen in units.items():
        rows = None if reference is None else reference.get(site)
        if rows is not None and how == "mean":
            rows = rows.reshape(-1, rows.shape[-1]).mean(0)
        edits.append(ablate(site, how, rows, units=np.asarray(chosen), random_state=random_state))
    with intervene(model, *edits):
        yield


@dataclass(frozen=True)
class Questions:
    """Prompts with answers, both as token numbers; ``relations`` int64 ``(question,)``, ``subjects`` what a bootstrap draws.

    ``answers`` may be one token each or several. Prompts and answers are joined as they are: add a token for the beginning of text
    yourself where the network wants one.
    """

    prompts: Sequence[Sequence[int]] | Int[Tensor, "question position"]
    answers: Sequence[Sequence[int]] | Int[Tensor, " question"]
    relations: Int[np.ndarray, " question"]
    subjects: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.prompts), len(self.answers), len(self.relations), len(self.subjects)}
        if len(lengths) != 1 or 0 in lengths:
            raise InputError(
                f"prompts, answers, relations and subjects have {sorted(lengths)} rows; equal, positive numbers are needed"
            )


@dataclass(frozen=True)
class Answers:
    """For every question: ``logprob`` of the whole answer in nats, whether it is ``correct``, and ``margin``: the smallest
    lead of an answer's token over the best other, in logits."""

    logprob: Float[np.ndarray, " question"]
    correct: Bool[np.ndarray, " question"]
    margin: Float[np.ndarray, " question"]

    def metric(self, name: str) -> Float[np.ndarray, " question"]:
        """One of ``logprob``, ``accuracy`` and ``margin``, float64 ``(question,)``."""
        if name not in ("logprob", "accuracy", "margin"):
            raise InputError(f"metric is '{name}', expected logprob, accuracy or margin")
        return (self.correct if name == "accuracy" else getattr(self, name)).astype(np.float64)


def answer(model: nn.Module, questions: Questions, *, n_tokens: int = 2, batch_size: int = 256) -> Answers:
    """What a causal language model gives to every question, in one pass and without generating.

    An answer is correct where each of its first ``n_tokens`` tokens is the most likely one after those before it: greedy generation of
    that many tokens is then a prefix of the answer, the published test. Questions of one length run together, nothing is padded.

    Cost: one forward pass. Raises InputError where the network gives no logits ``(sample, position, token)``.
    """
    n = len(questions.relations)
    given = questions.answers
    answers = (
        [[int(one)] for one in given] if isinstance(given, Tensor) and given.ndim == 1 else [list(one) for one in given]
    )
    joined = [[*map(int, prompt), *reply] for prompt, reply in zip(questions.prompts, answers, strict=True)]
    keys = np.array([[len(whole), len(reply)] for whole, reply in zip(joined, answers, strict=True)])
    logprob, correct, margin = np.empty(n), np.empty(n, dtype=bool), np.empty(n)
    for length, n_answer in np.unique(keys, axis=0):
        if not n_answer:
            raise InputError("an answer has no token; give at least one")
        rows = np.flatnonzero((keys == (length, n_answer)).all(1))
        (tokens,) = by_length([joined[row] for row in rows]).values()
        start = 0
        for output, batch in run_all(model, tokens[:, :-1], batch_size=batch_size):
            logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
            if not isinstance(logits, Tensor) or logits.ndim != 3:
                raise InputError(
                    "the network gives no logits (sample, position, token); a causal language model is needed"
                )
            part = rows[start : start + batch.n_samples]
            wanted = tokens[start : start + batch.n_samples, -n_answer:].to(logits.device)
            scores = _scored(logits[:, -n_answer:].double(), wanted, n_tokens)
            logprob[part], correct[part], margin[part] = (each.cpu().numpy() for each in scores)
            start += batch.n_samples
    return Answers(logprob, correct, margin)


def _scored(logits: Tensor, wanted: Tensor, n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    own = logits.gather(-1, wanted[..., None])[..., 0]
    logprob = (own - logits.logsumexp(-1)).sum(-1)
    others = logits.scatter(-1, wanted[..., None], -torch.inf).amax(-1)
    lead = own - others
    return logprob, (lead[:, :n_tokens] > 0).all(-1), lead.amin(-1)


def answer_without(
    model: nn.Module, questions: Questions, space: UnitSpace, units: Any, value: Value | float = "zero", **options: Any
) -> Answers:
    """:func:`answer` with a set of units off."""
    with deactivate(model, space.split(units), value):
        return answer(model, questions, **options)
