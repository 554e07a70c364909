"""Looking through the names of a network's units: which are about a thing that should not be there, which say most.

Source: Hernandez et al., "Natural Language Descriptions of Deep Visual Features", arXiv 2201.11114.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError

Criterion = Callable[[str], float]
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be by for from in into is it its of on or over than that the their them these this those to under up "
        "was were which with without"
    )
)
"""words that carry no content of their own: the ones that :func:`n_content_words` passes over"""


def find_units(
    descriptions: Sequence[str], words: str | Sequence[str], match: Literal["substring", "word"] = "substring"
) -> Int[np.ndarray, " found"]:
    """Numbers of the units whose description holds any of ``words``, upper and lower case alike, in rising order.

    ``substring``, as published, finds ``text`` in ``texture`` too; ``word`` finds whole words alone. Raises InputError for empty words.
    """
    wanted = [words] if isinstance(words, str) else list(words)
    if not wanted or not all(one.strip() for one in wanted) or match not in ("substring", "word"):
        raise InputError(
            f"words are {wanted!r} and match {match!r}; expected words that are not empty, and substring or word"
        )
    if match == "substring":
        lowered = [one.lower() for one in wanted]
        hits = [any(one in text.lower() for one in lowered) for text in descriptions]
    else:
        pattern = re.compile("|".join(rf"(?<!\w){re.escape(one)}(?!\w)" for one in wanted), re.IGNORECASE)
        hits = [bool(pattern.search(text)) for text in descriptions]
    return np.flatnonzero(np.array(hits, dtype=bool))


def sort_units(
    descriptions: Sequence[str],
    criterion: Literal["words", "content words", "characters"] | Criterion,
    *,
    largest_first: bool = True,
) -> Int[np.ndarray, " unit"]:
    """Units in the order of a property of their descriptions; equal ones keep their order.

    Args:
        criterion: one of three counts that need no library, or any function of a description: :func:`n_tagged`, :func:`parse_depth`,
            :func:`word_spread` and :func:`similarity_to` make the published ones.

    Raises InputError for an unknown criterion, or one that gives no finite number.
    """
    known: dict[str, Criterion] = {
        "words": n_words,
        "content words": n_content_words,
        "characters": lambda text: float(len(text)),
    }
    if isinstance(criterion, str) and criterion not in known:
        raise InputError(f"criterion is '{criterion}', expected {', '.join(known)}, or a function of a description")
    rule = known[criterion] if isinstance(criterion, str) else criterion
    values = np.array([float(rule(text)) for text in descriptions])
    if not np.isfinite(values).all():
        raise InputError(
            "the criterion gave NaN or infinity for some description; it must give a number for every text"
        )
    return np.argsort(-values if largest_first else values, kind="stable")


def n_words(text: str) -> float:
    """Number of words."""
    return float(len(_WORD.findall(text)))


def n_content_words(text: str) -> float:
    """Number of different words that are no :data:`FUNCTION_WORDS`."""
    return float(len(set(_WORD.findall(text.lower())) - FUNCTION_WORDS))


def n_tagged(tag: str, nlp: Callable[[str], Any]) -> Criterion:
    """Number of words of a part of speech (``NOUN``, ``ADJ``, ``VERB``, ``ADP``), by a spaCy pipeline or the like (``token.pos_``)."""
    return lambda text: float(sum(token.pos_ == tag for token in nlp(text)))


def parse_depth(nlp: Callable[[str], Any]) -> Criterion:
    """Longest way from a word to the head of its sentence, by a spaCy pipeline or what parses alike (``token.head``)."""

    def depth(token: Any) -> int:
        steps = 0
        while token.head is not token and token.head.i != token.i:
            token, steps = token.head, steps + 1
        return steps

    return lambda text: float(max((depth(token) for token in nlp(text)), default=0))


def word_spread(vector: Callable[[str], Float[np.ndarray, " unit"] | None]) -> Criterion:
    """Largest distance between two words of a description in a space of words; words without a vector are passed over."""

    def spread(text: str) -> float:
        rows = [np.asarray(found, float) for word in _WORD.findall(text.lower()) if (found := vector(word)) is not None]
        return max((float(np.linalg.norm(one - other)) for one in rows for other in rows), default=0.0)

    return spread


def similarity_to(word: str, vector: Callable[[str], Float[np.ndarray, " unit"] | None]) -> Criterion:
    """Largest cosine of a description's words with ``word``; -1 where none has a vector. Raises InputError where ``word`` has none."""
    target = vector(word)
    if target is None or not np.linalg.norm(target):
        raise InputError(f"'{word}' has no vector in this space; choose a word that has")
    goal = np.asarray(target, float) / np.linalg.norm(target)

    def similarity(text: str) -> float:
        rows = [np.asarray(found, float) for one in _WORD.findall(text.lower()) if (found := vector(one)) is not None]
        return max((float(row @ goal / max(np.linalg.norm(row), 1e-300)) for row in rows), default=-1.0)

    return similarity
