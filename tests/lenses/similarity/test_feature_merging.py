"""Merging of units: planted copies, the authors' function on seeded input, a plain loop, and the lens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.lens import find_lenses
from netloupe.lenses.similarity.feature_complexity import FeatureComplexity, distinct_features, feature_complexity
from netloupe.lenses.similarity.feature_merging import merge_agreement, merge_features, merge_matrices
from netloupe.models.gpt import ByteGPT
from netloupe.models.residual import ResidualMLP
from netloupe.models.resnet import ResNet18
from netloupe.models.small import DigitsCNN, mlp
from netloupe.models.vit import ViT
from netloupe.studies._feature_merging_network import with_copies

SEEDS = [0, 1, 2]
Merges = list[tuple[int, int, int]]


def images(n: int = 4, size: int = 8) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(5)).double()


def chain(seed: int, widths: tuple[int, ...] = (7, 9, 8, 5)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    weights = [draw.normal(size=(b, a)) for a, b in pairwise(widths)]
    return weights, [draw.normal(size=b) for b in widths[1:]]


def plainly(
    weights: list[np.ndarray], biases: list[np.ndarray], beta: float, max_ratio: float
) -> tuple[Merges, list, list]:
    """The loop as one would write it down: everything computed anew for every merge."""
    w, b = [each.copy() for each in weights], [each.copy() for each in biases]
    sizes, used, merges = [np.ones(len(each)) for each in w[:-1]], [0] * (len(w) - 1), []
    while True:
        some = False
        for layer in range(len(w) - 1):
            rows = np.concatenate([w[layer], w[layer + 1].T], 1)
            table = ((rows[:, None] - rows) ** 2).sum(-1)
            off = table + np.diag(np.full(len(table), np.inf))
            if len(rows) < 2 or used[layer] >= max_ratio * len(weights[layer]) or off.min() > beta * table.max():
                continue
            i, j = sorted(divmod(int(off.argmin()), len(off)))
            c = sizes[layer]
            others = [k for k in range(len(rows)) if k not in (i, j)]
            w[layer] = np.concatenate([w[layer][others], (w[layer][i] + w[layer][j])[None]])
            b[layer] = np.append(b[layer][others], b[layer][i] + b[layer][j])
            new = (c[i] * w[layer + 1][:, i] + c[j] * w[layer + 1][:, j]) / (c[i] + c[j])
            w[layer + 1] = np.concatenate([w[layer + 1][:, others], new[:, None]], 1)
            sizes[layer] = np.append(c[others], c[i] + c[j])
            used[layer] += 1
            merges.append((layer, i, j))
            some = True
        if not some:
            return merges, w, b


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "max_ratio"), [(0.3, 1.0), (0.5, 0.4), (1.0, 1.0)])
def test_is_the_plain_loop(seed: int, beta: float, max_ratio: float):
    weights, biases = chain(seed)
    found = merge_matrices(weights, biases, beta, max_ratio)
    merges, w, b = plainly(weights, biases, beta, max_ratio)
    assert [(int(m.group.removeprefix("layer")), m.first, m.second) for m in found.merges] == merges
    for layer in range(3):
        np.testing.assert_allclose(found.tensors[f"weight{layer}"], w[layer], atol=1e-12)
        np.testing.assert_allclose(found.tensors[f"bias{layer}"], b[layer], atol=1e-12)
    assert all(m.distance <= beta * m.largest for m in found.merges)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0, 1), ratio=st.floats(0, 1))
def test_units_are_neither_lost_nor_doubled(seed: int, beta: float, ratio: float):
    weights, biases = chain(seed)
    found = merge_matrices(weights, biases, beta, ratio)
    for layer, before in enumerate((9, 8)):
        members = found.members[f"layer{layer}"]
        assert sorted(i for unit in members for i in unit) == list(range(before))
        assert len(members) == found.complexity[f"layer{layer}"]
        assert before - len(members) <= np.ceil(ratio * before)
        total = found.tensors[f"bias{layer}"].sum()  # rows add up, whatever merges
        np.testing.assert_allclose(total, biases[layer].sum(), atol=1e-9)
    assert found.n_parameters[1] == sum(each.size for each in found.tensors.values())


def seeded_convolutions(seed: int) -> nn.Module:
    """Three 3 x 3 convolutions of paired units and a linear layer."""
    draw, widths, net = np.random.default_rng(seed), [3, 12, 16, 10], nn.Sequential()
    state = {}
    for i in range(3):
        base = draw.normal(size=(widths[i + 1] // 2, widths[i], 3, 3))
        state[f"c{i}.weight"] = torch.tensor(np.concatenate([base, base + 0.3 * draw.normal(size=base.shape)]))
        state[f"c{i}.bias"] = torch.tensor(draw.normal(size=widths[i + 1]))
        net.add_module(f"c{i}", nn.Conv2d(widths[i], widths[i + 1], 3, padding=1))
        net.add_module(f"r{i}", nn.ReLU())
    state["fc.weight"], state["fc.bias"] = torch.tensor(draw.normal(size=(5, 10))), torch.tensor(draw.normal(size=5))
    for name, part in (("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(10, 5))):
        net.add_module(name, part)
    net.double().load_state_dict(state)
    return net.eval()


def test_the_authors_function_on_seeded_input():
    found = merge_features(seeded_convolutions(1), torch.rand(1, 3, 6, 6).double(), 0.6, limit="sweeps")
    assert found.complexity == {"c0": 5, "c1": 3, "c2": 3}
    assert found.members == {
        "c0": ((3,), (5,), (8,), (9, 1, 7, 0, 11, 2, 6), (4, 10)),
        "c1": ((5, 13, 3, 11), (1, 9, 6, 7, 14, 4, 12), (2, 10, 15, 0, 8)),
        "c2": ((0, 5), (2, 7, 3, 8), (4, 9, 1, 6)),
    }
    sums = {
        "c0.weight": (-36.198462378, 423.174488865), "c0.bias": (-1.056994161, 6.911532119),
        "c1.weight": (-5.108451256, 1518.627356977), "c1.bias": (-3.664297631, 11.479837641),
        "c2.weight": (1.596461876, 127.580501649), "c2.bias": (-2.236945646, 11.366176011),
        "fc.weight": (-2.29721845, 6.165310908),
    }  # fmt: skip
    for name, (total, square) in sums.items():
        assert found.tensors[name].sum() == pytest.approx(total, abs=1e-8)
        assert (found.tensors[name] ** 2).sum() == pytest.approx(square, abs=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bn", ["fold", "exact"])
def test_copies_merge_without_a_trace(seed: int, bn):
    torch.manual_seed(seed)
    for model in (mlp(64, (12, 10), 5), DigitsCNN(width=6), ResNet18(1, 4, width=6), ResidualMLP(64, 12, 2)):
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                for value in (part.weight, part.bias, part.running_mean, part.running_var):
                    assert value is not None
                    value.data = 0.5 + torch.rand(value.shape)
        wide, widths = with_copies(model.double().eval(), images()[:1], 0.5, False, seed)
        before = {name: value.clone() for name, value in wide.state_dict().items()}
        found = merge_features(wide, images(), 0.03, bn=bn)
        assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items())
        assert found.complexity == widths
        assert found.model is not None
        torch.testing.assert_close(found.model(images()), model(images()), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(wide(images()), model(images()), atol=1e-9, rtol=1e-9)


def test_the_official_rule_for_batch_norms_changes_even_copies():
    torch.manual_seed(0)
    wide, widths = with_copies(DigitsCNN(width=6).double().eval(), images()[:1], 0.5, False, 0)
    found = merge_features(wide, images(), 0.03, bn="official")
    assert found.complexity == widths
    assert found.model is not None
    assert float((found.model(images()) - wide(images())).abs().max().detach()) > 1e-3


def test_the_average_rule_is_exact_behind_any_function():
    torch.manual_seed(0)
    wide, widths = with_copies(mlp(64, (12, 10), 5, nn.GELU).double().eval(), images()[:1], 0.5, False, 0)
    right, wrong = (merge_features(wide, images(), 0.03, rule=rule) for rule in ("average", "sum"))  # pyright: ignore
    assert right.model is not None
    assert wrong.model is not None
    assert right.complexity == widths
    torch.testing.assert_close(right.model(images()), wide(images()))
    assert float((wrong.model(images()) - wide(images())).abs().max().detach()) > 1e-3


def test_multiples_are_found_once_rows_have_length_one():
    torch.manual_seed(0)
    model = mlp(64, (8,), 5).double().eval()
    with torch.no_grad():
        fc, head = model.get_submodule("fc1"), model.get_submodule("head")
        fc.weight[4:] = 3 * fc.weight[:4]  # type: ignore[index, operator]
        fc.bias[4:] = 3 * fc.bias[:4]  # type: ignore[index, operator]
        head.weight[:, 4:] = head.weight[:, :4] / 3  # type: ignore[index, operator]
    blind, seeing = (merge_features(model, images(), 0.01, normalise=each) for each in (False, True))
    assert blind.complexity == {"fc1": 8}
    assert seeing.complexity == {"fc1": 4}
    assert seeing.model is not None
    torch.testing.assert_close(seeing.model(images()), model(images()))


def test_two_relu_units_err_by_what_the_paper_leaves_out():
    """For equal outgoing weights v the change is |v| min(|z_i|, |z_j|) where the signs differ, and nothing else."""
    draw = np.random.default_rng(0)
    w, v = draw.normal(size=(2, 3)), np.ones((1, 2)) * 1.7
    found = merge_matrices([w, v], None, 1.0, 0.5)
    x = draw.normal(size=(3, 400))
    z = w @ x
    change = (v @ np.maximum(z, 0) - found.tensors["weight1"] @ np.maximum(found.tensors["weight0"] @ x, 0))[0]
    opposed = z[0] * z[1] < 0
    np.testing.assert_allclose(change[~opposed], 0, atol=1e-12)
    np.testing.assert_allclose(change[opposed], 1.7 * np.abs(z).min(0)[opposed])


def test_distances_orders_groups_and_random_merges():
    model = mlp(64, (12, 10), 5, random_state=0).double().eval()
    one = merge_features(model, images(), 1.0, 0.5, order="layerwise")
    assert [m.group for m in one.merges] == ["fc1"] * 6 + ["fc2"] * 5
    assert [m.group for m in merge_features(model, images(), 1.0, 0.2).merges][:4] == ["fc1", "fc2"] * 2
    only = merge_features(model, images(), 1.0, 0.5, groups=["fc2"])
    assert only.complexity == {"fc2": 5}
    w, v = (model.get_parameter(name).detach() for name in ("fc1.weight", "fc2.weight"))
    for distance, rows in (("in", w), ("out", v.T), ("in+out", torch.cat([w, v.T], 1))):
        table = torch.cdist(rows, rows).pow(2).fill_diagonal_(float("inf"))
        first = merge_features(model, images(), 1.0, 0.05, groups=["fc1"], distance=distance).merges[0]  # pyright: ignore
        assert divmod(int(table.argmin()), 12) == (first.first, first.second)
        assert first.distance == pytest.approx(float(table.min()))
    closest, chance = (merge_features(model, images(), 1.0, 0.5, random_state=state) for state in (None, 0))
    assert closest.complexity == chance.complexity
    assert sum(m.distance for m in closest.merges) < sum(m.distance for m in chance.merges)
    assert merge_features(model, images(), 0).merges == ()


def test_agreement_of_merged_units():
    draw = np.random.default_rng(0)
    found = merge_matrices([np.repeat(draw.normal(size=(3, 4)), 2, 0), draw.normal(size=(2, 6)) * 1e-3], None, 0.01)
    assert [sorted(unit) for unit in sorted(found.members["layer0"])] == [[0, 1], [2, 3], [4, 5]]
    values = np.repeat(draw.normal(size=(200, 3)), 2, 1)
    within, across = merge_agreement(found, {"layer0": values})["layer0"]
    table = np.corrcoef(values.T)
    assert within == pytest.approx(1)
    assert across == pytest.approx((table.sum() - 12) / 24)


def test_the_lens_and_its_finding(tmp_path):
    assert find_lenses()["similarity.distinct_features"].of_network
    torch.manual_seed(0)
    wide, widths = with_copies(DigitsCNN(width=6).eval(), images()[:1].float(), 0.5, False, 0)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    found = distinct_features(wide, [images().float()], betas=(0.05, 0.03))
    assert dict(zip(found.names, found.left[1].tolist(), strict=True)) == widths
    assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items()), (
        "the network is left alone"
    )
    numbers = found.summary()
    assert numbers["left"] == pytest.approx(2 / 3, abs=0.01)
    assert numbers["layers"] == 3
    assert set(numbers) <= set(found.meanings)
    assert "distinct" in found.paragraph()
    assert Finding.load(found.save(tmp_path / "found")) == found
    table = feature_complexity(wide, images()[:1].float(), (0.0, 0.03, 1.0))
    assert isinstance(table, FeatureComplexity)
    assert (np.diff(table.left, axis=0) <= 0).all()
    assert table.left[0].tolist() == table.n_units.tolist()
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    table.plot(axes)
    plt.close(figure)


def test_the_lens_leaves_alone_what_it_must():
    found = distinct_features(ViT(8, 4, 5, d_model=16, d_ff=24, n_layers=2, n_heads=2), [images().float()])
    assert found.names == ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1")
    with pytest.raises(InputError, match="no group of units can be merged"):
        distinct_features(ByteGPT(16, 1, 2, 24, 8), [torch.zeros(1, 6).long()])
    with pytest.raises(InputError, match="they are multiplied with each other"):
        merge_features(ByteGPT(16, 1, 2, 24, 8), torch.zeros(1, 6).long(), groups=["blocks.0.ffn.gate"], unknown="pin")
    behind = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    assert distinct_features(behind, [images().float()]).names == ("1",)
    with pytest.raises(InputError, match="'3' does not directly follow"):
        merge_features(behind, images().float())


def test_bad_input_is_one_sentence():
    model, x = mlp(64, (6,), 3).eval(), images().float()
    weights, biases = chain(0)
    broken = mlp(64, (6,), 3).eval()
    broken.get_parameter("fc1.weight").data[0, 0] = float("nan")
    done = merge_matrices(weights, biases)
    cases = [
        (lambda: merge_features(model, x, 1.5), "beta is 1.5"),
        (lambda: merge_features(model, x, 0.1, -1), "max_ratio -1"),
        (lambda: merge_features(model, x, bn="drop"), "'drop' was given"),  # pyright: ignore
        (lambda: merge_features(model, x, groups=["fc9"]), "no group 'fc9'"),
        (lambda: merge_features(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x), "the network has none"),
        (lambda: merge_features(mlp(64, (1,), 3), x), "the network has none"),
        (lambda: merge_matrices(weights[:1]), "at least two matrices"),
        (lambda: merge_matrices([weights[0], weights[0]]), "follow each other"),
        (lambda: merge_matrices(weights, biases[1:]), "biases do not fit"),
        (lambda: feature_complexity(model, x, ()), "betas is empty"),
        (lambda: distinct_features(model, []), "data is empty"),
        (lambda: merge_agreement(done, {"layer7": np.ones((4, 9))}), "no group 'layer7'"),
        (lambda: merge_agreement(done, {"layer0": np.ones((4, 3))}), "9 are needed"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(NonFiniteError, match=r"'fc1\.weight' holds NaN"):
        merge_features(broken, x)
