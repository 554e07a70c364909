"""Training a TopK sparse autoencoder beside SAELens, Sparsify and overcomplete: steps a second on the same rows, at equal quality.

    python bench/sparse_autoencoders.py [--rows 20000] [--units 256] [--latents 1024] [--k 16] [--steps 60]

Rows come from planted sparse directions with noise. Every side takes equally many Adam steps on batches of one size with one
rate; ours reads a recording from disk and normalises its decoder, the peers' loops are their libraries' own forward passes, losses
and optimiser steps on rows in memory, whatever of their trainers is left out (logging, schedules) in their favour. The share of
variance explained at the end is printed for each; ours must not be more than .02 below the best. A peer that is not installed is
named and left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.timing import alternate, print_table
from torch import Tensor

from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.dictionary.sae import SparseAutoencoder, shuffled

RATE = 1e-3


def planted(n: int, d: int, m: int, k: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(m, d, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    chosen = torch.randint(0, m, (n, k), generator=draw)
    codes = torch.zeros(n, m).scatter_(1, chosen, 1 + torch.rand(n, k, generator=draw))
    return codes @ directions + 0.05 * torch.randn(n, d, generator=draw)


def explained(x: Tensor, found: Tensor) -> float:
    return 1 - float((x - found).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def ours(site: Any, m: int, k: int, steps: int, batch: int) -> Callable[[Tensor], Tensor]:
    made = SparseAutoencoder(m, "topk", k=k, steps=steps, batch_size=batch, rate=RATE).fit(site)
    return made.dictionary().reconstruct


def saelens(x: Tensor, m: int, k: int, steps: int, batch: int) -> Callable[[Tensor], Tensor]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]

    made = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=m, k=k))
    with torch.no_grad():
        made.b_dec.copy_(x.mean(0))
    optimiser, draw, dead = (
        torch.optim.Adam(made.parameters(), lr=RATE),
        shuffled(x, batch),
        torch.zeros(m, dtype=torch.bool),
    )
    for step in range(steps):
        rows = draw(step, torch.Generator())
        given = TrainStepInput(rows, made.get_coefficients(), dead, step, False)  # pyright: ignore[reportCallIssue]
        optimiser.zero_grad()
        made.training_forward_pass(given).loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
    return lambda rows: made.decode(made.encode(rows))


def sparsify(x: Tensor, m: int, k: int, steps: int, batch: int) -> Callable[[Tensor], Tensor]:
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    made = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=m, k=k))
    with torch.no_grad():
        made.b_dec.copy_(x.mean(0))
    optimiser, draw = torch.optim.Adam(made.parameters(), lr=RATE), shuffled(x, batch)
    for step in range(steps):
        found = made(draw(step, torch.Generator()), dead_mask=torch.zeros(m, dtype=torch.bool))
        (found.fvu + found.auxk_loss / 32).backward()
        made.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        made.set_decoder_norm_to_unit_norm()
    return lambda rows: made(rows).sae_out


def overcomplete(x: Tensor, m: int, k: int, steps: int, batch: int) -> Callable[[Tensor], Tensor]:
    from overcomplete.sae import TopKSAE, train_sae  # pyright: ignore[reportMissingImports]

    made, draw = TopKSAE(x.shape[1], nb_concepts=m, top_k=k, device="cpu"), shuffled(x, batch)
    rows = [draw(step, torch.Generator()) for step in range(steps)]

    def loss(given: Tensor, found: Tensor, *_: Any) -> Tensor:
        return (given - found).pow(2).mean()

    train_sae(made, rows, loss, torch.optim.Adam(made.parameters(), lr=RATE), nb_epochs=1, monitoring=0)
    return lambda given: made(given)[2]


PEERS = {"SAELens": saelens, "Sparsify": sparsify, "overcomplete": overcomplete}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("rows", 20000),
        ("units", 256),
        ("latents", 1024),
        ("k", 16),
        ("steps", 60),
        ("batch", 1024),
        ("repeats", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    x = planted(given.rows, given.units, given.latents, given.k)
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "store", {"site": SiteSpec.like(x)}) as writer:
            writer.append({"site": x})
        site = Store(Path(folder) / "store")["site"]
        sizes = (given.latents, given.k, given.steps, given.batch)
        sides: dict[str, Callable[[], Any]] = {"netloupe": lambda: ours(site, *sizes)}
        for name, train in PEERS.items():
            try:
                train(x[:100], given.latents, given.k, 1, 50)
            except ImportError as error:
                print(f"{name} is left out: {error}")
            else:
                sides[name] = lambda train=train: train(x, *sizes)
        quality = {name: explained(x, run()(x).detach()) for name, run in sides.items()}
        print("explained:", {name: round(value, 4) for name, value in quality.items()})
        if quality["netloupe"] < max(quality.values()) - 0.02:
            print("ours explains less after equally many steps")
        seconds = alternate(sides, given.repeats)
        print_table(seconds, "netloupe")
        print({name: f"{given.steps / float(np.median(values)):.1f} steps/s" for name, values in seconds.items()})


if __name__ == "__main__":
    main()
