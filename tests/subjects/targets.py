"""Networks and data that a user's own module would hold."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
inputs, labels = torch.randn(20, 5), torch.arange(20) % 3
pair = (inputs, labels)
dataset = TensorDataset(inputs, labels)
loader = DataLoader(dataset, batch_size=6)
number = 3


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def broken() -> nn.Module:
    raise RuntimeError("no luck\ntoday")


def generator():
    for start in range(0, 20, 7):
        yield inputs[start : start + 7], labels[start : start + 7]
