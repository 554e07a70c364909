"""Splits, nulls, trajectories, identity, isolation: what claims stand on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Cnn, Loop
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.identity import describe_model, fingerprint
from netloupe.core.nulls import permutation_p_value, permuted, random_direction, untrained
from netloupe.core.splits import bootstrap, folds, holdout
from netloupe.core.training import train
from netloupe.core.trajectory import best_of, fit_curve, monotonicity, over_checkpoints


@settings(max_examples=25, deadline=None)
@given(n=st.integers(10, 80), n_groups=st.integers(3, 8), seed=st.integers(0, 999))
def test_splits_are_disjoint_complete_and_keep_groups_whole(n, n_groups, seed):
    groups = np.random.default_rng(seed).integers(0, n_groups, n)
    groups[:n_groups] = np.arange(n_groups)
    fitted, judged = holdout(n, 0.3, groups=groups, random_state=seed)
    assert sorted(torch.cat([fitted, judged]).tolist()) == list(range(n))
    assert not set(groups[fitted.numpy()]) & set(groups[judged.numpy()])
    seen = []
    for fitted, judged in folds(n, 3, groups=groups, random_state=seed):
        assert not set(groups[fitted.numpy()]) & set(groups[judged.numpy()])
        seen += judged.tolist()
    assert sorted(seen) == list(range(n))
    for drawn in bootstrap(n, 3, groups, seed):
        counts = np.bincount(drawn.numpy(), minlength=n)
        assert all(len(set(counts[groups == g])) == 1 for g in range(n_groups))


def test_stratified_splits_keep_class_shares():
    labels = np.repeat([0, 1], [80, 20])
    _, judged = holdout(100, 0.2, labels=labels)
    assert (labels[judged.numpy()] == 1).sum() == 4
    assert all((labels[judged.numpy()] == 1).sum() == 4 for _, judged in folds(100, 5, labels=labels))
    for call in (
        lambda: holdout(1),
        lambda: holdout(9, 1.5),
        lambda: list(folds(3, 9)),
        lambda: holdout(5, labels=[1]),
    ):
        with pytest.raises(InputError):
            call()


def test_untrained_network_has_the_same_shape_and_other_weights():
    model = Cnn()
    fresh = untrained(model, random_state=1)
    assert fingerprint(fresh) == fingerprint(untrained(model, random_state=1)) != fingerprint(model)
    assert fresh.conv.weight.std().item() == pytest.approx(model.conv.weight.std().item(), rel=0.5)
    assert describe_model(fresh)["parameters"] == describe_model(model)["parameters"]

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match="constructor"):
        untrained(Odd())


def test_random_direction_and_permutation():
    vector = torch.tensor([3.0, 0.0, 4.0, 0.0])
    drawn = random_direction(vector, 2)
    assert drawn.norm() == pytest.approx(5.0)
    assert (drawn[[1, 3]] == 0).all()
    assert drawn[[0, 2]].tolist() != vector[[0, 2]].tolist()
    assert sorted(permuted(torch.arange(9)).tolist()) == list(range(9))
    labels = torch.arange(40) % 2
    x = labels.double() + 0.1 * torch.randn(40, dtype=torch.float64)
    difference = lambda y: float((x[y == 1].mean() - x[y == 0].mean()).abs())  # noqa: E731
    p, null = permutation_p_value(difference, labels, 99)
    assert p == 0.01
    assert len(null) == 99
    p, _ = permutation_p_value(lambda y: 1.0, labels, 19)
    assert p == 1.0


def test_curves_recover_their_parameters_and_aic_prefers_the_true_one():
    steps = np.linspace(1, 50, 40)
    values = 2.0 * np.exp(-steps / 10) + 0.5 + 1e-3 * np.random.default_rng(0).normal(size=40)
    decay = fit_curve(lambda x, a, t, c: a * np.exp(-x / t) + c, steps, values, [(1, 1, 0), (1, 20, 1)], "decay")
    line = fit_curve(lambda x, a, c: a * x + c, steps, values, [(0, 0)], "line")
    np.testing.assert_allclose(decay.parameters, (2.0, 10.0, 0.5), rtol=1e-2)
    assert best_of([line, decay]).name == "decay"
    assert monotonicity([3, 2, 1]) == -1
    assert monotonicity([1, 1, 1]) == 0
    with pytest.raises(InputError):
        fit_curve(lambda x, a: a * x, [1.0], [1.0], [(1.0,)])
    with pytest.raises(InputError):
        monotonicity([1.0])


def test_training_repeats_resumes_and_can_be_followed(tmp_path):
    x, y = torch.randn(64, 5), torch.arange(64) % 5

    def run(folder, steps=30, **more):
        torch.manual_seed(3)
        model = Loop()
        history = train(model, (x, y), steps=steps, batch_size=16, seed=1, checkpoint=folder, checkpoint_every=10,
                        watch=lambda m, step: {"norm": float(m.cell.weight.detach().norm())}, watch_every=10, **more)  # fmt: skip
        return model, history

    whole, history = run(tmp_path / "a")
    again, _ = run(tmp_path / "b")
    assert fingerprint(whole) == fingerprint(again)
    assert history.n_steps == 30
    assert [row["step"] for row in history.watched] == [0, 10, 20, 30]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", stop=lambda h: (_ for _ in ()).throw(KeyboardInterrupt()) if h.n_steps == 25 else False)
    resumed, later = run(tmp_path / "c")
    assert fingerprint(resumed) == fingerprint(whole)
    assert later.loss == history.loss

    rows = over_checkpoints(whole, tmp_path / "a", lambda m: {"norm": float(m.cell.weight.detach().norm())})
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[-1]["norm"] == pytest.approx(float(whole.cell.weight.norm()))
    with pytest.raises(InputError, match="no checkpoints"):
        over_checkpoints(whole, tmp_path / "none", lambda m: {})


def test_training_puts_random_state_back_and_records_divergence():
    before = torch.get_rng_state()
    x, y = torch.randn(32, 5), torch.arange(32) % 5
    state = torch.get_rng_state()
    history = train(Loop(), (x, y), steps=50, optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    assert history.state == "diverged"
    assert history.n_steps < 50
    model = Loop()
    train(model, (x, y), steps=2)
    assert not torch.equal(before, state)
    stopped = train(Loop(), (x, y), steps=50, stop=lambda h: h.n_steps == 3)
    assert (stopped.state, stopped.n_steps) == ("stopped early", 3)
    for call in (
        lambda: train(Loop(), (x, y[:-1]), steps=1),
        lambda: train(Loop(), (x,), steps=1),
        lambda: train(Loop(), (x, y), steps=-1),
        lambda: train(Loop(), (x, y), steps=1, schedule="odd"),
    ):
        with pytest.raises(InputError):
            call()


def test_training_takes_loaders_and_functions():
    x, y = torch.randn(20, 5), torch.arange(20) % 5
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=6)
    assert train(Loop(), loader, steps=9).n_steps == 9
    seen = []

    def fresh(step, generator):
        seen.append((step, float(torch.rand(1, generator=generator))))
        return x[:4], y[:4]

    train(Loop(), fresh, steps=3)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert len({value for _, value in seen}) == 3
    for data, message in ((iter([]), "no batches"), (3, "expected")):
        with pytest.raises(InputError, match=message):
            train(Loop(), data, steps=1)
