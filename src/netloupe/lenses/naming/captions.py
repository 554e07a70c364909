"""Captions as tokens: lower-cased words and punctuation, numbered by how often they occur."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from netloupe.core.errors import InputError

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]")


def tokens_of(text: str) -> list[str]:
    """Lower-cased words and single punctuation marks, in order."""
    return _TOKEN.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Known tokens; after them come four special ones: start, stop, padding, unknown."""

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, captions: Iterable[str], min_count: int = 1) -> Vocabulary:
        """All tokens that occur at least ``min_count`` times, the most frequent first (ties in order of appearance)."""
        counts = Counter(token for caption in captions for token in tokens_of(caption))
        kept = tuple(token for token, count in counts.most_common() if count >= min_count)
        if not kept:
            raise InputError(f"no word occurs {min_count} times in the captions; give captions with words")
        return cls(kept)

    def __len__(self) -> int:
        return len(self.tokens) + 4

    @property
    def start(self) -> int:
        """Number of the token before the first word."""
        return len(self.tokens)

    @property
    def stop(self) -> int:
        """Number of the token after the last word."""
        return len(self.tokens) + 1

    @property
    def padding(self) -> int:
        """Number of the token that fills rows up."""
        return len(self.tokens) + 2

    @property
    def unknown(self) -> int:
        """Number of all other words."""
        return len(self.tokens) + 3

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Each known token's number."""
        return {token: index for index, token in enumerate(self.tokens)}

    def encode(self, captions: Sequence[str], length: int | None = None) -> Int[Tensor, "caption token"]:
        """Numbers, each row ended by stop and filled up with padding; ``length`` cuts words beyond it (stop comes on top).

        Raises InputError for a caption without any known word.
        """
        rows = [
            [self.numbers.get(token, self.unknown) for token in tokens_of(caption)][:length] for caption in captions
        ]
        for row, caption in zip(rows, captions, strict=True):
            if all(number == self.unknown for number in row):
                raise InputError(
                    f"no word of the caption {caption!r} is in the vocabulary; fit on captions that hold it"
                )
        longest = max((len(row) for row in rows), default=0) + 1
        filled = [[*row, self.stop] + [self.padding] * (longest - 1 - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.int64).reshape(len(rows), longest)

    def decode(self, numbers: Sequence[int]) -> str:
        """The words up to stop, special tokens left out, punctuation joined to the word before it."""
        words: list[str] = []
        for number in numbers:
            if number == self.stop:
                break
            if number < len(self.tokens):
                words.append(self.tokens[number])
        text = " ".join(words)
        return re.sub(r" ?- ?", "-", re.sub(r" ([.,;:])", r"\1", text))
