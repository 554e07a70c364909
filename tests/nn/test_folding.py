"""Folded batch norms compute what they did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netloupe.models.resnet import ResNet18
from netloupe.models.small import DigitsCNN
from netloupe.nn.folding import fold_batch_norms


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for value in (part.weight, part.bias, part.running_mean, part.running_var):
                if value is not None:
                    value.data = 0.5 + torch.rand(value.shape, generator=draw)
    return model.double().eval()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "build",
    [
        lambda: DigitsCNN(width=4),
        lambda: ResNet18(1, width=4),
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9, affine=False), nn.Tanh(), nn.Linear(9, 2)
        ),
    ],
)
def test_the_same_network_with_fewer_parts(build, seed: int):
    torch.manual_seed(seed)
    model = with_statistics(build(), seed)
    x = torch.rand(3, 1, 8, 8).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded, left = fold_batch_norms(model, x)
    assert left == []
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in folded.modules())
    torch.testing.assert_close(folded(x), model(x))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_norms_that_do_not_follow_a_layer_of_their_own_stay():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            return self.head(self.norm(y) + y)

    model = with_statistics(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), Shared()))
    x = torch.rand(3, 4).double()
    folded, left = fold_batch_norms(model, x)
    assert left == ["2", "3.norm"]
    torch.testing.assert_close(folded(x), model(x))
