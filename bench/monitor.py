"""What the monitor adds to a training step at its default cadence, beside recomputing the same numbers from plain hooks.

    python bench/monitor.py [--repeats 7]

Goal: under 3 % of a training step. A look costs one step in a hundred something, so both are timed by themselves: the step
without and the step with a look, alternating, and the difference is divided by the cadence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from support.timing import alternate
from torch import Tensor, nn

import netloupe
from netloupe.core.vitals import rows_of, vitals
from netloupe.data import digits
from netloupe.models.gpt import ByteGPT
from netloupe.models.small import DigitsCNN, mlp

CADENCE = 100


def training(model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """One optimiser step on a fixed batch."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-6)

    def step() -> None:
        value = loss(model(inputs))
        adam.zero_grad()
        value.backward()
        adam.step()

    return step


def by_hooks(model: nn.Module, sites: list[str], step: Callable[[], None]) -> None:
    """What a user would write: keep every output, and compute with numpy afterwards."""
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(site).register_forward_hook(lambda m, i, o, s=site: kept.update({s: o.detach()}))
        for site in sites
    ]
    step()
    for handle in handles:
        handle.remove()
    for value in kept.values():
        axis = 1 if value.ndim == 4 else value.ndim - 1
        rows = rows_of(value, axis).numpy()
        np.abs(rows).max(), np.median(np.abs(rows)), np.sqrt((rows**2).mean()), (np.ptp(rows, axis=0) == 0)
        values = np.linalg.eigvalsh(np.atleast_2d(np.cov(rows.T, ddof=0)))
        values.sum() ** 2 / (values**2).sum()


def agree(model: nn.Module, site: str, inputs: Tensor) -> None:
    """Both ways give the same numbers where no row is left out."""
    with torch.no_grad(), netloupe.tap(model, site) as values:
        model(inputs[:6])
    rows = rows_of(values[site], 1 if values[site].ndim == 4 else values[site].ndim - 1)[:150]
    spectrum = np.linalg.eigvalsh(np.cov(rows.numpy().T, ddof=0))
    np.testing.assert_allclose(vitals(rows).dimension, spectrum.sum() ** 2 / (spectrum**2).sum(), rtol=1e-3)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    images, labels = digits()
    tokens = torch.randint(0, 256, (24, 64), generator=torch.Generator().manual_seed(0))
    wide = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    cases: list[tuple[str, nn.Module, Tensor, Callable[[Tensor], Tensor]]] = [
        ("digits CNN, batch 64", DigitsCNN(), images[:64], lambda out: F.cross_entropy(out, labels[:64])),
        ("MLP 512-1024-1024, batch 512", mlp(512, (1024, 1024), 10), wide, lambda out: out.square().mean()),
        ("byte GPT 4 x 96, 24 x 64 bytes", ByteGPT(random_state=0), tokens,
         lambda out: F.cross_entropy(out[:, :-1].reshape(-1, 256), tokens[:, 1:].reshape(-1))),
        ("byte GPT 6 x 384, 16 x 128 bytes", ByteGPT(384, 6, 6, 1024, 128, random_state=0),
         tokens.view(12, 128), lambda out: out.float().logsumexp(-1).mean()),
    ]  # fmt: skip
    print(f"{torch.get_num_threads()} threads, median of {options.repeats} alternating runs")
    for name, model, inputs, loss in cases:
        step = training(model, inputs, loss)
        quiet = netloupe.monitor(model, every=10**9, on_alert=lambda alert: None)
        step(), quiet()  # the first look is done: nothing is attached any more
        looking = netloupe.monitor(model, every=1, on_alert=lambda alert: None)
        looking.close()
        agree(model, looking.sites[0], inputs)

        def look(step: Callable[[], None] = step, watch: netloupe.Monitor = looking) -> None:
            watch._arm()
            step()
            watch()
            watch.close()

        seconds = alternate(
            {
                "step": step,
                "step, monitor idle": lambda step=step, watch=quiet: (step(), watch()),
                "step with a look": look,
                "step with plain hooks": lambda model=model, step=step, sites=looking.sites: by_hooks(
                    model, sites, step
                ),
            },
            options.repeats,
            warm_up=2,
        )
        bare = float(np.median(seconds["step"]))
        added = float(np.median(seconds["step with a look"] - seconds["step"]))
        plain = float(np.median(seconds["step with plain hooks"] - seconds["step"]))
        idle = float(np.median(seconds["step, monitor idle"] - seconds["step"]))
        print(
            f"  {name:34s} step {1e3 * bare:7.2f} ms; a look at {len(looking.sites)} sites adds {1e3 * added:6.2f} ms "
            f"(plain hooks and numpy {1e3 * plain:7.2f} ms); at one look in {CADENCE} steps "
            f"{100 * added / bare / CADENCE:.2f} % of a step (goal: under 3 %); idle {100 * idle / bare:+.2f} %"
        )


if __name__ == "__main__":
    main()
