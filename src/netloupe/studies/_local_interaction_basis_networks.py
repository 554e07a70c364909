"""Networks of the local-interaction-basis study, and how many edges each needs in each basis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netloupe.core.training import train
from netloupe.data.digits import digits
from netloupe.data.fashion_mnist import fashion_mnist
from netloupe.data.modular_addition import modular_addition
from netloupe.lenses.dictionary.lib import InteractionBasis, Kind, interaction_basis
from netloupe.lenses.dictionary.lib_cut import cut
from netloupe.lenses.dictionary.lib_edges import edges_needed, interaction_edges
from netloupe.lenses.dictionary.lib_metric import Map
from netloupe.models.gpt import ByteGPT
from netloupe.models.small import mlp

NOISE = 20
N_TEST = 397


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in pieces: activations at node layers, maps between them, labels; ``judged`` are held-out activations."""

    acts: list[Tensor]
    maps: list[Map]
    labels: Tensor
    judged: list[Tensor]

    def rest(self, layer: int) -> Map:
        """From a node layer to the output."""

        def f(x: Tensor) -> Tensor:
            for each in self.maps[layer:]:
                x = each(x)
            return x

        return f

    def accuracy(self, output: Tensor) -> float:
        """Share of right answers."""
        return float((output.argmax(-1) == self.labels).double().mean())

    def basis(self, kind: Kind) -> InteractionBasis:
        """A basis from the activations that are not held out."""
        return interaction_basis(self.acts, self.maps, basis=kind)


def relu_layer(linear: nn.Linear, last: bool) -> Map:
    """One layer of a perceptron in float64; the sites are those around it, so that nothing is replayed."""
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    return lambda x: F.linear(x, weight, bias) if last else F.linear(x, weight, bias).relu()


def in_pieces(model: nn.Module, fitted: Tensor, judged: Tensor, labels: Tensor) -> Cut:
    """A perceptron at its input, its activations and its output."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    maps = [relu_layer(layer, layer is linear[-1]) for layer in linear]

    def through(x: Tensor) -> list[Tensor]:
        values = [x.double()]
        with torch.no_grad():
            for f in maps:
                values.append(f(values[-1]))
        return values

    return Cut(through(fitted), maps, labels, through(judged))


def addition_network(p: int, width: int, steps: int, seed: int, most: int | None = None) -> Cut:
    """All pairs of numbers mod p, learned by full batches of AdamW at 0.01 with decay 1; all pairs are all there is to judge.

    ``most`` keeps only so many pairs, drawn at random, of the trained network's activations.
    """
    x, y = modular_addition(p)
    model = mlp(2 * p, (width,), p, random_state=seed)
    train(
        model,
        lambda _step, _generator: (x, y),
        steps=steps,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1.0),
        seed=seed,
    )
    if most is not None:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most]
        x, y = x[rows], y[rows]
    return in_pieces(model, x, x, y)


def digits_network(steps: int, seed: int) -> Cut:
    """A perceptron 64-32-32-10 on digits; the last 397, of other writers, are judged."""
    x, y = digits(flat=True)
    model = mlp(64, (32, 32), 10, random_state=seed)
    train(model, (x[:-N_TEST], y[:-N_TEST]), steps=steps, batch_size=64, seed=seed)
    return in_pieces(model, x[:-N_TEST], x[-N_TEST:], y[-N_TEST:])


def fashion_network(steps: int, seed: int) -> Cut:
    """A perceptron 784-100-100-10 on Fashion-MNIST, Adam at 0.001, batches of 64; 5,000 images make the basis, 2,000 judge."""
    (x, y), (judged, labels) = fashion_mnist("train"), fashion_mnist("test")
    model = mlp(784, (100, 100), 10, random_state=seed).to("cuda" if torch.cuda.is_available() else "cpu")
    train(model, (x, y), steps=steps, batch_size=64, seed=seed)
    return in_pieces(model.cpu(), x[:5000].flatten(1), judged[:2000].flatten(1), labels[:2000])


def with_noise(network: Cut, seed: int) -> Cut:
    """The same network with inputs of Gaussian noise appended that its first layer ignores."""
    noise = torch.randn(len(network.acts[0]), NOISE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = network.maps[0]
    acts = [torch.cat([network.acts[0], noise], 1), *network.acts[1:]]
    return Cut(acts, [lambda x: first(x[..., :-NOISE]), *network.maps[1:]], network.labels, acts)


def rotated(basis: InteractionBasis, layer: int, seed: int) -> InteractionBasis:
    """The same span at one layer in directions drawn at random: features before scaling are turned, the constant is not."""
    n = basis.n_constant[layer]
    k = basis.n_features[layer]
    drawn = torch.randn(k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = torch.block_diag(torch.eye(n, dtype=torch.float64), torch.linalg.qr(drawn)[0])
    C, C_pinv = list(basis.C), list(basis.C_pinv)
    C[layer], C_pinv[layer] = C[layer] @ turn, turn.T @ C_pinv[layer]
    return replace(basis, C=tuple(C), C_pinv=tuple(C_pinv))


def needed(
    network: Cut, basis: InteractionBasis, score: Callable[[Tensor], float], tolerance: float, pairs: int | None = None
) -> tuple[int, ...]:
    """Edges that each of the first ``pairs`` of layers needs, the rest of the network left whole."""
    counts = []
    for layer, f in enumerate(network.maps[:pairs]):
        edges = interaction_edges(basis, layer, network.acts[layer], f)
        rest = network.rest(layer + 1)
        counts.append(edges_needed(basis, layer, network.judged[layer], f, edges, rest, score, tolerance=tolerance))
    return tuple(counts)


def bytes_network(model: ByteGPT, sites: Sequence[str]) -> Cut:
    """A language model on each byte alone, from its embedding to its logits."""
    tokens = torch.arange(256)[:, None]
    acts, maps = cut(model, list(sites), tokens)
    flat = [each[:, 0] for each in acts]

    def alone(f: Map) -> Map:
        return lambda x: f(x[:, None])[:, 0]

    return Cut(flat, [alone(f) for f in maps], tokens[:, 0], flat)


def kept_information(network: Cut) -> Callable[[Tensor], float]:
    """Minus the mean KL divergence, in nats, from the whole network's answer."""
    whole = network.judged[-1].log_softmax(-1)
    return lambda output: -float(F.kl_div(output.log_softmax(-1), whole, log_target=True, reduction="batchmean"))
