"""The loss that a batch defines by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError
from netloupe.core.losses import natural_loss, next_token_loss, predicts_tokens, tokens_of


def batch(tokens: torch.Tensor | None = None, **more: torch.Tensor | None) -> Batch:
    args = () if tokens is None else (tokens,)
    return Batch(args, {}, more.get("labels"), more.get("mask"), 3)


def test_next_token_is_cross_entropy_with_the_shifted_tokens():
    tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    expected = sum(F.cross_entropy(logits[i, j], tokens[i, j + 1]) for i in range(3) for j in range(4)) / 12
    assert next_token_loss(logits, batch(tokens)) == pytest.approx(float(expected), rel=1e-5)
    assert next_token_loss(SimpleNamespace(logits=logits), batch(tokens)) == pytest.approx(float(expected), rel=1e-5)
    assert next_token_loss({"logits": logits}, Batch((), {"input_ids": tokens}, None, None, 3)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_padding_is_neither_predicted_nor_predicted_from():
    tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    pairs = [(i, j) for i in range(3) for j in range(4) if mask[i, j] and mask[i, j + 1]]
    expected = sum(F.cross_entropy(logits[i, j], tokens[i, j + 1]) for i, j in pairs) / len(pairs)
    assert next_token_loss(logits, batch(tokens, mask=mask)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match="no position"):
        next_token_loss(logits, batch(tokens, mask=torch.zeros(3, 5).bool()))


def test_labels_come_first_and_no_loss_is_refused():
    tokens, labels = torch.randint(7, (3, 5)), torch.tensor([0, 1, 1])
    logits = torch.randn(3, 2)
    assert natural_loss(logits, batch(tokens, labels=labels)) == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert natural_loss(torch.randn(3, 5, 7), batch(tokens)) > 0
    for output, given in (
        (logits, batch(tokens)),
        (torch.randn(3, 4, 7), batch(tokens)),
        (torch.randn(3, 5, 7), batch(torch.randn(3, 5))),
    ):
        with pytest.raises(InputError, match="no loss is defined"):
            natural_loss(output, given)


def test_what_counts_as_tokens():
    tokens = torch.randint(7, (3, 5))
    assert tokens_of(batch(tokens)) is tokens
    assert tokens_of(batch(tokens.float())) is None
    assert tokens_of(batch(tokens[0])) is None
    assert tokens_of(batch()) is None
    assert not predicts_tokens(nn.Identity(), batch(tokens))
    with pytest.raises(InputError, match="needs tokens"):
        next_token_loss(torch.randn(3, 5), batch(tokens))
