"""The representation-bias study: trainings that mean what they say, and the claims of its smallest run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.data.abstract_features import binary_features
from netloupe.studies._representation_bias_network import Recipe, Run, Stack, train_runs, untrained

TINY = Recipe((32, 16), 0.01, "adam", 3e-3, 120, n_train=512, n_test=256)
EASY = ("majority", "bit")


def test_smoke_verdicts():
    result = run_study("representation-bias", "smoke", seed=1)
    verdicts = {claim.name: claim.verdict for claim in result.claims}
    assert len(verdicts) == 15
    for name in ("simple-xor", "simple-parity", "untrained", "rsa", "pc-easy", "pc-hard", "flip-norm", "downstream"):
        assert verdicts[name] == "reproduced", name
    for name in ("order-first", "hard-first-shrinks", "hard-first-stays", "prevalence", "dropout"):
        assert verdicts[name] == "not tested"
    with pytest.raises(InputError, match="preset"):
        run_study("representation-bias", "huge")  # type: ignore[arg-type]


def test_a_stack_is_networks_side_by_side():
    runs = [Run(EASY, 3), Run(EASY, 4)]
    inputs = torch.from_numpy(np.stack([binary_features(20, EASY, seed=s)[0] for s in (0, 1)]))
    stack = Stack(runs, TINY, inputs)
    chosen = torch.tensor([[5, 6], [7, 7]])
    for i in range(2):
        x = inputs[i, chosen[:, i]]
        parts = [part[i] for part in stack.parts]
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2]):
            x = F.leaky_relu(x @ weight + bias, 0.01)
        torch.testing.assert_close(stack(chosen)[i], x @ parts[-2] + parts[-1])
    alone = Stack(runs[1:], TINY, inputs[1:])
    torch.testing.assert_close(alone.parts[0][0], stack.parts[0][1])
    bound = 1 / 32**0.5
    assert 0.9 * bound < float(stack.parts[0].detach().abs().max()) <= bound


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_what_is_not_trained_is_not_learned(optimiser: str):
    recipe = dataclasses.replace(TINY, optimiser=optimiser, rate=3e-3 if optimiser == "adam" else 0.05)
    both, only, late = train_runs([Run(EASY, 0), Run(EASY, 0, prevalence=(1.0, 0.0)), Run(EASY, 0, first=0)], recipe)
    assert min(both.accuracies()) > 0.95
    assert only.accuracies()[0] > 0.95
    assert only.accuracies()[1] < 0.75
    assert only.shares[1] < 0.1 < only.shares[0]
    assert late.halfway is not None
    assert late.shares_of(late.halfway)[1] < 0.1, "the second feature is not learned in the first half"
    assert min(late.accuracies()) > 0.8
    np.testing.assert_array_equal(both.values, only.values)
    assert both.loss[0] < 0.3


def test_a_training_repeats_and_keeps_looks():
    one, two = (train_runs([Run(EASY, 2, dropout=0.2)], TINY, seed=5, looks=4)[0] for _ in range(2))
    torch.testing.assert_close(one.representation, two.representation, rtol=0, atol=0)
    assert [step for step, _ in one.looks] == [0, 30, 60, 90, 120]
    assert one.components(2).shape == (16, 2)
    assert one.projected(one.components(16)) == one.accuracies()
    before = untrained([Run(EASY, 2)], TINY)[0]
    torch.testing.assert_close(before.representation, one.looks[0][1])


def test_runs_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="prevalences"):
        train_runs([Run(("bit", "xor", "bit"), 0)], TINY)
