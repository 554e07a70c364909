"""Networks that a comparison can import by name: one, a copy of it with its units in another order, and an odd one out."""

from __future__ import annotations

import torch
from torch import nn

ORDER = torch.randperm(24, generator=torch.Generator().manual_seed(3))


class Flat(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.fc1, self.act1, self.head = nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Flat().eval()


def shuffled() -> nn.Module:
    """Computes what ``plain`` computes, with its hidden units in another order."""
    model = plain()
    with torch.no_grad():
        model.fc1.weight.copy_(model.fc1.weight[ORDER].clone())
        model.fc1.bias.copy_(model.fc1.bias[ORDER].clone())
        model.head.weight.copy_(model.head.weight[:, ORDER].clone())
    return model


def moved() -> nn.Module:
    """``plain`` with one layer that has moved far and two units that never fire."""
    model = plain()
    with torch.no_grad():
        model.fc1.weight.add_(torch.randn(24, 64, generator=torch.Generator().manual_seed(5)))
        model.fc1.bias[:2] = -100.0
    return model


def constant() -> nn.Module:
    model = plain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return nn.Sequential(model)
