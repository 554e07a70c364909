"""A codebook layer's forward and backward pass beside vector-quantize-pytorch, and beside the same written with ordinary operations.

    python bench/codebook_features.py [--vectors 512 1024 2048 4096] [--units 64] [--codes 1000]

The peer quantises by distance to a table learned by gradient, without moving averages, one code a vector; ours does so too here. Ids and
outputs must be the same before anything is timed. The ordinary way is the published gradient (task and reconstruction to the
table, straight through to the input) from cosine scores, an embedding and autograd, k codes a vector; outputs and both gradients must be
the same. The limit is the product of vectors and table, which is timed alone. Skips the peer where it is not installed.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from support.timing import alternate, exponent, print_table

from netloupe.nn.codebook import Codebook


def own_pass(layer: Codebook, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x.grad = layer.table.grad = None
    y = layer(x)
    y.backward(gradient)
    assert x.grad is not None
    assert layer.table.grad is not None
    return y.detach(), x.grad, layer.table.grad[0]


def ordinary_pass(table: torch.Tensor, k: int, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cosine scores, all of them; the mean of k rows; the gradients by autograd of ordinary operations."""
    x.grad = table.grad = None
    rows = F.layer_norm(x, x.shape[-1:])
    ids = (rows.detach() @ F.normalize(table.detach(), dim=-1).T).topk(k, -1).indices
    y = F.embedding(ids, table).mean(-2)
    straight = rows + (y - rows).detach()
    error = (y - rows.detach()).pow(2).sum(-1).mean()
    torch.autograd.backward([straight, y, error], [gradient, gradient, torch.ones(())])
    assert x.grad is not None
    assert table.grad is not None
    return straight.detach(), x.grad, table.grad


def peer_pass(peer: Any, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x.grad = None
    peer.zero_grad()
    y, ids, _ = peer(x[None])
    y.backward(gradient[None])
    assert x.grad is not None
    return y[0].detach(), ids[0]


def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...], what: str) -> None:
    for a, b in zip(one, other, strict=True):
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
            raise SystemExit(f"{what} differ by {float((a - b).abs().max()):.1e}")


def compare(n: int, d: int, n_codes: int, repeats: int, times: dict[str, list[float]]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(n, d, generator=draw).requires_grad_(), torch.randn(n, d, generator=draw)
    print(f"{n} vectors of {d} units, {n_codes} codes")
    for k in (1, 8):
        layer = Codebook(d, n_codes, k)
        table = layer.table.detach()[0].clone().requires_grad_()
        same(own_pass(layer, x, gradient), ordinary_pass(table, k, x, gradient), "outputs and gradients")
        ordinary, ours = f"ordinary operations, k = {k}", f"Codebook, k = {k}"
        seconds = alternate(
            {ordinary: partial(ordinary_pass, table, k, x, gradient), ours: partial(own_pass, layer, x, gradient)},
            repeats,
        )
        print_table(seconds, ordinary)
        times.setdefault(ours, []).append(float(np.median(seconds[ours])))
    whole = torch.randn(n_codes, d, generator=draw)
    seconds = alternate({"the product alone": lambda: x.detach() @ whole.T}, repeats)
    print(f"  {'the product alone':<34} {1e3 * np.median(seconds['the product alone']):10.1f} ms")
    _beside_peer(x, gradient, n_codes, repeats)


def _beside_peer(x: torch.Tensor, gradient: torch.Tensor, n_codes: int, repeats: int) -> None:
    try:
        from vector_quantize_pytorch import VectorQuantize  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("  vector-quantize-pytorch is not installed")
        return
    peer = VectorQuantize(x.shape[1], n_codes, ema_update=False, learnable_codebook=True, commitment_weight=1.0)
    layer = Codebook(x.shape[1], n_codes, similarity="l2", layernorm=False)
    layer.table.data = peer._codebook.embed.detach().clone()
    found, wanted = own_pass(layer, x, gradient), peer_pass(peer, x, gradient)
    assert layer.ids is not None
    share = float((layer.ids[:, 0, 0] == wanted[1]).float().mean())
    if share < 1 or not torch.allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5):
        raise SystemExit(f"only {share:.4f} of the ids are the same")
    sides = {
        "vector-quantize-pytorch": partial(peer_pass, peer, x, gradient),
        "Codebook, l2, k = 1": partial(own_pass, layer, x, gradient),
    }
    print_table(alternate(sides, repeats), "vector-quantize-pytorch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--codes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    for n in options.vectors:
        compare(n, options.units, options.codes, options.repeats, times)
    if len(options.vectors) > 1:
        for name, values in times.items():
            print(f"{name:<16} grows as n^{exponent(np.array(options.vectors), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
