"""Units off: a network whose relation hangs on one unit by construction, closed forms, and bad input."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.unit_sets import UnitSpace, mlp_projections, pooled_responses
from netloupe.lenses.control.deactivate import Questions, answer, answer_without, deactivate
from netloupe.lenses.control.relation_drops import difference_sets, drop_matrix, overlap_matrix, size_curve
from netloupe.lenses.naming.relation_units import rank_units
from netloupe.models.gpt import ByteGPT

N_RELATIONS, N_SUBJECTS, N_UNITS = 3, 10, 8
VOCAB = N_SUBJECTS + N_RELATIONS + N_RELATIONS


class Planted(nn.Module):
    """Subject, relation -> the relation's own answer; relation r is carried by unit r of ``fc1`` alone, the others lead nowhere."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens = nn.Embedding.from_pretrained(torch.eye(VOCAB))
        self.fc1 = nn.Linear(VOCAB, N_UNITS)
        self.fc2 = nn.Linear(N_UNITS, VOCAB)
        with torch.no_grad():
            self.fc1.weight.mul_(0.01)
            self.fc1.bias.zero_()
            self.fc2.weight.zero_()
            self.fc2.bias.zero_()
            for relation in range(N_RELATIONS):
                self.fc1.weight[relation] = 0
                self.fc1.weight[relation, N_SUBJECTS + relation] = 1
                self.fc2.weight[N_SUBJECTS + N_RELATIONS + relation, relation] = 5

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.tokens(tokens))))


def questions(subjects: range = range(N_SUBJECTS)) -> Questions:
    pairs = [(subject, relation) for relation in range(N_RELATIONS) for subject in subjects]
    return Questions(
        [[subject, N_SUBJECTS + relation] for subject, relation in pairs],
        [[N_SUBJECTS + N_RELATIONS + relation] for _, relation in pairs],
        np.array([relation for _, relation in pairs]),
        np.array([subject for subject, _ in pairs]),
    )


def test_the_planted_unit_is_ranked_first_and_carries_the_relation():
    model, asked = Planted(), questions()
    responses, space = pooled_responses(model, asked.prompts, mlp_projections(model))
    ranking = rank_units(responses[:, :N_UNITS], asked.relations)
    assert [int(ranking.top(relation, 1)[0]) for relation in range(N_RELATIONS)] == [0, 1, 2]
    assert ranking.scores.max(1).tolist() == [1, 1, 1]
    found = drop_matrix(model, space, ranking.sets(1), asked, random=4, n_draws=100)
    exact = np.log(np.exp(5) / (np.exp(5) + VOCAB - 1)) + np.log(VOCAB)
    np.testing.assert_allclose(np.diag(found.drops), exact, rtol=1e-6)
    np.testing.assert_allclose(found.drops[~np.eye(3, dtype=bool)], 0, atol=1e-9)
    assert found.summary()["diagonal"] == 1
    assert found.intra == pytest.approx(exact, rel=1e-6)
    assert (np.diag(found.p_values) < 0.05).all()
    accuracy = drop_matrix(model, space, ranking.sets(1), asked, metric="accuracy", n_draws=50)
    np.testing.assert_array_equal(np.diag(accuracy.drops), 1)
    assert accuracy.before.tolist() == [1, 1, 1]


def test_units_with_no_way_out_change_nothing_and_the_network_is_left_as_it_was():
    model, asked = Planted(), questions()
    space = UnitSpace(("fc1",), (N_UNITS,))
    before = answer(model, asked)
    without = answer_without(model, asked, space, range(3, N_UNITS))
    np.testing.assert_array_equal(before.logprob, without.logprob)
    assert before.correct.all()
    assert (before.margin == 5).all()
    with deactivate(model, {"fc1": [0]}):
        assert not answer(model, asked).correct[:N_SUBJECTS].any()
    np.testing.assert_array_equal(answer(model, asked).logprob, before.logprob)


def test_mean_and_resample():
    model, x = Planted(), torch.tensor([[0, N_SUBJECTS], [1, N_SUBJECTS + 1]])
    reference = {"fc1": torch.arange(2.0 * N_UNITS).reshape(2, N_UNITS)}
    seen: list[Tensor] = []
    hook = model.fc2.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad(), deactivate(model, {"fc1": [4, 5]}, "mean", reference=reference):
        model(x)
    np.testing.assert_allclose(seen[-1][..., 4:6].numpy(), np.broadcast_to([8.0, 9.0], (2, 2, 2)))
    with torch.no_grad(), deactivate(model, {"fc1": [4]}, "resample", reference=reference):
        model(x)
    assert set(seen[-1][..., 4].unique().tolist()) <= {4.0, 12.0}
    with torch.no_grad(), deactivate(model, {"fc1": [4]}, 0.0):
        model(x)
    assert not seen[-1][..., 4].any()
    hook.remove()
    with pytest.raises(InputError, match="expected zero, mean or resample"), deactivate(model, {"fc1": [0]}, 1.5):
        pass


def test_answers_of_several_tokens_are_what_greedy_generation_gives():
    model = ByteGPT(16, 1, 2, 16, 12, vocab=7, random_state=3)
    with torch.no_grad():
        model.head.weight.mul_(60)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 7, rng.integers(1, 5)).tolist() for _ in range(60)]
    replies = []
    for index, prompt in enumerate(prompts):
        line = list(prompt)
        for _ in range(3):
            line.append(int(model(torch.tensor([line]))[0, -1].argmax()))
        reply = line[len(prompt) :]
        reply[2] = (reply[2] + 1) % 7  # the third token does not count
        reply[1] = (reply[1] + index % 2) % 7
        replies.append(reply)
    asked = Questions(prompts, replies, np.zeros(60, dtype=int), np.arange(60))
    found = answer(model, asked, batch_size=7)
    np.testing.assert_array_equal(found.correct, np.arange(60) % 2 == 0)
    line = torch.tensor([[*prompts[5], *replies[5]]])
    logprob = model(line).detach().double().log_softmax(-1)[0]
    own = sum(float(logprob[len(prompts[5]) - 1 + i, token]) for i, token in enumerate(replies[5]))
    assert found.logprob[5] == pytest.approx(own, rel=1e-5)


def test_undefined_where_nothing_was_right():
    model, asked = Planted(), questions()
    wrong = Questions(
        asked.prompts,
        [[0]] * N_SUBJECTS + [[int(one) for one in reply] for reply in asked.answers[N_SUBJECTS:]],
        asked.relations,
        asked.subjects,
    )
    found = drop_matrix(model, UnitSpace(("fc1",), (N_UNITS,)), [[0], [1], [2]], wrong, metric="accuracy", n_draws=20)
    assert np.isnan(found.drops[0]).all()
    assert found.summary()["diagonal"] == 1
    assert np.isfinite(found.intra)


def test_size_curve_and_difference_sets():
    model, asked = Planted(), questions()
    order = np.stack([np.r_[r, np.delete(np.arange(N_UNITS), r)] for r in range(N_RELATIONS)])
    space = UnitSpace(("fc1",), (N_UNITS,))
    found = size_curve(model, space, order, asked, [1, 4, 8], n_draws=20)
    assert [one.size for one in found] == [1, 4, 8]
    assert found[2].drops == pytest.approx(found[2].random[:, :1] * np.ones(3))
    assert [one.tolist() for one in difference_sets(order, 1, 3)] == [[1, 2], [0, 2], [0, 1]]
    with pytest.raises(InputError, match="the smaller first"):
        difference_sets(order, 3, 3)


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_and_their_chance(seed: int):
    rng = np.random.default_rng(seed)
    sets = [rng.choice(200, 30, replace=False) for _ in range(60)]
    found = overlap_matrix(sets, 200)
    assert found.counts[0, 1] == len(set(sets[0]) & set(sets[1]))
    assert found.expected[0, 1] == pytest.approx(4.5)
    pairs = np.triu_indices(60, 1)
    assert found.counts[pairs].mean() == pytest.approx(4.5, abs=0.25)
    assert found.p_values[0, 1] == pytest.approx(hypergeom.pmf(np.arange(found.counts[0, 1], 31), 200, 30, 30).sum())
    assert found.summary()["significant"] < 0.03


def test_findings_are_saved_and_drawn(tmp_path):
    model, asked = Planted(), questions()
    drops = drop_matrix(model, UnitSpace(("fc1",), (N_UNITS,)), [[0], [1], [2]], asked, n_draws=20)
    for index, found in enumerate((drops, overlap_matrix([[0, 1], [1, 2]], 9))):
        assert found.paragraph()
        assert set(found.summary()) == set(found.meanings)
        assert Finding.load(found.save(tmp_path / str(index))) == found
        figure, axes = plt.subplots()
        found.plot(axes)
        figure.canvas.draw()
        plt.close(figure)


def test_matched_random_sets_keep_the_sites():
    model, asked = Planted(), questions()
    space = UnitSpace(("fc1", "fc2"), (N_UNITS, VOCAB))
    found = drop_matrix(model, space, [[3], [4], [5]], asked, matched=True, random=3, n_draws=20)
    assert found.random.shape == (3, 3)


def test_bad_input():
    model, asked = Planted(), questions()
    space = UnitSpace(("fc1",), (N_UNITS,))
    with pytest.raises(InputError, match="two of one size"):
        drop_matrix(model, space, [[0], [1, 2], [3]], asked)
    with pytest.raises(InputError, match="give one set for each relation"):
        drop_matrix(model, space, [[0], [1]], asked)
    with pytest.raises(InputError, match="expected logprob, accuracy or margin"):
        drop_matrix(model, space, [[0], [1], [2]], asked, metric="loss")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="equal, positive numbers"):
        Questions([[1]], [[1], [2]], np.array([0]), np.array([0]))
    with pytest.raises(InputError, match="an answer has no token"):
        answer(model, Questions([[1]], [[]], np.array([0]), np.array([0])))
    with pytest.raises(InputError, match="causal language model"):
        answer(nn.Sequential(nn.Embedding(20, 3), nn.Flatten()), asked)
    with pytest.raises(InputError, match="at least two sets"):
        overlap_matrix([[1]], 4)
    with pytest.raises(InputError, match="numbers from 0 to 3"):
        overlap_matrix([[1], [4]], 4)
