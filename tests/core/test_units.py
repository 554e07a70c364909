"""Groups of units: every group found may be permuted without a change, and what cannot be proved is refused by its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.units import UnitAxis, UnitGroup, pruned, selected, tensors_of, unit_groups, with_tensors
from netloupe.models.gpt import ByteGPT
from netloupe.models.residual import ResidualMLP
from netloupe.models.resnet import ResNet18
from netloupe.models.small import DigitsCNN, mlp
from netloupe.models.vit import ViT


class Net(nn.Module):
    """A forward around given parts."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with every parameter and statistic of a unit's own, so that a wrong permutation shows."""
    draw = torch.Generator().manual_seed(seed)
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            value.data += 0.3 * torch.rand(value.shape, generator=draw)
    return model.eval().double()


def permuted_all(model: nn.Module, groups: list[UnitGroup], seed: int = 0) -> nn.Module:
    """Every group in a random order of its own."""
    draw = torch.Generator().manual_seed(seed)
    tensors = tensors_of(model)
    for group in groups:
        tensors = selected(tensors, group, torch.randperm(group.n, generator=draw))
    return with_tensors(model, tensors)


def images(n: int = 2, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1)).double()


def sequential_zoo() -> dict[str, tuple[nn.Module, Tensor, str]]:
    c = nn.Conv2d
    return {
        "instance norm and average": (
            nn.Sequential(c(1, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ELU(), c(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
            images(), "0 3",
        ),
        "depthwise and slopes": (
            nn.Sequential(c(1, 6, 3), nn.PReLU(6), c(6, 6, 3, groups=6), nn.GroupNorm(6, 6), nn.Flatten(), nn.BatchNorm1d(96), nn.Linear(96, 3)),
            images(), "0",
        ),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(1, 5, 2), nn.SiLU(), nn.ConvTranspose2d(5, 4, 2), nn.ReLU(), c(4, 2, 1)), images(), "0 2"),
        "group norm of all": (nn.Sequential(c(1, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)), images(), "0"),
        "layer norm": (nn.Sequential(nn.Linear(8, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 2)), images(), "0"),
        "one dimension": (nn.Sequential(nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(18, 2)), images()[:, 0], "0"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(sequential_zoo()))
def test_layers_of_a_sequence(name: str):
    model, x, expected = sequential_zoo()[name]
    model = shaken(model)
    groups = unit_groups(model, x)
    assert [group.name for group in groups] == expected.split()
    changed = permuted_all(model, groups)
    torch.testing.assert_close(changed(x), model(x))
    assert any(not torch.equal(a, b) for a, b in zip(changed.parameters(), model.parameters(), strict=True))


def functional_zoo() -> dict[str, tuple[Net, Tensor, list[str]]]:
    linear = nn.Linear
    return {
        "residual": (
            Net(lambda m, x: m.head(F.relu(m.stem(x) + m.up(torch.tanh(m.down(F.relu(m.stem2(x))))))), stem=linear(8, 6), stem2=linear(8, 5),
                down=linear(5, 4), up=linear(4, 6), head=linear(6, 2)),
            images()[:, 0], ["stem", "stem2", "down"],
        ),
        "gate": (Net(lambda m, x: m.head(torch.sigmoid(m.gate(x)) * m.value(x)), gate=linear(8, 5), value=linear(8, 5), head=linear(5, 2)), images()[:, 0], ["gate"]),
        "mean over places": (Net(lambda m, x: m.head(m.conv(x).relu().mean([2, 3])), conv=nn.Conv2d(1, 6, 3), head=linear(6, 2)), images(), ["conv"]),
        "mean over units": (Net(lambda m, x: m.head(m.one(x).relu().mean(-1, keepdim=True)), one=linear(8, 6), head=linear(1, 2)), images()[:, 0], ["one"]),
        "permute and view": (
            Net(lambda m, x: m.head(m.conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1)), conv=nn.Conv2d(1, 6, 3), head=linear(216, 2)), images(), ["conv"],
        ),
        "flattened units last": (
            Net(lambda m, x: m.head(F.relu(m.one(x)).transpose(1, 2).flatten(1)), one=linear(8, 6), head=linear(48, 2)), images()[:, 0], ["one"],
        ),
        "first token": (Net(lambda m, x: m.head(F.relu(m.one(x))[:, 0]), one=linear(8, 6), head=linear(6, 2)), images()[:, 0], ["one"]),
        "attention over places": (
            Net(lambda m, x: m.head((m.q(x) @ m.k(x).transpose(-2, -1)).softmax(-1) @ m.v(x)), q=linear(8, 6), k=linear(8, 6), v=linear(8, 5), head=linear(5, 2)),
            images()[:, 0], ["q", "v"],
        ),
        "more places": (
            Net(lambda m, x: m.head(torch.cat([m.one(x), m.one2(x)], 1).relu()), one=linear(8, 6), one2=linear(8, 6), head=linear(6, 2)), images()[:, 0], ["one"],
        ),
        "decision by shape": (Net(lambda m, x: m.head(m.one(x).relu() if len(x) > 1 else m.one(x)), one=linear(8, 6), head=linear(6, 2)), images()[:, 0], ["one"]),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(functional_zoo()))
def test_functions_in_a_forward(name: str):
    model, x, expected = functional_zoo()[name]
    model = shaken(model)
    groups = unit_groups(model, x)
    assert [group.name for group in groups] == expected
    torch.testing.assert_close(permuted_all(model, groups)(x), model(x))


@pytest.mark.parametrize(
    ("model", "x", "unknown", "n_groups"),
    [
        (mlp(64, (32, 16), 10, random_state=0), images(), "refuse", 2),
        (DigitsCNN(width=4), images(), "refuse", 3),
        (ResNet18(1, width=4, random_state=0), images(size=16), "refuse", 12),
        (ResidualMLP(64, 12, 2, random_state=0), images(), "refuse", 3),
        (ViT(8, 4, 5, d_model=16, d_ff=24, n_layers=2, n_heads=2, random_state=0), images(), "pin", 2),
        (ByteGPT(16, 2, 2, 24, 8, random_state=0), torch.arange(6)[None], "pin", 3),
    ],
    ids=["mlp", "cnn", "resnet", "residual", "vit", "gpt"],
)
def test_whole_networks(model: nn.Module, x: Tensor, unknown, n_groups: int):
    model = shaken(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    groups = unit_groups(model, x, unknown)
    assert len(groups) == n_groups
    torch.testing.assert_close(permuted_all(model, groups)(x), model(x), atol=1e-9, rtol=1e-9)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items()), (
        "the network is left alone"
    )


def test_what_a_group_holds():
    groups = unit_groups(DigitsCNN(width=4).eval(), images().float())
    first, second, third = groups
    assert [(axis.parameter, axis.axis, axis.role) for axis in first.axes] == [
        ("conv1.weight", 0, "out"), ("norm1.weight", 0, "unit"), ("norm1.bias", 0, "unit"),
        ("norm1.running_mean", 0, "unit"), ("norm1.running_var", 0, "unit"), ("conv2.weight", 1, "in"),
    ]  # fmt: skip
    assert first.functions == ("BatchNorm2d", "ReLU", "MaxPool2d")
    assert [site.path for site in first.sites] == ["conv1", "norm1", "relu1", "pool"]
    assert second.axes[-1] == UnitAxis("fc.weight", 1, "in", 1, 16)
    assert second.sites[-1].path == "flatten"
    assert second.sites[-1].inner == 16
    assert (first.n, second.n, third.n) == (4, 8, 64)
    assert not third.mixed
    mixed = unit_groups(ByteGPT(16, 2, 2, 24, 8), torch.arange(6)[None], "pin")[0]
    assert mixed.name == "tokens"
    assert len(mixed.mixed) == 5  # two norms a block and the last


def test_a_pruned_network_is_the_network_with_those_units_silent():
    model = shaken(DigitsCNN(width=4))
    x = images(3)
    for group in unit_groups(model, x):
        kept = list(range(0, group.n, 2))
        small = pruned(model, group, kept)
        tensors = tensors_of(model)
        for axis in group.axes:
            if axis.role == "in":
                rows = axis.rows(tensors[axis.parameter], group.n).clone()
                rows[1::2] = 0
                tensors[axis.parameter] = axis.put(rows, tensors[axis.parameter], group.n)
        torch.testing.assert_close(small(x), with_tensors(model, tensors)(x))
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_rows_and_put_are_inverse():
    draw = torch.rand(3, 24, 5, generator=torch.Generator().manual_seed(0))
    axis = UnitAxis("w", 1, "in", outer=2, inner=3)
    rows = axis.rows(draw, 4)
    assert rows.shape == (4, 3 * 2 * 3 * 5)
    torch.testing.assert_close(axis.put(rows, draw, 4), draw)
    assert axis.put(rows[:2], draw, 4).shape == (3, 12, 5)
    with pytest.raises(InputError, match="has 24 entries on axis 1, but 5 units need 30"):
        axis.rows(draw, 5)


def refused() -> dict[str, tuple[nn.Module, Tensor, str]]:
    linear = nn.Linear
    shared = linear(8, 8)
    tied = nn.Sequential(linear(8, 8), linear(8, 8))
    tied[1].weight = tied[0].weight
    x = images()[:, 0]
    return {
        "grouped": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=2)), images(), "'_1' \\(Conv2d\\): a convolution with 2 groups"),
        "called twice": (Net(lambda m, x: m.one(m.one(x)), one=shared), x, "layer 'one' is called more than once"),
        "tied": (tied, x, "'1.weight' and '0.weight' are one parameter"),
        "beside each other": (Net(lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], -1)), a=linear(8, 3), b=linear(8, 3), head=linear(6, 2)), x, "'cat' \\(cat\\): it puts units"),
        "cut": (Net(lambda m, x: m.head(m.a(x).view(2, 8, 2, 3).sum(2)), a=linear(8, 6), head=linear(3, 2)), x, "cuts an axis of units"),
        "slice": (Net(lambda m, x: m.head(m.a(x)[..., :3]), a=linear(8, 6), head=linear(3, 2)), x, "parts of an axis of units"),
        "no rule": (Net(lambda m, x: m.head(torch.cumsum(m.a(x), -1)), a=linear(8, 6), head=linear(6, 2)), x, "'cumsum' \\(cumsum\\): no rule"),
        "module": (nn.Sequential(linear(8, 6), nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)), x, "TransformerEncoderLayer"),
        "data": (Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=linear(8, 8)), x, "cannot be traced .* may not depend on the data"),
        "grouped norm": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), images(), "a group norm of 2 groups"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(refused()))
def test_what_cannot_be_proved_is_refused_by_name_or_left_alone(name: str):
    model, x, words = refused()[name]
    model = shaken(model) if name != "tied" else model.eval().double()
    with pytest.raises(InputError, match=words) as caught:
        unit_groups(model, x)
    assert "\n" not in str(caught.value)
    if name in ("tied", "data"):
        with pytest.raises(InputError):
            unit_groups(model, x, "pin")
    else:
        groups = unit_groups(model, x, "pin")
        torch.testing.assert_close(permuted_all(model, groups)(x), model(x))


def test_pinning_keeps_what_can_be_proved():
    model = shaken(
        Net(
            lambda m, x: m.head(torch.cumsum(m.b(F.relu(m.a(x))), -1)),
            a=nn.Linear(8, 6), b=nn.Linear(6, 5), head=nn.Linear(5, 2),
        )
    )  # fmt: skip
    assert [group.name for group in unit_groups(model, images()[:, 0], "pin")] == ["a"]


def test_bad_input():
    model, x = mlp(64, (8,), 10), images().float()
    group = unit_groups(model, x)[0]
    cases = [
        (lambda: unit_groups(model, x, "guess"), "unknown is 'guess'"),  # pyright: ignore[reportArgumentType]
        (lambda: pruned(model, group, []), "at least one"),
        (lambda: pruned(model, group, [8]), "0 to 7"),
        (lambda: with_tensors(model, {"fc9.weight": x}), "no parameter 'fc9.weight'"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
