"""What later lenses need, each in about ten lines on the core as it is."""

from __future__ import annotations

import numpy as np
import torch
from networks import Cnn
from scipy.optimize import linprog
from torch import nn

from netloupe.core.capture import capture, run_all, tap
from netloupe.core.intervene import intervene, replace_with
from netloupe.core.recording import record
from netloupe.core.training import train
from netloupe.data import digits
from netloupe.lenses.similarity.cka import cka
from netloupe.models.small import mlp


def test_attribution_gradient_times_activation_sums_to_the_logit_of_a_linear_tail():
    model, x = mlp(64, (32,), 10, random_state=0), torch.randn(5, 1, 8, 8)
    with tap(model, "act1") as values:
        logit = model(x)[:, 3]
    gradient = torch.autograd.grad(logit.sum(), values["act1"])[0]
    attribution = (gradient * values["act1"]).sum(1) + model.head.bias[3]
    torch.testing.assert_close(attribution, logit)


def test_synthesis_climbs():
    model, image = Cnn().eval(), torch.zeros(1, 1, 8, 8, requires_grad=True)
    heights = []
    for _ in range(20):
        with tap(model, "conv") as values:
            model(image)
        height = values["conv"][:, 2].mean() - 0.01 * image.pow(2).sum()
        heights.append(float(height.detach()))
        (step,) = torch.autograd.grad(height, image)
        image = (image + step / step.norm()).detach().requires_grad_()
    assert heights[-1] > heights[0]


def test_landscape_hessian_vector_product_by_functional_call():
    model = mlp(64, (8,), 10, nn.Tanh, random_state=0).double()
    x, y = digits()
    x, y = x[:50].double(), y[:50]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = lambda p: nn.functional.cross_entropy(torch.func.functional_call(model, p, (x,)), y)  # noqa: E731
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, product = torch.func.jvp(torch.func.grad(loss), (parameters,), (direction,))
    step = 1e-5
    ahead, behind = ({n: p + s * direction[n] for n, p in parameters.items()} for s in (step, -step))
    finite = {n: (torch.func.grad(loss)(ahead)[n] - torch.func.grad(loss)(behind)[n]) / (2 * step) for n in parameters}
    for name in parameters:
        torch.testing.assert_close(product[name], finite[name], rtol=1e-5, atol=1e-8)


def test_dictionary_from_shuffled_rows_of_a_store_spliced_back_in(tmp_path):
    images, labels = digits()
    model = mlp(64, (32,), 10, random_state=0)
    train(model, (images, labels), steps=150, batch_size=64)
    store = record(model, (images, labels), ["act1"], to=tmp_path / "s")
    encode, decode = nn.Linear(32, 64), nn.Linear(64, 32)
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], lr=1e-2)
    for rows in store["act1"].shuffled(256, seed=0, epochs=25):
        loss = (decode(torch.relu(encode(rows))) - rows).pow(2).mean() + 1e-4 * torch.relu(encode(rows)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = {"plain": 0, "spliced": 0, "ablated": 0}
    edits = {"plain": [], "spliced": [replace_with("act1", lambda a: decode(torch.relu(encode(a))))],
             "ablated": [replace_with("act1", torch.zeros_like)]}  # fmt: skip
    for name, edit in edits.items():
        with intervene(model, *edit):
            for output, batch in run_all(model, (images, labels)):
                right[name] += int((output.argmax(1) == batch.labels).sum())
    assert right["ablated"] < 0.3 * right["plain"]
    assert right["spliced"] > 0.9 * right["plain"]


def test_two_networks_compared():
    images, _ = digits()
    one, two = (mlp(64, (32,), 10, random_state=seed) for seed in (0, 1))
    a, b = (torch.cat([c["act1"] for c in capture(m, images[:300], "act1")]) for m in (one, two))
    assert 0 < cka(a, b).summary()["cka"] < cka(a, a).summary()["cka"]


def test_a_solver_bounds_a_linear_layer_over_a_box():
    model = mlp(64, (4,), 3, random_state=0).double()
    weight, bias = (p.detach().numpy() for p in (model.fc1.weight, model.fc1.bias))
    bounds = [linprog(-row, bounds=(0, 1), method="highs").fun for row in weight]
    closed = np.clip(weight, 0, None).sum(1)
    np.testing.assert_allclose(-np.array(bounds), closed, rtol=1e-9)
    inside = torch.cat([c["fc1"] for c in capture(model, torch.rand(200, 1, 8, 8, dtype=torch.float64), "fc1")])
    assert (inside.numpy() <= closed + bias + 1e-9).all()
