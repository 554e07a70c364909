"""The residual network with 18 layers, in the form that small images need."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to the input (projected where the shape changes)."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_outputs)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_outputs)
        same = stride == 1 and n_inputs == n_outputs
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(n_inputs, n_outputs, 1, stride, bias=False), nn.BatchNorm2d(n_outputs))
        )
        self.relu = nn.ReLU()

    def forward(
        self, x: Float[Tensor, "sample channel height width"]
    ) -> Float[Tensor, "sample channel2 height2 width2"]:
        """The block's output after its last ReLU."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.relu(inner + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (arXiv 1512.03385) with a 3 x 3 stem and no first pooling, for images of about 32 x 32.

    Four stages ``layer1`` to ``layer4`` of two blocks, ``width`` to ``8 width`` channels; ``features`` are the means
    over positions, ``8 width`` units, which the linear ``head`` reads.

    Args:
        n_channels: channels of the images.
        n_classes: number of logits.
        width: channels of the first stage; 64 in the paper.
        head_bias: whether the classifier has a bias.
        random_state: seed of the initial weights, which leaves the global random state alone; None uses that.
    """

    def __init__(
        self,
        n_channels: int = 3,
        n_classes: int = 10,
        width: int = 64,
        head_bias: bool = True,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[], enabled=random_state is not None):
            if random_state is not None:
                torch.manual_seed(random_state)
            self.stem = nn.Conv2d(n_channels, width, 3, 1, 1, bias=False)
            self.norm = nn.BatchNorm2d(width)
            self.relu = nn.ReLU()
            self.layer1 = self._stage(width, width, 1)
            self.layer2 = self._stage(width, 2 * width, 2)
            self.layer3 = self._stage(2 * width, 4 * width, 2)
            self.layer4 = self._stage(4 * width, 8 * width, 2)
            self.features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(8 * width, n_classes, bias=head_bias)

    @staticmethod
    def _stage(n_inputs: int, n_outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(ResidualBlock(n_inputs, n_outputs, stride), ResidualBlock(n_outputs, n_outputs, 1))

    def forward(self, images: Float[Tensor, "sample channel height width"]) -> Float[Tensor, "sample class"]:
        """Logits."""
        x = self.relu(self.norm(self.stem(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(self.features(x))
