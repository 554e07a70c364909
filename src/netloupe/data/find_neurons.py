"""Units that respond to concepts, and units that answer a word with a related one: known, offline, without a language model.

After the synthetic neurons of arXiv 2309.03886, where a language model is told what to respond to. Here an entity unit is a sharpened
cosine in a space of word vectors, and a relation unit a table with, if wanted, an exception.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import svds

from netloupe.core.errors import InputError
from netloupe.data.find import Function, Truth

UNDEFINED = "undefined"
_WORD = re.compile(r"[a-z]{3,}")
_FUNCTION_WORDS = (
    "the and for that this with are not from but has have was its can will may all any been which when then than also into only other"
    " such they them there their these those some used use uses using one two see should must would could does did you your our out how"
    " what where who why were being had his her she him both each very more most just like here given else get set new too"
)
_COMMON = frozenset(_FUNCTION_WORDS.split())
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TABLES: dict[str, dict[str, str]] = {
    "plural": {"mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "man": "men", "ox": "oxen",
               "person": "people", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "life": "lives", "index": "indices"},
    "capital": {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Kenya": "Nairobi",
                "Canada": "Ottawa", "Cuba": "Havana", "Spain": "Madrid", "Greece": "Athens", "Norway": "Oslo", "Chile": "Santiago"},
    "opposite": {"hot": "cold", "big": "small", "fast": "slow", "early": "late", "open": "closed", "full": "empty", "rich": "poor",
                 "strong": "weak", "light": "dark", "high": "low", "old": "young", "wet": "dry"},
    "digit": dict(zip("0123456789", _DIGITS, strict=True)),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class WordSpace:
    """Words as unit vectors: ``words``, most frequent first, and ``vectors`` ``(word, unit)``."""

    words: tuple[str, ...]
    vectors: Float[np.ndarray, "word unit"]
    encode: Callable[[Sequence[str]], Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", {word: at for at, word in enumerate(self.words)})

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text unit"]:
        """One row a text: the encoder's, or the sum of the vectors of its known words, scaled to length 1; zeros where none is known."""
        if self.encode is not None:
            return _unit_rows(np.asarray(self.encode(list(texts)), dtype=np.float64))
        place: dict[str, int] = self._place  # pyright: ignore[reportAttributeAccessIssue]
        rows = np.zeros((len(texts), self.vectors.shape[1]))
        for at, text in enumerate(texts):
            known = [place[word] for word in _WORD.findall(text.lower()) if word in place]
            if known:
                rows[at] = self.vectors[known].sum(0)
        return _unit_rows(rows)

    def nearest(self, text: str, n: int, without: Collection[str] = ()) -> list[str]:
        """The ``n`` words of largest cosine with a text, without some."""
        order = np.argsort(-(self.vectors @ self.embed([text])[0]), kind="stable")
        left_out = set(without)
        return [self.words[at] for at in order if self.words[at] not in left_out][:n]


def _unit_rows(rows: Float[np.ndarray, "text unit"]) -> Float[np.ndarray, "text unit"]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def encoded_space(words: Sequence[str], encode: Callable[[Sequence[str]], Any]) -> WordSpace:
    """A space from a sentence encoder: any callable from texts to rows."""
    return WordSpace(tuple(words), _unit_rows(np.asarray(encode(list(words)), dtype=np.float64)), encode)


def word_space(texts: Sequence[str], n_words: int = 2000, n_components: int = 100, window: int = 5) -> WordSpace:
    """Word vectors counted from texts: positive pointwise mutual information of words within ``window``, and its leading components.

    ``max(log P(w, c) / (P(w) P(c)^.75), 0)`` (Levy and Goldberg, TACL 2015), factorised as ``U S V'``; a word is its row of ``U
    sqrt(S)`` at
    length 1. Common function words are left out. Cost: one pass over the text and a sparse decomposition, a second for 500 000 words.
    Raises InputError for texts with too few words.
    """
    tokens = [_WORD.findall(text.lower()) for text in texts]
    counts = Counter(word for text in tokens for word in text if word not in _COMMON)
    words = [word for word, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:n_words]]
    if len(words) <= n_components:
        raise InputError(f"the texts hold {len(words)} different words; {n_components} components need more of them")
    place = {word: at for at, word in enumerate(words)}
    gap = [-1] * window  # words of two texts are no neighbours
    stream = np.array([at for text in tokens for at in (*(place.get(word, -1) for word in text), *gap)])
    table = sparse.csr_array((len(words), len(words)))
    for step in range(1, window + 1):
        one, other = stream[:-step], stream[step:]
        kept = (one >= 0) & (other >= 0)
        table = table + sparse.coo_array((np.ones(kept.sum()), (one[kept], other[kept])), shape=table.shape).tocsr()
    table = (table + table.T).tocoo()
    total, row = table.sum(), np.asarray(table.sum(1)).ravel()
    column = row**0.75
    at, to = table.coords
    ratio = (
        np.log(table.data * column.sum() / (np.maximum(row, 1)[at] * np.maximum(column, 1e-12)[to]))
        if total
        else table.data
    )
    positive = sparse.csr_array((np.maximum(ratio, 0), (at, to)), shape=table.shape)
    left, strength, _ = svds(positive, k=n_components, v0=np.ones(len(words)))
    return WordSpace(tuple(words), _unit_rows(left * np.sqrt(strength)))


def make_entities(
    concepts: Sequence[str | tuple[str, ...]],
    space: WordSpace,
    seed: int = 0,
    temperature: float = 0.03,
    quantile: float = 0.95,
    n_hints: int = 10,
    n_related: int = 3,
) -> list[Function]:
    """One unit a concept, or a pair of concepts: ``sigmoid((cos(word, concept) - c0) / temperature)``, of pairs the larger.

    ``c0`` is the ``quantile`` of the cosine over the words of the space. Hints are ``n_hints`` words in random order,
    ``n_related`` of which
    the unit responds to (above one half), the concept itself not among them. Raises InputError for a concept that the space does not know.
    """
    found = []
    for index, concept in enumerate(concepts):
        names, targets, floor = _targets(concept, space, quantile)
        respond = partial(_response, space, targets, floor, temperature)
        rng = np.random.default_rng([seed, index, 11])
        active, itself = (space.vectors @ targets.T > floor).any(1), np.isin(space.words, names)
        related = rng.permutation(np.flatnonzero(active & ~itself))[:n_related]
        rest = rng.permutation(np.flatnonzero(~active & ~itself))[: n_hints - len(related)]
        hints = tuple(space.words[at] for at in rng.permutation(np.concatenate([related, rest])))
        found.append(Function(Truth("entity", "concept", names, seed=seed), respond, hints))
    return found


def _targets(concept: str | tuple[str, ...], space: WordSpace, quantile: float) -> tuple[tuple[str, ...], Any, Any]:
    names = (concept,) if isinstance(concept, str) else tuple(concept)
    targets = space.embed(names)
    if not targets.any(axis=1).all():
        raise InputError(f"the word space does not know all of {names}; give concepts made of its words")
    return names, targets, np.quantile(space.vectors @ targets.T, quantile, axis=0)


def _response(space: WordSpace, targets: Any, floor: Any, temperature: float, word: str) -> float:
    row = space.embed([word])[0]
    return float(_sharpened(row @ targets.T - floor, temperature).max()) if row.any() else 0.0


def _sharpened(above: Any, temperature: float) -> Any:
    return 1 / (1 + np.exp(-above / temperature))


def entity_responses(
    concepts: Sequence[str | tuple[str, ...]], space: WordSpace, temperature: float = 0.03, quantile: float = 0.95
) -> Float[np.ndarray, "function word"]:
    """What the units of :func:`make_entities` answer to every word of the space, without a call of theirs."""
    rows = []
    for concept in concepts:
        _, targets, floor = _targets(concept, space, quantile)
        rows.append(_sharpened(space.vectors @ targets.T - floor, temperature).max(1))
    return np.array(rows)


def make_relations(
    tables: Mapping[str, Mapping[str, str]] = TABLES,
    exception: tuple[Collection[str], str] | None = None,
    seed: int = 0,
    n_hints: int = 8,
) -> list[Function]:
    """One unit a table: the related word, ``undefined`` outside of it.

    ``exception``: words (of any table) that answer something else. Hints: half from the table, half from the others.
    Raises InputError for an empty table.
    """
    if not tables or any(not table for table in tables.values()):
        raise InputError("a table of a relation is empty; give at least one pair of words in each")
    odd, reply = (frozenset(exception[0]), exception[1]) if exception is not None else (frozenset(), "")
    found = []
    for index, (name, table) in enumerate(tables.items()):
        rng = np.random.default_rng([seed, index, 13])
        others = [word for key, one in tables.items() if key != name for word in one]
        half = min(n_hints // 2, len(table))
        hints = [*rng.permutation(list(table))[:half], *rng.permutation(others)[: n_hints - half]]

        def answer(word: str, table: Mapping[str, str] = table) -> str:
            return reply if word in odd and word in table else table.get(word, UNDEFINED)

        truth = Truth(
            "relation", name, tuple(sorted(odd & set(table))), "inside" if odd & set(table) else "clean", seed=seed
        )
        found.append(Function(truth, answer, tuple(str(rng_word) for rng_word in rng.permutation(hints))))
    return found
