"""Continuations under edits, marks, and a direction whose effect on the text is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.edits import replace_with, steer
from netloupe.core.errors import InputError
from netloupe.lenses.control.steering_text import (
    LikelihoodMarks,
    SteeredText,
    continuations,
    harmonic,
    steered_text,
    word_marks,
)


class Cycle(nn.Module):
    """Says the next letter of a cycle of 6 tokens; its state is one-hot plus whatever is added, so unit j speaks for token j."""

    def __init__(self, sure: float = 4.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 6)
        self.tokens.weight.data = sure * torch.roll(torch.eye(6), 1, 1)
        self.state = nn.Identity()
        self.context = 9

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[1] <= self.context
        return self.state(self.tokens(ids))


def letters(tokens: list[int]) -> str:
    return "".join("abcdef"[i] for i in tokens)


def numbers(text: str) -> list[int]:
    return ["abcdef".index(c) for c in text]


def test_the_most_probable_token_alone_is_greedy_and_sampling_follows_the_law() -> None:
    model = Cycle()
    assert letters(continuations(model, [0], 2, 12, top_k=1)[1].tolist()) == "bcdefabcdefa"
    drawn = continuations(model, [0], 4000, 1, top_k=6, top_p=1.0, random_state=3)[:, 0]
    law = model(torch.tensor([[0]]))[0, 0].softmax(0).detach()
    counts = torch.bincount(drawn, minlength=6) / 4000
    assert torch.allclose(counts, law, atol=4 * (0.25 / 4000) ** 0.5)
    nucleus = continuations(model, [0], 500, 1, top_k=6, top_p=float(law.max()) - 0.01)[:, 0]
    assert set(nucleus.tolist()) == {1}


def test_same_seed_same_text_and_the_edit_holds_at_every_step() -> None:
    model = Cycle(1.0)
    one, two = (continuations(model, [0, 1], 3, 8, top_p=0.9, random_state=s) for s in (5, 5))
    assert torch.equal(one, two)
    pushed = continuations(model, [0], 1, 10, edits=[steer("state", torch.eye(6)[4], 9.0)], top_k=1)
    assert letters(pushed[0].tolist()) == "e" * 10
    assert letters(continuations(model, [0], 1, 3, top_k=1)[0].tolist()) == "bcd"  # the network is as it was


def test_harmonic_mean_and_words_by_hand() -> None:
    assert harmonic([0, 1, 2, 2], [2, 1, 1, 2]).tolist() == pytest.approx([0, 1, 4 / 3, 2])
    assert word_marks(["dog", "Cat"])(["a DOG", "dogs and cats", "bird"]) == [1.0, 2.0, 0.0]
    for bad in (([3], [1]), ([1], [1, 2]), ([], [])):
        with pytest.raises(InputError, match="0 to 2"):
            harmonic(*bad)


def test_likelihood_marks_order_texts() -> None:
    model = Cycle(3.0)
    own = [letters(row.tolist()) for row in continuations(model, [0], 8, 8, top_p=0.9)]
    marks = LikelihoodMarks(model, numbers, own)
    assert marks(["abcdef"]) == [2.0]
    assert marks(["aaaaaa"]) == [0.0]
    assert marks.loss("abcd") == pytest.approx(float(-(3 * torch.eye(6)[1]).log_softmax(0)[1]), rel=1e-5)
    with pytest.raises(InputError, match="at least two"):
        LikelihoodMarks(model, numbers, ["ab"])


def test_a_direction_that_speaks_for_a_letter_scores_and_the_others_do_not() -> None:
    model = Cycle(2.0)

    def fluent(texts: list[str]) -> list[float]:
        return [2.0] * len(texts)

    found = steered_text(
        model,
        "state",
        torch.eye(6)[4],
        [0],
        letters,
        word_marks(["e"]),
        fluent,
        targets=(0.05, 0.4),
        n_tokens=3,
        top_p=0.9,
    )
    assert found.best[0] == 0
    assert found.scores[0, 1] > found.scores[0, 0] - 0.3
    assert found.summary()["score"] > found.random.max()
    assert found.scores[0].max() > found.scores[1].max()
    assert found.reached[0] == pytest.approx([0.05, 0.4], abs=0.01)
    assert isinstance(found, SteeredText)
    assert "along" in found.paragraph()
    silent = steered_text(
        model,
        "state",
        torch.eye(6)[4],
        [0],
        letters,
        word_marks(["e"]),
        lambda t: np.zeros(len(t)),
        targets=(0.4,),
        n_tokens=3,
    )
    assert silent.summary()["score"] == 0.0  # no fluency, no score


def test_bad_input_is_one_sentence() -> None:
    model = Cycle()
    with pytest.raises(InputError, match="0 tokens"):
        continuations(model, [], 1, 1)
    with pytest.raises(InputError, match="top_p"):
        continuations(model, [0], 1, 1, top_p=0)
    with pytest.raises(InputError, match="push less"):
        continuations(model, [0], 1, 1, edits=[replace_with("state", lambda a: a * torch.inf)])
    with pytest.raises(InputError, match="at least one word"):
        word_marks([""])
    with pytest.raises(InputError, match="language model"):
        continuations(nn.Flatten(0), [0], 1, 1)
