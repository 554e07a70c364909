"""Projection of directions on a vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.naming.vocabulary import vocab_projection


def test_projection_is_head_after_norm():
    torch.manual_seed(0)
    head, norm, rows = nn.Linear(6, 20), nn.RMSNorm(6), torch.randn(3, 6)
    found = vocab_projection(rows, head, norm, n_tokens=4)
    with torch.no_grad():
        wanted = head(norm(rows))
    torch.testing.assert_close(found.logits, wanted)
    assert found.top[1].tolist() == wanted[1].argsort(descending=True)[:4].tolist()
    assert found.bottom[1].tolist() == wanted[1].argsort()[:4].tolist()
    plain = vocab_projection(rows[0].double(), head.weight.detach(), n_tokens=99)
    torch.testing.assert_close(plain.logits, head.weight.detach() @ rows[0])
    assert plain.top.shape == (20,)


def test_refusals():
    head = torch.eye(4)
    for bad, words in [
        (lambda: vocab_projection(torch.ones(3), head), "takes 4"),
        (lambda: vocab_projection(torch.ones(1, 1, 4), head), "expected \\(unit,\\)"),
        (lambda: vocab_projection(torch.ones(4), head, n_tokens=0), "n_tokens is 0"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        vocab_projection(torch.full((4,), torch.nan), head)
