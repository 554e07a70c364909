"""Temporal change beside plain array expressions, and the run by changes beside the run by frames.

    python bench/delta_activation.py [--samples 2000 4000 8000] [--units 1024] [--repeats 7]

The lens must give what ``diff``, comparisons and means give, and faster. The run by changes must give what the network
gives frame by frame; its result is the count of multiply-adds: unstructured changes save no time on this kind of machine,
so its seconds are printed as information. One thread.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
from support.timing import alternate, exponent, print_table, ratio
from torch import Tensor, nn

from netloupe.data.video import moving_digits
from netloupe.lenses.activity.temporal import temporal_change
from netloupe.nn.delta import OverFrames, calibrate_steps, insert_delta
from netloupe.nn.delta_inference import DeltaRunner


def make(n_samples: int, n_units: int) -> np.ndarray:
    """Rectified values of which about a third changes from sample to sample."""
    draw = np.random.default_rng(n_samples)
    steps = draw.standard_normal((n_samples, n_units), np.float32) * (draw.random((n_samples, n_units)) < 0.33)
    return np.maximum(0.2 * steps.cumsum(0, dtype=np.float32), 0)


def plain_numpy(x: np.ndarray) -> tuple[float, ...]:
    change = np.abs(np.diff(x, axis=0))
    moved, nonzero = change > 0, x != 0
    size = np.abs(x)
    levels = (size[1:].sum(dtype=np.float64) + size[:-1].sum(dtype=np.float64)) / 2
    still, steps = (moved.mean(0) == 0).mean(), moved.mean(1)
    return (
        float(steps.mean()),
        float(nonzero.mean(0).mean()),
        float(change.sum(dtype=np.float64) / levels),
        float(still),
    )


def plain_torch(x: Tensor) -> tuple[float, ...]:
    change = (x[1:] - x[:-1]).abs()
    moved, nonzero = change > 0, x != 0
    size = x.abs()
    levels = (size[1:].sum(dtype=torch.float64) + size[:-1].sum(dtype=torch.float64)) / 2
    still, steps = (moved.sum(0) == 0).double().mean(), moved.sum(1) / x.shape[1]
    return (
        float(steps.double().mean()), float((nonzero.sum(0) / len(x)).mean()),
        float(change.sum(dtype=torch.float64) / levels), float(still),
    )  # fmt: skip


def by_lens(x: np.ndarray) -> tuple[float, ...]:
    return tuple(list(temporal_change(x).summary().values())[:4])


def lens_side(options: argparse.Namespace) -> None:
    medians = []
    for n in options.samples:
        x = make(n, options.units)
        sides: dict[str, Callable[[], object]] = {
            "netloupe": lambda x=x: by_lens(x),
            "numpy": lambda x=x: plain_numpy(x),
            "torch": lambda x=x: plain_torch(torch.from_numpy(x)),
        }
        worst = max(np.abs(np.subtract(side(), by_lens(x))).max() for side in sides.values())
        if worst > 1e-5:
            raise SystemExit(f"the answers differ by {worst:.1e}")
        seconds = alternate(sides, options.repeats)
        peers = ", ".join(
            f"{name} / netloupe {ratio(seconds[name], seconds['netloupe']):.2f}" for name in ("numpy", "torch")
        )
        print(f"n = {n}, d = {options.units}: answers within {worst:.1e}; {peers}")
        print_table(seconds, "netloupe")
        medians.append(float(np.median(seconds["netloupe"])))
    print(f"lens: time grows as n^{exponent(np.array(options.samples), np.array(medians)):.2f}")


def run_side(repeats: int) -> None:
    torch.manual_seed(0)
    clips, _ = moving_digits(20, 40, size=32)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 64, 64), nn.ReLU(), nn.Linear(64, 10),
    ).double().eval()  # fmt: skip
    clips = clips.double()
    for c in (0.5, 2.0):
        model = copy.deepcopy(network)
        insert_delta(model, clips[:1, 0], grad="none")
        calibrate_steps(OverFrames(model), clips, c)
        runner, frames = DeltaRunner(model), list(clips[0].split(1))

        def by_changes(runner: DeltaRunner = runner, frames: list[Tensor] = frames) -> Tensor:
            runner.reset()
            return torch.cat([runner.step(frame).out for frame in frames])

        with torch.no_grad():
            expected = OverFrames(model)(clips[:1])[0]
        gap = float((by_changes() - expected).abs().max())
        if gap > 1e-12:
            raise SystemExit(f"the run by changes differs by {gap:.1e}")
        runner.reset()
        steps = [runner.step(frame) for frame in frames]
        saved = sum(step.dense_ops for step in steps) / sum(step.ops for step in steps)

        def plain(frames: list[Tensor] = frames) -> Tensor:
            with torch.no_grad():
                return torch.cat([network(frame) for frame in frames])

        seconds = alternate({"by changes": by_changes, "dense convolutions": plain}, repeats)
        print(
            f"steps of {c} deviations, 40 frames: answers within {gap:.1e}; dense / changed multiply-adds {saved:.2f}"
        )
        print_table(seconds, "dense convolutions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 4000, 8000])
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lens_side(options)
    run_side(options.repeats)


if __name__ == "__main__":
    main()
