"""The index on disk: lists, contexts, search, and what a broken one says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import netloupe.lenses.dictionary.code_index as module
from netloupe.core.errors import InputError, StoreError
from netloupe.lenses.dictionary.code_index import CodeIndex
from netloupe.lenses.dictionary.codes import code_counts, code_scores

TEXTS = ["the socket is open", "no words, one socket", "json and a socket"]


def corpus(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Texts as bytes, padded; code 3 of group 1 fires on exactly the letters of 'socket', the rest is drawn."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for part in (TEXTS[:2], TEXTS[2:]):
        length = max(map(len, part))
        tokens = torch.tensor([[*map(ord, text)] + [0] * (length - len(text)) for text in part])
        ids = torch.randint(-1, 3, (*tokens.shape, 2, 2), generator=draw)
        for row, text in enumerate(part):
            for match in re.finditer("socket", text):
                ids[row, match.start() : match.end(), 1, 0] = 3
        made.append((tokens, ids, tokens > 0))
    return made


@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_lists_scores_and_contexts(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    batches = corpus()
    index = CodeIndex.build(tmp_path / "index", batches, 5)
    ids = torch.cat([each[mask] for _, each, mask in batches]).numpy()
    text = "".join(TEXTS)
    assert len(index) == len(text)
    assert "".join(map(chr, index.tokens)) == text
    np.testing.assert_array_equal(index.counts, code_counts(ids, 5))
    for group in range(2):
        for code in range(5):
            wanted = np.concatenate([[place] * (row == code).sum() for place, row in enumerate(ids[:, group])]).astype(
                int
            )
            np.testing.assert_array_equal(index.positions(code, group), wanted)
    mask = np.array([letter in "aeiou" for letter in text])
    for one, other in zip(index.precision_recall(mask), code_scores(ids, mask, 5)):
        np.testing.assert_array_equal(one, other)
    found = index.contexts(3, 1, n=4, width=3)
    assert len(found) == 4
    for context in found:
        own = TEXTS[context.sample]
        assert chr(context.tokens[context.at]) == own[context.position]
        assert "".join(map(chr, context.tokens)) == own[max(0, context.position - 3) : context.position + 4]
    assert index.contexts(4, 0) == []
    letters = np.unique(list("socket"), return_counts=True)[1]
    assert index.token_entropy(3, 1) == pytest.approx(np.log2(len(letters)))
    assert np.isnan(index.token_entropy(4))


def test_search_finds_the_planted_code(tmp_path: Path):
    index = CodeIndex.build(tmp_path / "index", corpus(), 5)
    best = index.search("socket")[0]
    assert (best.group, best.code, best.precision, best.recall, best.fired) == (1, 3, 1.0, 1.0, 18)
    assert index.matches("socket|json").sum() == 22
    assert all(one.precision >= 0.9 for one in index.search("[a-z]", min_precision=0.9))
    assert index.search("nothing at all") == []
    words = index.matches("ab", lambda token: "ab" if token == ord("s") else "-")  # tokens of several letters
    np.testing.assert_array_equal(words, [letter == "s" for letter in "".join(TEXTS)])
    with pytest.raises(InputError, match="no regular expression"):
        index.search("(")


def test_what_cannot_be_written_or_read(tmp_path: Path):
    index = CodeIndex.build(tmp_path / "a", corpus(), 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    with pytest.raises(StoreError, match="exists already"):
        CodeIndex.build(tmp_path / "a", corpus(), 5)
    tokens, ids, mask = corpus()[0]
    for batches, words in [
        ([(tokens, ids, mask)], "from -1 to 3"),
        ([(tokens, ids[:, :3], mask)], "alike in all batches"),
        ([(tokens, ids), (tokens, ids[..., :1])], "alike in all batches"),
        ([], "no positions"),
        ([(tokens, ids, torch.zeros_like(mask))], "no positions"),
    ]:
        with pytest.raises(InputError, match=words):
            CodeIndex.build(tmp_path / "b", batches, 3 if words.startswith("from") else 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    with pytest.raises(StoreError, match="no index of codes"):
        CodeIndex(tmp_path)
    with pytest.raises(InputError, match="5 codes in 2 groups"):
        index.positions(5)
    with pytest.raises(InputError, match="the mask is"):
        index.precision_recall(np.zeros(3, dtype=bool))
