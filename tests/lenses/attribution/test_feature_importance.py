"""Gradient times input of dictionary features, against automatic differentiation."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.lenses.attribution.feature_importance import gradient_x_input, support_curve


def head(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    z, d, w, b = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((15, 6), (6, 4), (3, 4), (3,)))
    return z.abs(), d.abs(), w, b, torch.arange(15) % 3


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_differentiation_gives(seed: int):
    z, d, w, b, labels = head(seed)
    z = z.requires_grad_()
    logits = z @ d @ w.T + b
    parts = torch.stack([torch.autograd.grad(logits[:, c].sum(), z, retain_graph=True)[0] * z for c in range(3)], 1)
    parts = parts.detach()  # (sample, class, feature)
    every = gradient_x_input(z, d, w)
    np.testing.assert_allclose(every.importance, parts.abs().mean((0, 1)).numpy(), rtol=1e-10)
    np.testing.assert_allclose(every.signed, parts.mean((0, 1)).numpy(), atol=1e-12)
    rows = torch.arange(15)
    for reduce, chosen in (("predicted", logits.argmax(1)), ("true", labels)):
        found = gradient_x_input(z, d, w, reduce, bias=b, labels=labels)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.importance, parts[rows, chosen].abs().mean(0).numpy(), rtol=1e-10)
        np.testing.assert_allclose(found.signed, parts[rows, chosen].mean(0).numpy(), atol=1e-12)


def test_an_inhibiting_feature_is_marked_and_the_finding_is_whole(tmp_path):
    z, d, w = np.ones((5, 2)), np.eye(2), np.array([[1.0, -2.0]])
    found = gradient_x_input(z, d, w)
    assert found.signed.tolist() == [1.0, -2.0]
    assert found.summary() == {"top_share": pytest.approx(2 / 3), "largest": 2.0, "inhibiting": 0.5}
    assert Finding.load(found.save(tmp_path / "f")) == found
    figure, axes = plt.subplots()
    found.plot(axes)
    figure.canvas.draw()
    plt.close(figure)


def test_the_support_curve_removes_one_after_the_other():
    z, d, w, b, labels = head(1)
    order = np.array([3, 1, 5, 0, 2, 4])
    removed, kept = support_curve(z, d, w, b, labels, order, n_points=7)
    assert removed.tolist() == list(range(7))
    whole = float(((z @ d @ w.T + b).argmax(1) == labels).double().mean())
    for count, share in zip(removed, kept):
        less = z.clone()
        less[:, order[:count]] = 0
        assert share * whole == pytest.approx(float(((less @ d @ w.T + b).argmax(1) == labels).double().mean()))


def test_refusals():
    z, d, w, b, labels = head(0)
    for bad, words in [
        (lambda: gradient_x_input(z, d, w.T), "shapes"),
        (lambda: gradient_x_input(z[:, 0], d, w), "two axes"),
        (lambda: gradient_x_input(z[:0], d, w), "not empty"),
        (lambda: gradient_x_input(z, d, w, "true"), "no labels"),
        (lambda: gradient_x_input(z, d, w, "true", labels=labels + 1), "one class from 0"),
        (lambda: gradient_x_input(z, d, w, "all"), "reduce is 'all'"),  # type: ignore[arg-type]
        (lambda: gradient_x_input(z, d, w, bias=b[:2]), "the bias has shape"),
        (lambda: support_curve(z, d, w, b, labels, [0, 0, 1, 2, 3, 4]), "each of 6 features once"),
        (lambda: support_curve(z, d, w, b * 0, (z @ d @ w.T).argmin(1), np.arange(6)), "no sample is classified"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        gradient_x_input(z * float("nan"), d, w)
