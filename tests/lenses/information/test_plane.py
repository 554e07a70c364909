"""The information plane: steps added by hand, watched during training, averaged over runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.training import train
from netloupe.lenses.information import estimators
from netloupe.lenses.information.mutual_information import Binned
from netloupe.lenses.information.plane import InformationPlane, compression_scores, log_spaced, probabilities
from netloupe.models.small import mlp

Y = np.arange(40) % 2


def activity(seed: int, d: int = 2) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).standard_normal((40, d)), 0)


def test_a_table_holds_what_the_estimator_gives():
    plane = InformationPlane("ebab")
    for step in (0, 5):
        plane.add(step, {"a": activity(step), "b": activity(step + 100)}, Y)
    table = plane.table()
    assert table.sites == ("a", "b")
    assert table.steps.tolist() == [0, 5]
    for s, step in enumerate((0, 5)):
        for i, seed in enumerate((step, step + 100)):
            expected = estimators.binned_mi(activity(seed), Y, estimators.ebab_edges(activity(seed)))
            assert (table.i_xt[s, i], table.i_ty[s, i]) == expected
    assert table.column("b")[0].tolist() == table.i_xt[:, 1].tolist()


@pytest.mark.parametrize("kind", ["global", "epoch", "running"])
def test_ranges_follow_the_largest_activations(kind):
    steps = [{"a": activity(0), "b": 5 * activity(1)}, {"a": 3 * activity(2), "b": activity(3)}]
    plane = InformationPlane(kind)
    for step, given in enumerate(steps):
        plane.add(step, given, Y)
    maxima = np.array([[each[site].max() for site in ("a", "b")] for each in steps])
    edges = estimators.range_edges(maxima, kind)
    table = plane.table()
    for s, given in enumerate(steps):
        for i, site in enumerate(("a", "b")):
            assert table.i_xt[s, i] == estimators.binned_mi(given[site], Y, edges[s, i]).i_xt
    assert table.estimator == f"range {kind}"


def test_compression_score_is_the_share_lost_since_the_highest_earlier_value():
    curves = np.array([[4.0, 1.0, 0.0, 2.0], [8.0, 2.0, 0.0, 2.0], [6.0, 3.0, 0.0, 2.0]])
    assert compression_scores(curves).tolist() == [0.25, 0.0, 0.0, 0.0]
    assert compression_scores(curves[:1]).tolist() == [0, 0, 0, 0]


def test_runs_average_step_by_step():
    planes = []
    for seed in (0, 1, 2):
        plane = InformationPlane(Binned(0, 3, 6))
        plane.add(0, {"a": activity(seed)}, Y)
        plane.add(1, {"a": activity(seed + 9)}, Y)
        planes.append(plane)
    table = InformationPlane.average(planes)
    single = np.stack([plane.table().i_xt for plane in planes])
    np.testing.assert_allclose(table.i_xt, single.mean(0))
    np.testing.assert_allclose(table.spread_xt, single.std(0, ddof=1))
    assert table.n_runs == 3
    assert "final_i_ty_spread" in table.summary()
    assert InformationPlane.average(planes[:1]).i_xt.tolist() == single[0].tolist()


def test_watching_a_training_gives_the_plane_and_leaves_the_training_alone():
    inputs, labels = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    steps = log_spaced(20, 5)
    weights = []
    for watched in (False, True):
        model = mlp(5, (4, 3), 2, nn.Tanh, random_state=0)
        plane = InformationPlane("ebab")
        watch = plane.watch(["act1", "act2", "head"], inputs, labels, logits=["head"], steps=steps)
        history = train(
            model, (inputs, labels), steps=20, batch_size=16, watch=watch if watched else None, watch_every=1
        )
        weights.append(model.get_submodule("fc1").weight.detach().clone())
    assert torch.equal(*weights)
    table = plane.table()
    assert table.steps.tolist() == steps
    assert table.sites == ("act1", "act2", "head")
    rows = {row["step"]: row for row in history.watched}
    assert [rows[step]["act2/i_xt"] for step in steps] == table.i_xt[:, 1].tolist()
    with torch.no_grad():
        final = model(inputs)
    expected = probabilities(final)
    assert table.i_ty[-1, 2] == estimators.binned_mi(expected, labels, estimators.ebab_edges(expected)).i_ty


def test_the_finding_is_saved_loaded_and_drawn(tmp_path):
    from matplotlib.figure import Figure

    plane = InformationPlane("akde")
    for step in range(3):
        plane.add(step, {"a": activity(step), "b": activity(step + 5)}, Y)
    table = plane.table()
    assert Finding.load(table.save(tmp_path / "plane")) == table
    axes = Figure().subplots()
    table.plot(axes)
    assert len(axes.lines) == 2
    assert set(table.summary()) <= set(table.meanings)
    assert plane.compression_score() == table.compression_score()


def test_probabilities_are_the_softmax_of_each_row():
    logits = torch.tensor([[1.0, 2.0], [3.0, 3.0]])
    torch.testing.assert_close(probabilities(logits), logits.double().softmax(1))


def test_bad_input_is_refused():
    plane = InformationPlane()
    for call, words in (
        (lambda: plane.table(), "the plane is empty"),
        (lambda: plane.add(0, {}, Y), "no activations"),
        (lambda: plane.add(0, {"a": activity(0)}, Y[:-1]), "one label for each"),
        (lambda: plane.add(0, {"a": activity(0)}, np.arange(40)), "has one sample"),
        (lambda: InformationPlane("nothing"), "there is no estimator"),
        (lambda: InformationPlane.average([]), "no runs"),
        (lambda: log_spaced(0, 5), "at least 1 and 2"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    plane.add(0, {"a": activity(0)}, Y)
    with pytest.raises(InputError, match="sites or labels differ"):
        plane.add(1, {"b": activity(0)}, Y)
    with pytest.raises(InputError, match="sites or labels differ"):
        plane.add(1, {"a": activity(0)}, 1 - Y)
    other = InformationPlane()
    other.add(7, {"a": activity(0)}, Y)
    with pytest.raises(InputError, match="average like with like"):
        InformationPlane.average([plane, other])
    with pytest.raises(InputError, match="no site 'z'"):
        plane.table().column("z")
