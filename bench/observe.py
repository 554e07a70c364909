"""Statistics at every MLP site in one pass, beside the bare forward and beside capturing first and computing afterwards.

    python bench/observe.py [--batches 6] [--repeats 7]

Moments, sparsity, top-k and histogram after the activation function of each of BERT's six MLPs. The peers capture the same
tensors and then compute the same numbers with torch. Goal: at most 1.15 times the bare forward.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from support.bert import SITES, bare, bert, hooked, tokens
from support.timing import alternate, exponent, print_table, ratio

from netloupe import Counts, Moments, Quantiles, TopK, observe

K = 8
STATISTICS = {
    "moments": Moments,
    "sparsity": Counts,
    "top": lambda: TopK(K, distinct_samples=False),
    "histogram": Quantiles,
}
Numbers = dict[str, dict[str, np.ndarray]]


def afterwards(captured: dict[str, list[torch.Tensor]]) -> Numbers:
    """The same numbers with torch's operations from everything that was captured."""
    found: Numbers = {}
    for site, parts in captured.items():
        rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        variance, mean = torch.var_mean(rows.double(), dim=0, correction=0)
        low, high = (float(edge) for edge in rows.aminmax())
        found[site] = {
            "mean": mean.numpy(), "variance": variance.numpy(),
            "active": (rows > 0).sum(0).numpy(),
            "top": rows.topk(K, dim=0).values.T.numpy(),
            "histogram": torch.histc(rows, 100, low, high).numpy(),
        }  # fmt: skip
    return found


def ours(model: torch.nn.Module, batches: list[torch.Tensor]) -> Numbers:
    """netloupe."""
    found = observe(model, batches, STATISTICS, SITES)
    return {
        site: {
            "mean": found.result(site, "moments").mean, "variance": found.result(site, "moments").variance,
            "active": found.result(site, "sparsity").active, "top": found.result(site, "top").values,
            "histogram": found.result(site, "histogram").counts,
        }
        for site in SITES
    }  # fmt: skip


def with_hooks(model: torch.nn.Module, batches: list[torch.Tensor]) -> Numbers:
    """Plain forward hooks."""
    return afterwards(hooked(model, batches))


def with_nnsight(model: torch.nn.Module, batches: list[torch.Tensor]) -> Numbers:
    """nnsight's tracing context."""
    import nnsight

    wrapped = nnsight.NNsight(model)
    kept: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    for batch in batches:
        saved = []
        with torch.no_grad(), wrapped.trace(batch):
            for layer in range(6):
                saved.append(wrapped.encoder.layer[layer].intermediate.output.save())
        for site, value in zip(SITES, saved):
            kept[site].append(value)
    return afterwards(kept)


def with_torchlens(model: torch.nn.Module, batches: list[torch.Tensor]) -> Numbers:
    """TorchLens' trace of the operations that the sites name."""
    import torchlens

    kept: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    for batch in batches:
        with torch.no_grad():
            log = torchlens.trace(model, batch)
        for site in SITES:
            kept[site].append(log.modules[site].out)
    return afterwards(kept)


def with_pyvene(model: torch.nn.Module, batches: list[torch.Tensor]) -> Numbers:
    """pyvene's collect interventions on every MLP."""
    import pyvene

    components = [{"component": f"{site}.output", "intervention": pyvene.CollectIntervention()} for site in SITES]
    wrapped = pyvene.IntervenableModel(components, model=model)
    kept: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    for batch in batches:
        with torch.no_grad():
            (_, collected), _ = wrapped({"input_ids": batch}, unit_locations=None)
        for site, value in zip(SITES, collected):
            kept[site].append(value)
    return afterwards(kept)


def agree(one: Numbers, other: Numbers) -> None:
    """Stops where the numbers differ."""
    for site in SITES:
        np.testing.assert_allclose(one[site]["mean"], other[site]["mean"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one[site]["variance"], other[site]["variance"], rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(one[site]["active"], other[site]["active"])
        np.testing.assert_allclose(one[site]["top"], other[site]["top"], rtol=1e-6)
        assert one[site]["histogram"].sum() == other[site]["histogram"].sum()


def usable(
    peers: dict[str, Callable[..., Numbers]], model: torch.nn.Module, batches: list[torch.Tensor]
) -> dict[str, Callable[..., Numbers]]:
    """The peers that are installed, can read this network and give the same numbers; the others are named."""
    kept, expected = {}, ours(model, batches)
    for name, run in peers.items():
        try:
            agree(expected, run(model, batches))
            kept[name] = run
        except Exception as error:  # a peer that cannot do the task is a finding of the benchmark, not its end
            print(
                f"  {name}: left out, {type(error).__name__}: {str(error).strip().splitlines()[0][:110] if str(error).strip() else ''}"
            )
    return kept


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # a peer's remarks on the network's names
    model, batches = bert(), tokens(options.batches)
    peers = usable(
        {"plain hooks": with_hooks, "nnsight": with_nnsight, "TorchLens": with_torchlens, "pyvene": with_pyvene},
        model,
        batches[:1],
    )
    sides: dict[str, Callable[[], object]] = {
        "bare forward": lambda: bare(model, batches),
        "netloupe": lambda: ours(model, batches),
    }
    sides |= {name: (lambda run=run: run(model, batches)) for name, run in peers.items()}
    seconds = alternate(sides, options.repeats)
    print(f"{options.batches} batches of 16 x 128 tokens, {torch.get_num_threads()} threads, answers agree")
    print_table(seconds, "bare forward")
    print(
        f"  goal: netloupe at most 1.15 x bare forward; measured {ratio(seconds['netloupe'], seconds['bare forward']):.3f}"
    )
    sizes = np.array([2, 4, 8])
    costs = [np.median(alternate({"n": lambda n=n: ours(model, tokens(n))}, 3)["n"]) for n in sizes]
    print(f"  time against samples: exponent {exponent(sizes, np.array(costs)):.2f} (1 is linear)")
    extra = []
    for count in (1, 2, 3, 6):
        runs = alternate(
            {
                "bare": lambda: bare(model, batches[:3]),
                "sites": lambda c=count: observe(model, batches[:3], STATISTICS, SITES[:c]),
            },
            5,
        )
        extra.append(max(float(np.median(runs["sites"] - runs["bare"])), 1e-6))
    print("  time added by 1, 2, 3, 6 sites: " + ", ".join(f"{1e3 * value:.1f}" for value in extra) + " ms; "
          f"exponent {exponent(np.array([1, 2, 3, 6]), np.array(extra)):.2f} (1 is linear)")  # fmt: skip


if __name__ == "__main__":
    main()
