"""The networks of the hash-encoders study: perceptrons of many widths, samples and labels, trained as one stack."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.training import train
from netloupe.lenses.geometry.packed_codes import PackedCodes, pack

STACKED = (20, 40, 60, 100)
"""networks up to each of these widths are trained together, padded to it"""


@dataclass(frozen=True)
class Recipe:
    """The published training: Adam at 0.01, a tenth of it every 20 epochs, batches of 64, 1e-6 |W|^2, batch norm.

    ``depth`` hidden layers of equal width; weights start as in Keras (Glorot uniform, biases 0). ``batch_norm`` may be
    left out.
    """

    epochs: int
    depth: int = 1
    batch_norm: bool = True
    batch_size: int = 64
    rate: float = 1e-2
    drop_every: int = 20
    penalty: float = 1e-6


class Net(NamedTuple):
    """One network: width, seed, how many training samples it sees (None: all), and which share of its labels is shuffled
    and of its inputs replaced by uniform noise."""

    width: int
    seed: int
    n_samples: int | None = None
    label_noise: float = 0.0
    input_noise: float = 0.0


class Data(NamedTuple):
    """Training and test samples, flattened, and their classes."""

    x: Float[Tensor, "sample unit"]
    y: Int[Tensor, " sample"]
    x_test: Float[Tensor, "sample unit"]
    y_test: Int[Tensor, " sample"]

    @property
    def n(self) -> int:
        """Training samples."""
        return len(self.x)


class Codes(NamedTuple):
    """Codes of all training and test samples at one epoch, of as many uniform inputs in [-1, 0] as there are test samples,
    and the network's own test accuracy."""

    train: PackedCodes
    test: PackedCodes
    random: PackedCodes
    accuracy: float


class WidthStack(nn.Module):
    """Perceptrons ``Linear, BatchNorm, ReLU`` of different widths, padded to the widest; called with sample numbers."""

    def __init__(self, nets: Sequence[Net], recipe: Recipe, x: Tensor, n_classes: int) -> None:
        super().__init__()
        wide = max(net.width for net in nets)
        sizes = (x.shape[1], *[wide] * recipe.depth, n_classes)
        drawn: list[list[Tensor]] = []
        for net in nets:
            generator = torch.Generator().manual_seed(net.seed)
            own = (x.shape[1], *[net.width] * recipe.depth, n_classes)
            layers = []
            for (fan_in, fan_out), padded in zip(pairwise(own), pairwise(sizes)):
                bound = math.sqrt(6 / (fan_in + fan_out))
                weight = torch.zeros(padded)
                weight[:fan_in, :fan_out] = bound * (2 * torch.rand(fan_in, fan_out, generator=generator) - 1)
                layers.append(weight)
            drawn.append(layers)
        self.weights = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn)])
        self.biases = nn.ParameterList([torch.zeros(len(nets), 1, width) for width in sizes[1:]])
        hidden = (len(nets), 1, wide)
        self.gains = nn.ParameterList([torch.ones(hidden) for _ in range(recipe.depth)])
        self.shifts = nn.ParameterList([torch.zeros(hidden) for _ in range(recipe.depth)])
        for layer in range(recipe.depth):
            self.register_buffer(f"mean{layer}", torch.zeros(hidden))
            self.register_buffer(f"variance{layer}", torch.ones(hidden))
        self.register_buffer("inside", torch.stack([(torch.arange(wide) < net.width).float() for net in nets])[:, None])
        self.batch_norm = recipe.batch_norm
        noisy = [net.input_noise for net in nets]
        self.register_buffer("x", torch.stack([_noisy_inputs(x, net) for net in nets]) if any(noisy) else x[None])

    def forward(self, chosen: Int[Tensor, "sample net"]) -> Float[Tensor, "net sample class"]:
        """Logits of the chosen samples."""
        x = self.get_buffer("x")
        rows = torch.arange(chosen.shape[1], device=x.device)[:, None] if len(x) > 1 else 0
        return self.layers(x[rows, chosen.T])[-1]

    def layers(self, x: Float[Tensor, "net sample unit"]) -> list[Float[Tensor, "net sample unit"]]:
        """Every hidden layer after its rectifier, then the logits."""
        found = []
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if index < len(self.gains):
                x = torch.relu(self._normalised(x, index)) * self.get_buffer("inside")
            found.append(x)
        return found

    def _normalised(self, x: Tensor, layer: int) -> Tensor:
        if not self.batch_norm:
            return x
        mean, variance = self.get_buffer(f"mean{layer}"), self.get_buffer(f"variance{layer}")
        if self.training:
            spread, centre = torch.var_mean(x, dim=1, keepdim=True, correction=0)
            with torch.no_grad():
                mean.lerp_(centre, 0.1)
                variance.lerp_(spread * (x.shape[1] / (x.shape[1] - 1)), 0.1)
            mean, variance = centre, spread
        scale = self.gains[layer] * torch.rsqrt(variance + 1e-3)
        return x * scale + (self.shifts[layer] - mean * scale)


Grown = dict[Net, dict[int, Codes]]


def train_nets(nets: Sequence[Net], data: Data, recipe: Recipe, epochs: Sequence[int]) -> Grown:
    """Codes of every network at each of ``epochs`` (0 is untrained; the recipe's last is always there)."""
    groups: dict[int, list[Net]] = defaultdict(list)
    for net in dict.fromkeys(nets):
        groups[next((limit for limit in STACKED if net.width <= limit), net.width)].append(net)
    wanted = sorted({*(epoch for epoch in epochs if epoch < recipe.epochs), recipe.epochs})
    found: Grown = {}
    for _, group in sorted(groups.items()):
        found |= _train_stack(group, data, recipe, wanted)
    return found


def noisy_labels(y: Int[Tensor, " sample"], share: float, seed: int) -> Int[Tensor, " sample"]:
    """A share of the labels put in random order among themselves; which ones depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed + 7919)
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    found = y.clone()
    found[chosen] = y[chosen[torch.randperm(len(chosen), generator=generator)]]
    return found


def _noisy_inputs(x: Tensor, net: Net) -> Tensor:
    generator = torch.Generator().manual_seed(net.seed + 104_729)
    chosen = torch.randperm(len(x), generator=generator)[: round(net.input_noise * len(x))]
    found = x.clone()
    found[chosen] = torch.rand(len(chosen), x.shape[1], generator=generator).to(x)
    return found


def _train_stack(nets: list[Net], data: Data, recipe: Recipe, epochs: Sequence[int]) -> Grown:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n_classes = int(data.y.max()) + 1
    stack = WidthStack(nets, recipe, data.x, n_classes).to(device)
    labels = torch.stack([noisy_labels(data.y, net.label_noise, net.seed) for net in nets]).to(device)
    per_epoch = data.n // recipe.batch_size
    orders: dict[int, Tensor] = {}
    grown: Grown = {net: {} for net in nets}

    def feed(step: int, _: torch.Generator) -> tuple[Tensor]:
        epoch, place = divmod(step, per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = torch.stack([_order(data.n, net, epoch) for net in nets], 1)
        return (orders[epoch][place * recipe.batch_size : (place + 1) * recipe.batch_size],)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        chosen = batch.args[0].T
        target = labels.gather(1, chosen)
        value = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / chosen.shape[1]
        return value + recipe.penalty * sum(weight.pow(2).sum() for weight in stack.weights)

    def keep(_: nn.Module, step: int) -> Mapping[str, float]:
        if step % per_epoch == 0 and step // per_epoch in epochs:
            for net, codes in zip(nets, _read(stack, nets, data)):
                grown[net][step // per_epoch] = codes
        return {}

    adam = torch.optim.Adam(stack.parameters(), recipe.rate, eps=1e-7, fused=True)
    train(
        stack, feed, steps=per_epoch * recipe.epochs, optimizer=adam, loss=loss, seed=nets[0].seed,
        schedule=lambda step: 0.1 ** (step // per_epoch // recipe.drop_every), watch=keep, watch_every=per_epoch,
    )  # fmt: skip
    return grown


def _order(n: int, net: Net, epoch: int) -> Tensor:
    """An epoch's order: a small set is repeated to the full length, so that every network takes as many steps."""
    generator = torch.Generator().manual_seed(net.seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator) % (net.n_samples or n)


@torch.no_grad()
def _read(stack: WidthStack, nets: Sequence[Net], data: Data) -> list[Codes]:
    """Codes in evaluation mode."""
    parts: list[list[list[np.ndarray]]] = [[[], [], []] for _ in nets]
    hits = torch.zeros(len(nets))
    device = stack.get_buffer("x").device
    noise = -torch.rand(data.x_test.shape, generator=torch.Generator().manual_seed(0))
    for side, x in enumerate((data.x, data.x_test, noise)):
        for start in range(0, len(x), 1024):
            *hidden, logits = stack.layers(x[start : start + 1024].to(device).expand(len(nets), -1, -1))
            for index, net in enumerate(nets):
                bits = torch.cat([layer[index, :, : net.width] > 0 for layer in hidden], 1)
                parts[index][side].append(pack(bits.cpu().numpy()))
            if side == 1:
                hits += (logits.argmax(-1).cpu() == data.y_test[start : start + 1024]).sum(1)
    found = []
    for index, net in enumerate(nets):
        n_bits = net.width * len(stack.gains)
        layers = {f"relu{i}": slice(i * net.width, (i + 1) * net.width) for i in range(len(stack.gains))}
        sides = [PackedCodes(np.concatenate(side), n_bits, layers) for side in parts[index]]
        found.append(Codes(*sides, accuracy=float(hits[index] / len(data.x_test))))
    return found
