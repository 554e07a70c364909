"""The machine written in digits: its law, its closed forms, and predictors whose score is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from netloupe.core.errors import InputError
from netloupe.data.tokfsm import TokFSM


class Perfect(nn.Module):
    """Predicts with the machine's own law."""

    def __init__(self, machine: TokFSM) -> None:
        super().__init__()
        self.machine = machine
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        m = self.machine
        out = torch.full((*tokens.shape, m.vocab), -1e9, dtype=torch.float64)
        for row, line in enumerate(tokens.tolist()):
            state = None
            for position in range(len(line)):
                done = line[1 : position + 1]
                cut = len(done) % m.n_digits
                if len(done) and not cut:
                    state = int("".join(map(str, done[-m.n_digits :])), m.base)
                share = torch.full((m.n_states,), 1 / m.n_states) if state is None else m.law[state].float()
                keep = torch.ones(m.n_states, dtype=torch.bool)
                for place, digit in enumerate(done[len(done) - cut :]):
                    keep &= m.digits[:, place] == digit
                heads = torch.zeros(m.base, dtype=torch.float64)
                heads.index_add_(0, m.digits[:, cut], (share * keep).double())
                out[row, position, : m.base] = (heads / heads.sum().clamp_min(1e-300)).log().clamp_min(-1e9)
        return out


@pytest.mark.parametrize("seed", range(3))
def test_sequences_follow_the_law(seed: int):
    machine = TokFSM(30, 3, 10, seed)
    tokens = machine.sample(400, 22, seed)
    assert tokens.shape == (400, 22)
    assert bool((tokens[:, 0] == machine.bos).all())
    assert machine.legal_share(tokens) == 1
    ends = machine.states(tokens)
    assert bool((ends[:, 2::2] >= 0).all())
    assert bool((ends[:, 1::2] == -1).all())
    assert bool((ends[:, 2] == tokens[:, 1] * 10 + tokens[:, 2]).all())
    first = torch.bincount(ends[:, 2], minlength=30) / 400
    assert float((first - 1 / 30).abs().max()) < 0.04
    pairs = torch.zeros(30, 30).index_put_(
        (ends[:, 2:-2:2].flatten(), ends[:, 4::2].flatten()), torch.ones(()), accumulate=True
    )
    pairs = pairs / pairs.sum(1, keepdim=True)
    assert float((pairs - machine.law).abs().max()) < 0.25
    assert float(pairs[machine.legal].mean()) == pytest.approx(1 / 3, abs=1e-6)
    assert torch.equal(machine.sample(5, 9, 3), machine.sample(5, 9, torch.Generator().manual_seed(3)))


def test_the_law_is_the_authors_for_the_same_seed():
    # successors of states 0, 37 and 99 in the authors' machine with 100 states, 10 edges and seed 42
    machine = TokFSM(100, 10, 10, 42)
    assert sorted(machine.successors[0].tolist()) == [8, 9, 19, 41, 60, 68, 71, 82, 94, 96]
    assert sorted(machine.successors[37].tolist()) == [0, 11, 15, 45, 51, 52, 54, 66, 72, 96]
    assert sorted(machine.successors[99].tolist()) == [6, 16, 17, 18, 24, 40, 44, 58, 62, 78]


@pytest.mark.parametrize("length", [2, 3, 4, 7, 10])
def test_the_entropy_floor_is_what_the_machine_itself_loses(length: int):
    machine = TokFSM(12, 3, 4, 1)
    perfect = Perfect(machine)
    tokens = machine.sample(3000, length, 0)
    logits = perfect(tokens)
    losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    spread = float(losses.view(3000, -1).mean(1).std()) / 3000**0.5
    assert float(losses.mean()) == pytest.approx(machine.entropy_floor(length), abs=4 * spread + 1e-9)


def test_the_published_machine():
    machine = TokFSM()
    assert (machine.n_digits, machine.vocab, machine.bos) == (2, 11, 10)
    for whole in (1, 16, 64):  # (S + 1) ln 10 / (2 S) for S states
        assert machine.entropy_floor(2 * whole + 1) == pytest.approx((whole + 1) * math.log(10) / (2 * whole))
    assert round(machine.entropy_floor(33), 4) == 1.2232


def test_known_predictors():
    machine = TokFSM(16, 4, 4, 0)
    perfect = Perfect(machine)
    torch.testing.assert_close(machine.next_states(perfect), machine.law)
    assert machine.transition_accuracy(perfect) == 1
    even = machine.next_states(lambda tokens: torch.zeros(*tokens.shape, machine.vocab))
    torch.testing.assert_close(even, torch.full((16, 16), 1 / 25, dtype=torch.float64))
    prompts = machine.sample(3, 5, 1)
    torch.testing.assert_close(machine.next_states(perfect, prompts), machine.law[machine.states(prompts)[:, -1]])
    # one token seen: counted from many sequences
    tokens = machine.sample(20_000, 9, 5)
    table = torch.zeros(machine.vocab, machine.vocab)
    table.index_put_((tokens[:, 1:-1].flatten(), tokens[:, 2:].flatten()), torch.ones(()), accumulate=True)
    counted = machine.transition_accuracy(lambda t: (table / table.sum(1, keepdim=True)).clamp_min(1e-30).log()[t])
    assert machine.bigram_accuracy(9) == pytest.approx(counted, abs=0.04)
    assert machine.bigram_accuracy(9) < 0.6


def test_bad_sizes():
    for sizes in ((1, 1, 10, 0), (5, 6, 10, 0), (5, 0, 10, 0), (5, 2, 1, 0)):
        with pytest.raises(InputError, match="expected two states"):
            TokFSM(*sizes)
    machine = TokFSM(8, 2, 3)
    for call in (
        lambda: machine.sample(0, 5),
        lambda: machine.entropy_floor(1),
        lambda: machine.accuracy_of(torch.zeros(3, 8)),
    ):
        with pytest.raises(InputError):
            call()
    assert math.isnan(machine.legal_share(torch.full((2, 5), machine.bos)))
