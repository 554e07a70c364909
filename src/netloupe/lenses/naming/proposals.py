"""Sources of names and judges of names that need no network, and the way in for any that do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError
from netloupe.lenses.naming.captions import tokens_of
from netloupe.lenses.naming.naming import Evidence, Judge, Proposal, Proposer

ENDING = "\u2026"  # a phrase that begins so is about what a text ends in at its mark


def words_of(text: str) -> list[str]:
    """Lower-cased words of a text, punctuation left out."""
    return [token for token in tokens_of(text) if token[0].isalnum()]


class Marked(NamedTuple):
    """A piece of text with the token at which a feature is strongest; as a string, the whole text."""

    before: str
    strong: str
    after: str

    def __str__(self) -> str:
        return self.before + self.strong + self.after


def phrase_list(phrases: Sequence[str]) -> Proposer:
    """Proposes every phrase of a list for every feature, without an opinion: the judge's score chooses.

    Raises InputError for an empty list.
    """
    given = [Proposal(str(phrase)) for phrase in phrases]
    if not given:
        raise InputError("the list of phrases is empty; give at least one")
    return lambda _: given


def distinctive_words(n_words: int = 5, to_text: Callable[[Any], str] = str, prior: float = 1.0) -> Proposer:
    """Proposes the words that tell the top samples of a feature from random others.

    The score of a word is ``log((a + p) / (m + 2 p)) - log((b + p) / (n + 2 p))``, with ``a`` of ``m`` top samples and ``b`` of ``n``
    others that hold it and ``p`` the prior: its pointwise mutual information with being a top sample, up to a constant.

    Args:
        n_words: most proposals. to_text: reads a sample as text. prior: pseudo-counts, so that a rare word is no certainty.
    """

    def propose(seen: Evidence) -> list[Proposal]:
        found = _told(seen, lambda s: set(words_of(to_text(s))), prior)
        return sorted(found, key=lambda p: (-p.score, p.text))[:n_words]

    return propose


def _told(seen: Evidence, parts: Callable[[Any], set[str]], prior: float) -> list[Proposal]:
    """Every part of the top samples with how much it tells them from the others."""
    inside, outside = (Counter(part for s in side for part in parts(s)) for side in (seen.samples, seen.others))
    m, n = len(seen.samples) + 2 * prior, len(seen.others) + 2 * prior
    return [Proposal(w, float(np.log((a + prior) / m) - np.log((outside[w] + prior) / n))) for w, a in inside.items()]


def distinctive_endings(n_phrases: int = 5, longest: int = 6, prior: float = 1.0) -> Proposer:
    """Proposes what the text up to and with the marked token ends in, where it tells top samples from others: ``…ed``.

    Samples are :class:`Marked`. The score is that of :func:`distinctive_words`, of the last 1 to ``longest`` characters and of the
    whole marked token; of equal ones the longer comes first.
    """

    def endings(sample: Marked) -> set[str]:
        text = sample.before + sample.strong
        return {text[-n:] for n in range(1, longest + 1) if len(text) >= n} | {sample.strong}

    def propose(seen: Evidence) -> list[Proposal]:
        found = _told(seen, endings, prior)
        return sorted(
            (Proposal(f"{ENDING}{p.text}", p.score) for p in found), key=lambda p: (-p.score, -len(p.text), p.text)
        )[:n_phrases]

    return propose


def several(*proposers: Proposer) -> Proposer:
    """The proposals of all, without an opinion: the judge's score chooses between sources whose scores do not compare."""
    return lambda seen: [Proposal(p.text) for propose in proposers for p in propose(seen)]


def ending_judge(otherwise: Judge) -> Judge:
    """1 where a :class:`Marked` sample ends, at its mark, in what follows the phrase's ``…``, else 0; other phrases go to ``otherwise``."""

    def judge(text: str, samples: Sequence[Any]) -> Float[np.ndarray, " sample"]:
        if not text.startswith(ENDING):
            return otherwise(text, samples)
        return np.array([float((s.before + s.strong).endswith(text[len(ENDING) :])) for s in samples])

    return judge


def asking(generate: Callable[[str], str], to_text: Callable[[Any], str] = str, n_phrases: int = 5) -> Proposer:
    """Proposes what a language model (any callable from a prompt to a reply) answers, a phrase a line.

    The prompt shows the top samples with their strengths and the others. The model has no say in the score.
    """

    def propose(seen: Evidence) -> list[Proposal]:
        top = "\n".join(f"[{v:.3g}] {to_text(s)}" for s, v in zip(seen.samples, seen.strengths, strict=True))
        rest = "\n".join(to_text(s) for s in seen.others)
        reply = generate(
            f"A feature of a neural network is strongly active on these samples (strength in brackets):\n{top}\n\n"
            f"and not on these:\n{rest}\n\nSay in a few words what the first have in common and the others lack. "
            f"Give up to {n_phrases} different answers, one a line, without numbering."
        )
        return [Proposal(line.strip(" -*\t")) for line in reply.splitlines() if line.strip(" -*\t")][:n_phrases]

    return propose


def word_judge(to_text: Callable[[Any], str] = str) -> Judge:
    """Share of the phrase's words that a sample's text holds: 0 to 1."""

    def judge(text: str, samples: Sequence[Any]) -> Float[np.ndarray, " sample"]:
        wanted = set(words_of(text))
        if not wanted:
            return np.zeros(len(samples))
        return np.array([len(wanted & set(words_of(to_text(s)))) / len(wanted) for s in samples])

    return judge


def embedding_judge(
    embed_text: Callable[[str], Float[np.ndarray, " unit"]],
    embed_samples: Callable[[Sequence[Any]], Float[np.ndarray, "sample unit"]],
) -> Judge:
    """Cosine of the phrase with each sample in a space of both: a sentence encoder for texts, a CLIP-like pair for images.

    The judge must not be the network whose feature is named, or it scores what it made itself. Raises InputError where the two
    give different widths.
    """

    def judge(text: str, samples: Sequence[Any]) -> Float[np.ndarray, " sample"]:
        phrase = np.asarray(embed_text(text), dtype=np.float64).reshape(-1)
        rows = np.asarray(embed_samples(samples), dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(phrase):
            raise InputError(
                f"samples were embedded as {rows.shape}, the phrase has {len(phrase)} units; expected equal widths"
            )
        length = np.linalg.norm(rows, axis=1) * np.linalg.norm(phrase)
        return np.divide(rows @ phrase, length, out=np.zeros(len(rows)), where=length > 0)

    return judge
