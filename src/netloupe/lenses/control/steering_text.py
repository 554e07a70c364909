"""What a language model writes when it is pushed along a direction: continuations at equal disturbance, and their scores.

Source: arXiv 2506.10920: continuations at Kullback-Leibler divergences of .025 to .5, a judge's marks of 0 to 2 for the concept and
for fluency, their harmonic mean, and the best over divergences and signs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.capture import run_all
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.intervene import steer
from netloupe.core.losses import next_token_loss
from netloupe.core.nulls import random_direction
from netloupe.lenses.control.kl_matching import kl_matched_alpha, last_logits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KL_TARGETS = (0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5)
Marks = Callable[[Sequence[str]], Sequence[float] | Float[np.ndarray, " text"]]
"""Marks of texts, 0 (not at all) to 2 (fully)."""


def continuations(
    model: nn.Module,
    prompt: Int[Tensor, " position"] | Sequence[int],
    n_samples: int = 8,
    n_tokens: int = 50,
    *,
    edits: Sequence[Any] = (),
    top_k: int = 30,
    top_p: float = 0.3,
    context: int | None = None,
    random_state: int = 0,
) -> Int[Tensor, "sample position"]:
    """Samples of what follows a prompt, with edits in force at every step; the prompt is not repeated.

    At each step the ``top_k`` most probable tokens are kept, of these the fewest that hold ``top_p`` of the probability, and one is
    drawn. ``context``: only so many last tokens are shown to the network; its own ``context`` by default, else all. Cost:
    ``n_tokens`` runs of the whole text. Raises InputError for an empty prompt, sizes that make no sense and networks without logits.
    """
    shown = torch.as_tensor(prompt).reshape(-1)
    if not len(shown) or n_samples < 1 or n_tokens < 1 or top_k < 1 or not 0 < top_p <= 1:
        raise InputError(
            f"the prompt has {len(shown)} tokens, n_samples is {n_samples}, n_tokens {n_tokens}, top_k {top_k}, top_p {top_p:g}; expected "
            "at least one of each and a share"
        )
    limit = context or getattr(model, "context", None)
    draw = torch.Generator().manual_seed(random_state)
    rows = shown.long().repeat(n_samples, 1)
    for _ in range(n_tokens):
        seen = rows if limit is None else rows[:, -int(limit) :]
        logits = last_logits(model, seen, *edits)
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the pushed network gives NaN or infinity; push less far")
        rows = torch.cat([rows, _drawn(logits, top_k, top_p, draw)], 1)
    return rows[:, len(shown) :]


def _drawn(logits: Float[Tensor, "sample token"], top_k: int, top_p: float, draw: torch.Generator) -> Tensor:
    values, tokens = logits.topk(min(top_k, logits.shape[1]), dim=1)
    shares = values.softmax(1)
    before = shares.cumsum(1) - shares
    shares = shares.masked_fill(before >= top_p, 0)  # the first always stays
    return tokens.gather(1, torch.multinomial(shares, 1, generator=draw))


def harmonic(concept: Any, fluency: Any) -> Float[np.ndarray, " text"]:
    """``2 a b / (a + b)`` of two marks, 0 where either is 0. Raises InputError for marks outside 0 to 2 or unequal numbers."""
    a, b = np.asarray(concept, dtype=np.float64), np.asarray(fluency, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size or not all(((m >= 0) & (m <= 2)).all() for m in (a, b)):
        raise InputError(f"marks have shapes {a.shape} and {b.shape}, expected one number from 0 to 2 for every text")
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a), where=a * b > 0)


@dataclass(frozen=True, eq=False)
class SteeredText(Finding):
    """Scores of what is written at several disturbances.

    ``targets`` float64 ``(target,)`` in nats. ``alphas``, ``reached``, ``concept``, ``fluency``, ``scores`` float64 ``(sign, target)``:
    length of the push, divergence there, mean marks and mean harmonic mean; first along the direction, then against it. ``random``
    float64 ``(target,)``: scores of random directions. ``texts``: one example for each sign and target.
    """

    targets: Float[np.ndarray, " target"]
    alphas: Float[np.ndarray, "sign target"]
    reached: Float[np.ndarray, "sign target"]
    concept: Float[np.ndarray, "sign target"]
    fluency: Float[np.ndarray, "sign target"]
    scores: Float[np.ndarray, "sign target"]
    random: Float[np.ndarray, " target"]
    texts: tuple[tuple[str, ...], ...]

    meanings: ClassVar[dict[str, str]] = {
        "score": "best mean of the harmonic mean of concept and fluency (0 to 2), over divergences and signs",
        "random": "the same of a random direction, over divergences",
        "concept": "mean mark for the concept where the score is best",
        "fluency": "mean mark for fluency there",
        "kl": "divergence there, in nats",
    }

    @property
    def best(self) -> tuple[int, int]:
        """Sign and target of the best score."""
        sign, target = np.unravel_index(int(self.scores.argmax()), self.scores.shape)
        return int(sign), int(target)

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        at = self.best
        found = (self.scores[at], self.random.max(), self.concept[at], self.fluency[at], self.reached[at])
        return dict(zip(self.meanings, map(float, found), strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        found, (sign, target) = self.summary(), self.best
        return (
            f"Pushed {'against' if sign else 'along'} the direction to {found['kl']:.3g} nats, texts score {found['score']:.2f} of 2 "
            f"(concept {found['concept']:.2f}, fluency {found['fluency']:.2f}); random directions reach {found['random']:.2f}. "
            f"For example: {self.texts[sign][target]!r}."
        )

    def plot(self, axes: Axes) -> None:
        """Scores over divergences, both signs and random directions."""
        for sign, word in enumerate(("along", "against")):
            axes.plot(self.targets, self.scores[sign], "o-", label=word)
        axes.plot(self.targets, self.random, ":", color="0.4", label="random direction")
        axes.set(
            xlabel="divergence from the unsteered network (nats)",
            ylabel="concept and fluency (0 to 2)",
            ylim=(-0.05, 2.05),
        )
        axes.legend(frameon=False, fontsize="small")


def steered_text(
    model: nn.Module,
    site: str,
    direction: Float[Tensor, " unit"],
    prompt: Int[Tensor, " position"] | Sequence[int],
    decode: Callable[[Sequence[int]], str],
    concept: Marks,
    fluency: Marks,
    *,
    targets: Sequence[float] = KL_TARGETS,
    n_samples: int = 8,
    n_tokens: int = 50,
    random_state: int = 0,
    **options: Any,
) -> SteeredText:
    """Continuations of a prompt pushed both ways along a direction at equal disturbance, marked for the concept and for fluency.

    Args:
        prompt: tokens of a neutral beginning ("I think that"); the push is fitted to the divergence after its last token.
        decode: from tokens to text. concept, fluency: :data:`Marks`, such as a language model's answers, or :func:`word_marks` and
            :class:`LikelihoodMarks`, which need none.
        targets: nats. options: of :func:`continuations`.

    Cost: for each target three fits (about 20 runs of the prompt) and three sets of continuations.
    """
    ids = torch.as_tensor(prompt).reshape(1, -1).long()
    other = random_direction(torch.ones(len(direction)), random_state)
    sides, table = (direction, -direction, other), np.zeros((5, 3, len(targets)))
    texts: list[list[str]] = [[], [], []]
    for column, target in enumerate(targets):
        for row, vector in enumerate(sides):
            fit = kl_matched_alpha(model, site, vector, ids, target, tol=min(0.01, 0.1 * target))
            edit = steer(site, vector, fit.alpha)
            tokens = continuations(
                model, ids[0], n_samples, n_tokens, edits=(edit,), random_state=random_state, **options
            )
            written = [decode(one.tolist()) for one in tokens]
            marks = [np.asarray(judge(written), dtype=np.float64) for judge in (concept, fluency)]
            table[:, row, column] = (
                fit.alpha, fit.kl, float(marks[0].mean()), float(marks[1].mean()), float(harmonic(*marks).mean()),
            )  # fmt: skip
            texts[row].append(written[0])
    alphas, reached, concepts, fluencies, scores = table
    return SteeredText(
        np.asarray(targets, dtype=np.float64), alphas[:2], reached[:2], concepts[:2], fluencies[:2], scores[:2], scores[2],
        (tuple(texts[0]), tuple(texts[1])),
    )  # fmt: skip


def word_marks(words: Sequence[str]) -> Marks:
    """0, 1 or 2 for none, one, or more occurrences of any of the words, in any case."""
    wanted = [word.lower() for word in words if word]
    if not wanted:
        raise InputError("a concept needs at least one word")
    return lambda texts: [float(min(2, sum(text.lower().count(word) for word in wanted))) for text in texts]


class LikelihoodMarks:
    """Fluency by the unsteered network itself: 2 for texts as likely as nine tenths of its own, 1 up to 1.5 times that loss, else 0.

    Args:
        model, encode: the network, and from text to tokens. own: texts that it wrote unsteered, at least two.

    It rewards what the network would have written anyway, so it says nothing for a network that writes badly.
    """

    def __init__(self, model: nn.Module, encode: Callable[[str], Sequence[int]], own: Sequence[str]) -> None:
        self.model, self.encode = model, encode
        if len(own) < 2:
            raise InputError(f"{len(own)} unsteered texts were given, at least two are needed")
        self.bar = float(np.quantile([self.loss(text) for text in own], 0.9))

    def loss(self, text: str) -> float:
        """Mean nats a token after the first; infinite for a text of fewer than two tokens."""
        ids = torch.as_tensor(list(self.encode(text))).long()
        if len(ids) < 2:
            return float("inf")
        ((output, batch),) = run_all(self.model, ids[None])
        return float(next_token_loss(output, batch))

    def __call__(self, texts: Sequence[str]) -> list[float]:
        losses = [self.loss(text) for text in texts]
        return [2.0 if loss <= self.bar else 1.0 if loss <= 1.5 * self.bar else 0.0 for loss in losses]
