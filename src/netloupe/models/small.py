"""Small networks for small images: enough to have every kind of feature, trained in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mlp(
    n_inputs: int,
    widths: Sequence[int],
    n_outputs: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    random_state: int | None = None,
) -> nn.Sequential:
    """A multilayer perceptron on flattened inputs with sites ``fc1, act1, ..., head``.

    ``random_state`` seeds the initial weights without touching the global random state; None uses the global one.
    """
    with torch.random.fork_rng(devices=[], enabled=random_state is not None):
        if random_state is not None:
            torch.manual_seed(random_state)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = n_inputs
        for index, wide in enumerate(widths, start=1):
            layers[f"fc{index}"] = nn.Linear(width, wide)
            layers[f"act{index}"] = activation()
            width = wide
        layers["head"] = nn.Linear(width, n_outputs)
        return nn.Sequential(layers)


class DigitsCNN(nn.Module):
    """A convolutional network for ``(sample, 1, 8, 8)``: two blocks of convolution, batch norm and ReLU, then 64 features."""

    def __init__(self, n_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2 * width * 16, 64)
        self.features = nn.ReLU()
        self.head = nn.Linear(64, n_classes)

    def forward(self, images: Float[Tensor, "sample 1 8 8"]) -> Float[Tensor, "sample class"]:
        """Logits."""
        x = self.pool(self.relu1(self.norm1(self.conv1(images))))
        x = self.relu2(self.norm2(self.conv2(x)))
        return self.head(self.features(self.fc(self.flatten(x))))
