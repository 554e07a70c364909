"""One step in the worst direction: closed form of a linear network, and what the network is left as."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netloupe.core.asking import NETWORK, ask
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.data.digits import digits
from netloupe.lenses.verification.fgsm import fgsm, vulnerability
from netloupe.models.small import DigitsCNN, mlp


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_network_of_two_classes_is_moved_along_the_sign_of_its_weights(seed: int):
    torch.manual_seed(seed)
    model = nn.Linear(5, 2).double()
    x, y = torch.rand(40, 5, dtype=torch.float64), torch.randint(0, 2, (40,))
    gap = model.weight[1] - model.weight[0]
    sign = torch.sign(gap) * (1 - 2 * y[:, None])  # away from the right class
    assert torch.equal(fgsm(model, x, y, 0.05, (-9, 9)), x + 0.05 * sign)
    assert torch.equal(fgsm(model, x, y, 0.5, (0, 1)), (x + 0.5 * sign).clamp(0, 1))
    assert torch.equal(fgsm(model, x, y, 0.0), x)
    found = vulnerability(model, (x, y), 0.05, (-9, 9), batch_size=7)
    margin = (x @ gap + model.bias[1] - model.bias[0]) * (2 * y - 1)
    expected = F.softplus(-(margin - 0.05 * gap.abs().sum())) - F.softplus(-margin)
    assert found.penalties == pytest.approx(expected.detach().numpy(), rel=1e-9)
    assert found.clean_accuracy == float((margin > 0).double().mean())
    assert abs(found.noise_loss - found.clean_loss) < found.penalty


def test_the_network_is_left_as_it_was_and_in_place_layers_are_no_harm():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
    ).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(10, 4), torch.randint(0, 3, (10,))
    kept = x.clone()
    first = fgsm(model, x, y, 0.1, (-5, 5))
    assert torch.equal(first, fgsm(model, x, y, 0.1, (-5, 5)))
    assert model.training
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode():
        assert torch.equal(fgsm(model, x, y, 0.1, (-5, 5)), first)


def test_the_finding_and_the_lens(tmp_path):
    images, labels = digits()
    torch.manual_seed(0)
    model = DigitsCNN()
    (asked,) = ask(model, (images[:100], labels[:100]), ["vulnerability"])
    assert asked.site == NETWORK
    found = asked.finding
    assert found is not None
    assert found.summary()["eps"] == pytest.approx(2 / 255)
    assert found.summary()["penalty"] > found.summary()["noise_penalty"]
    assert set(found.summary()) <= set(found.meanings)
    assert found.paragraph()
    assert Finding.load(found.save(tmp_path / "f")) == found
    figure, axes = plt.subplots()
    found.plot(axes)
    plt.close(figure)
    whole, parts = (
        vulnerability(model, (images[:100], labels[:100]), 0.02, (0, 1), batch_size=size) for size in (100, 33)
    )
    assert np.allclose(whole.penalties, parts.penalties, atol=1e-6)


def test_bad_input_is_one_sentence():
    model, x, y = mlp(4, (5,), 2, random_state=0), torch.rand(6, 4), torch.arange(6) % 2
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    cases = [
        lambda: fgsm(model, x, y, -1.0), lambda: fgsm(model, x, y, float("nan")), lambda: fgsm(model, x, y, 0.1, (1, 0)),
        lambda: fgsm(model, x, y[:3], 0.1), lambda: fgsm(model, y, y, 0.1), lambda: vulnerability(model, x),
        lambda: vulnerability(model, (x, torch.rand(6))), lambda: vulnerability(model, (torch.ones(6, 4), y)),
        lambda: vulnerability(tokens, (torch.randint(0, 9, (6, 3)), y)), lambda: vulnerability(model, []),
        lambda: vulnerability(nn.Sequential(model, nn.Flatten(0)), (x, y)),
    ]  # fmt: skip
    for number, case in enumerate(cases):
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value), number
