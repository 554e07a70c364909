"""Asking lenses in memory, and over a training run."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import netloupe
from netloupe.core.asking import NETWORK, ask, watching
from netloupe.core.errors import InputError, SiteError
from netloupe.core.training import train
from netloupe.data import digits
from netloupe.lenses.activity.sparsity import sparsity
from netloupe.lenses.geometry.neural_collapse import neural_collapse
from netloupe.models.small import DigitsCNN, mlp


def digits_200() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = digits()
    return images[:200], labels[:200]


def test_the_same_answers_as_by_hand() -> None:
    torch.manual_seed(0)
    model, (images, labels) = DigitsCNN().eval(), digits_200()
    found = ask(model, (images, labels), ["sparsity", "neural_collapse"], ["relu2", "features"])
    by_place = {(one.site, one.lens.name): one.finding for one in found}
    with torch.no_grad(), netloupe.tap(model, ["relu2", "features"]) as values:
        model(images)
    relu2 = values["relu2"].flatten(2).transpose(1, 2)
    assert by_place["relu2", "activity.sparsity"] == sparsity(relu2)
    expected = neural_collapse(relu2.mean(1), labels).summary()
    got = by_place["relu2", "geometry.neural_collapse"]
    assert got is not None
    for name, value in expected.items():
        assert got.summary()[name] == pytest.approx(value, rel=1e-4)


def test_refusals_are_listed_or_raised() -> None:
    model, (images, _) = DigitsCNN(), digits_200()
    found = ask(model, images, "neural_collapse", "features")
    assert found[0].finding is None
    assert "labels" in found[0].refusal
    with pytest.raises(InputError, match=r"geometry\.neural_collapse at features: .*labels"):
        ask(model, images, "neural_collapse", "features", strict=True)
    with pytest.raises(InputError, match="compares two sites"):
        ask(model, images, "cka")
    with pytest.raises(SiteError, match="no site matches"):
        ask(model, images, "sparsity", "relu9")


def test_all_lenses_of_a_network_and_an_iterator_that_can_be_read_once() -> None:
    torch.manual_seed(0)
    model, (images, labels) = DigitsCNN(), digits_200()
    found = ask(model, ((images[i : i + 50], labels[i : i + 50]) for i in range(0, 200, 50)), sites=["features"])
    assert {"activity.sparsity", "geometry.neural_collapse"} <= {one.lens.name for one in found if one.finding}
    assert {one.site for one in found} == {"features", NETWORK}
    assert all(one.finding is not None or one.refusal for one in found)


def test_a_training_run_has_a_history_of_every_lens() -> None:
    images, labels = digits(flat=True)
    model = mlp(64, (32,), 10, random_state=0)
    before = [parameter.clone() for parameter in model.parameters()]
    watch = watching((images[:300], labels[:300]), ["sparsity", "neural_collapse"], "act1")
    history = train(model, (images, labels), steps=60, watch=watch, watch_every=20)
    assert history.column("step").tolist() == [0, 20, 40, 60]
    nc1 = history.column("act1/neural_collapse/nc1")
    assert np.isfinite(nc1).all()
    assert nc1[-1] < nc1[0], "classes tighten while the network learns"
    plain = mlp(64, (32,), 10, random_state=0)
    again = train(plain, (images, labels), steps=60)
    assert again.loss == history.loss, "watching changes nothing"
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    figure, axes = plt.subplots()
    history.plot(axes, "*/neural_collapse/nc1", "*active_fraction")
    assert len(axes.lines) == 2
    with pytest.raises(InputError, match="nothing watched is called"):
        history.plot(axes, "colour")
    plt.close(figure)
