"""Networks that exercise every way a site can be awkward."""

from __future__ import annotations

import torch
from torch import nn


class Cnn(nn.Module):
    """Convolution, batch norm, in-place activation, a container, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.tail = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.relu(self.norm(self.conv(x))))


class Conv1d(nn.Module):
    """Channels second in three axes, which looks like (sample, time, unit)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3, padding=1)
        self.act = nn.GELU()
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.conv(x)).mean(-1))


class Loop(nn.Module):
    """One module called three times, another shared under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(5, 5)
        self.act = nn.Tanh()
        self.first = nn.Linear(5, 5)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = self.act(self.cell(x))
        return self.second(self.first(x))


class Attention(nn.Module):
    """Fused attention, batch first or not."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.encoder(x)
        return y if self.batch_first else y.transpose(0, 1)


class Outputs(nn.Module):
    """A dictionary output with a 0-d entry, and a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.rnn = nn.LSTM(6, 5, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y, (h, _) = self.rnn(self.body(x))
        return {"loss": y.mean(), "logits": y, "state": h}


class Table(nn.Module):
    """A batch-independent position table and a scalar module."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.places = nn.Embedding(9, 6)
        self.mean = Mean()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        return x * (1 + 0 * self.mean(x))


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


class Poisoned(nn.Module):
    """NaN in one sample, chosen by its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.act(torch.where(x[:, :1] > 100, torch.full_like(y, float("nan")), y))
