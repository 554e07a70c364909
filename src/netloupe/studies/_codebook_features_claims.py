"""Claims of the codebook-features study on the token-level machine, each with its control."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from netloupe.core.study import Bar, Claim
from netloupe.lenses.dictionary.codes import (
    Interchange,
    Law,
    code_bits,
    code_counts,
    code_purity,
    code_scores,
    interchange,
    neuron_precision_at_recall,
    next_token_law,
)
from netloupe.nn.codebook_model import CodebookModel
from netloupe.studies._codebook_features_network import Spec, World, table_entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_RECALL = 0.2
RARE = 10  # codes that fire less often say nothing about purity
FEW = 4  # codes of the control's tables
N_PAIRS = 200


def bars(values: dict[str, float], label: str, line: float | None = None) -> Callable[[Axes], None]:
    """One bar a name."""

    def plot(axes: Axes) -> None:
        axes.barh(list(values)[::-1], list(values.values())[::-1], color="C0", height=0.6)
        if line is not None:
            axes.axvline(line, color="0.3", ls="--", lw=1)
        axes.set(xlabel=label)

    return plot


def accuracy_claims(world: World) -> Iterator[Claim]:
    """Attention alone is cheap to quantise, both are dear."""
    few = Spec("attention", n_codes=1)
    nets = {"plain": world.plain, "attention": world.net(Spec("attention")), "mlp": world.net(Spec("mlp"))}
    nets |= {"attention and mlp": world.net(Spec("both")), "attention, one code": world.net(few)}
    found = {name: world.accuracy(net) for name, net in nets.items()}
    losses = {name: world.loss(net) for name, net in nets.items()}
    bigram = world.machine.bigram_accuracy(world.setting.length)
    said = ", ".join(f"{name} {value:.3f} ({losses[name]:.3f} nats)" for name, value in found.items())
    note = (
        f"Transition accuracy and loss: {said}; a predictor that sees one token reaches {bigram:.3f}, the least possible loss is "
        f"{world.machine.entropy_floor(world.setting.length):.3f}."
    )
    yield Claim(
        "attention is cheap",
        "with codebooks on attention alone (one code a head) transition accuracy falls by at most 0.05",
        found["attention"] - found["plain"],
        Bar(">=", -0.05),
        found["attention, one code"] - found["plain"],
        "tables of one code on attention, which then carries nothing",
        note=note,
        plot=bars({**found, "one token seen": bigram}, "transition accuracy"),
    )
    yield Claim(
        "both are dearer",
        "codebooks on attention and feed-forward blocks cost more accuracy than on attention alone",
        found["attention"] - found["attention and mlp"],
        Bar(">", 0.0),
        found["attention, one code"] - found["attention and mlp"],
        "tables of one code on attention in place of those of the claim",
        note=note,
        plot=bars(losses, "nats a token", world.machine.entropy_floor(world.setting.length)),
    )


def precisions(
    world: World, model: CodebookModel, min_recall: float = MIN_RECALL, shuffle: int | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each table: precision of every state's code, of the best unit at the same recall, and that recall.

    A state's code is the one of the highest recall on the state's last digit, if above ``min_recall``.
    """
    states = world.machine.states(world.judged).flatten().numpy()
    if shuffle is not None:
        ends = np.flatnonzero(states >= 0)
        states[ends] = np.random.default_rng(shuffle).permutation(states[ends])
    known = np.array([state for state in range(world.machine.n_states) if (states == state).any()])
    masks = states[:, None] == known
    made = {}
    for site, ids in world.ids(model).items():
        scores = [code_scores(ids, mask.reshape(ids.shape[:2]), model[site].n_codes) for mask in masks.T]
        best = [int(np.argmax(each.recall)) for each in scores]
        recall = np.array([each.recall.flat[code] for each, code in zip(scores, best)])
        precision = np.array([each.precision.flat[code] for each, code in zip(scores, best)])
        kept = recall > min_recall
        if kept.any():
            units = neuron_precision_at_recall(world.units(model, site), masks[:, kept], recall[kept]).max(0)
            made[site] = precision[kept], units, recall[kept]
    return made


def naming_claim(world: World) -> Claim:
    """Codes name states better than units."""
    model = world.net(Spec("mlp"))
    own, shuffled = precisions(world, model), precisions(world, model, 0.0, world.seed + 5)

    def gap(found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
        return (
            float(np.mean([code.mean() - unit.mean() for code, unit, _ in found.values()])) if found else float("nan")
        )

    def plot(axes: Axes) -> None:
        for i, (site, (code, unit, _)) in enumerate(own.items()):
            axes.plot(unit, code, ".", color=f"C{i}", alpha=0.7, label=site)
        axes.plot([0, 1], [0, 1], ":", color="0.4")
        axes.set(xlabel="precision of the best unit", ylabel="precision of the code", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize="small")

    said = "; ".join(
        f"{site}: {len(code)} states, codes {code.mean():.3f}, units {unit.mean():.3f}, recall {recall.mean():.3f}"
        for site, (code, unit, recall) in own.items()
    )
    return Claim(
        "codes name states",
        f"at equal recall (above {MIN_RECALL}) a code is at least 0.25 more precise about a state than the best unit of either sign",
        gap(own),
        Bar(">=", 0.25),
        gap(shuffled),
        "states shuffled over positions (every state's most frequent code, whatever its recall)",
        control_bar=Bar(">=", 0.05),
        note=f"Of {world.machine.n_states} states and {world.setting.network[0]} units. {said}.",
        plot=plot,
    )


def interchange_claim(world: World) -> Claim:
    """Codes of another state, put in, bring that state's next states."""
    model, machine = world.net(Spec("mlp")), world.machine
    draw = torch.Generator().manual_seed(world.seed)
    base = torch.randint(machine.n_states, (N_PAIRS,), generator=draw)
    source = (base + torch.randint(1, machine.n_states, (N_PAIRS,), generator=draw)) % machine.n_states
    prompts = machine.prompts()

    def patched(
        sites: Sequence[str] | None = None, codes: dict[str, Tensor] | None = None, law: Law = next_token_law
    ) -> Interchange:
        return interchange(model, prompts[base], prompts[source], law=law, sites=sites, codes=codes)

    drawn = {}
    for site, ids in world.ids(model).items():
        fired = torch.from_numpy(np.flatnonzero(code_counts(ids, model[site].n_codes)[0]))
        drawn[site] = fired[torch.randint(len(fired), (N_PAIRS, prompts.shape[1], 1, model[site].k), generator=draw)]
    whole, random = patched(), patched(codes=drawn)
    falls = {"all tables": whole, **{f"{site} alone": patched([site]) for site in model.sites}, "random codes": random}
    numbers = {name: one.summary()["fall"] for name, one in falls.items()}
    measured = whole.summary()
    states = patched(law=lambda net, tokens: machine.next_states(net, tokens)).summary()
    return Claim(
        "codes are causal",
        "another state's feed-forward codes at the last position take away at least 60 % of the divergence from its law of the next digit",
        numbers["all tables"],
        Bar(">=", 0.6),
        numbers["random codes"],
        "as many codes drawn from those in use",
        note=(
            f"Jensen-Shannon divergence {measured['before']:.3f} without codes, {measured['after']:.3f} with them; the fall by table: "
            + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
            + f". Of the next state, two digits, all tables take away {states['fall']:.2f}; attention still tells later positions both "
            "digits of the state as it was."
        ),
        plot=bars(numbers, "share of the divergence taken away", 0.6),
    )


def capacity_claims(world: World) -> Iterator[Claim]:
    """More states than units fit into codes, each for less the more codes there are."""
    sizes = [20, world.setting.n_codes // 4, world.setting.n_codes]
    nets = [world.net(Spec("mlp", n_codes=0 if size == world.setting.n_codes else size)) for size in sizes]
    tokens = world.judged
    keys = torch.cat([torch.full((len(tokens), 1), -1), tokens[:, :-1] * world.machine.vocab + tokens[:, 1:]], 1)
    mixed = keys.flatten()[torch.randperm(keys.numel(), generator=torch.Generator().manual_seed(world.seed))]

    def purities(of: Tensor) -> list[float]:
        return [
            float(np.mean([
                code_purity(ids, of, net[site].n_codes, min_count=RARE) for site, ids in world.ids(net).items()
            ])) for net in nets
        ]  # fmt: skip

    own, shuffled = purities(keys), purities(mixed)
    used = world.used(nets[-1])
    accuracies = [world.accuracy(net) for net in nets]
    width = world.setting.network[0]
    fresh = world.used(world.untrained(Spec("mlp")))
    ids = world.ids(nets[-1])
    entropy = table_entropy(nets[-1], ids)
    bits = code_bits(code_counts(ids[world.sites("mlp")[0]], sizes[-1]), 1, width)

    def plot(axes: Axes) -> None:
        axes.plot(sizes, own, "o-", label="purity")
        axes.plot(sizes, accuracies, "s--", label="transition accuracy")
        axes.plot(sizes, shuffled, ":", color="0.4", label="purity, pairs shuffled")
        axes.set(xlabel="codes a table", xscale="log", ylim=(-0.05, 1.05))
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")

    yield Claim(
        "purity rises with codes",
        "the more codes a table has, the larger the share of them that fires on one pair of digits only",
        float(np.diff(own).min()),
        Bar(">", 0.0),
        float(np.diff(shuffled).min()),
        "pairs of digits shuffled over positions",
        note=(
            f"The smaller rise. Tables of {', '.join(map(str, sizes))} codes: purity {', '.join(f'{one:.3f}' for one in own)} (codes that "
            f"fired at least {RARE} times), accuracy {', '.join(f'{one:.3f}' for one in accuracies)}."
        ),
        plot=plot,
    )
    yield Claim(
        "as many codes as states",
        "every feed-forward table uses at least as many codes as there are states",
        float(min(used.values())),
        Bar(">=", world.machine.n_states),
        float(min(fresh.values())),
        "as many rows drawn at random, before any training",
        note=(
            f"Codes in use: {', '.join(map(str, used.values()))}, before training {', '.join(map(str, fresh.values()))}. A table lets pass "
            f"at most {bits.most:.1f} bits a token ({', '.join(f'{one:.1f}' for one in entropy)} by how often codes fire) where the "
            f"{width} numbers have {bits.dense:.0f}: {bits.ratio:.0f} times less."
        ),
        plot=bars({**{site: float(n) for site, n in used.items()}, **{f"{site}, new": float(n) for site, n in fresh.items()}},
                  "codes in use", float(world.machine.n_states)),
    )  # fmt: skip


def gradient_claims(world: World) -> Iterator[Claim]:
    """What the reconstruction term in the tables' gradient is for."""
    nets = {
        "with reconstruction": world.net(Spec("mlp")),
        "task gradient only": world.net(Spec("mlp", backward="base")),
        "with, another seed": world.net(Spec("mlp", seed=1)),
    }
    errors = {name: world.error(net) for name, net in nets.items()}
    used = {name: float(np.mean(list(world.used(net).values()))) for name, net in nets.items()}
    own, base, other = nets
    accuracies = ", ".join(f"{name} {world.accuracy(net):.3f}" for name, net in nets.items())
    yield Claim(
        "reconstruction term, error",
        "without the reconstruction term in the tables' gradient the relative reconstruction error is more than 1.1 times as large",
        errors[base] / errors[own],
        Bar(">", 1.1),
        max(errors[other] / errors[own], errors[own] / errors[other]),
        "two networks with the term that differ in their seed (the larger over the smaller)",
        note=f"Errors: {', '.join(f'{name} {value:.3f}' for name, value in errors.items())}. Transition accuracy: {accuracies}.",
        plot=bars(errors, "relative reconstruction error"),
    )
    yield Claim(
        "reconstruction term, codes in use",
        "and at most 0.9 times as many codes are in use",
        used[base] / used[own],
        Bar("<=", 0.9),
        min(used[other] / used[own], used[own] / used[other]),
        "two networks with the term that differ in their seed (the smaller over the larger)",
        note=f"Codes in use a table: {', '.join(f'{name} {value:.0f}' for name, value in used.items())}.",
        plot=bars(used, "codes in use a table"),
    )


def bits_claims(world: World) -> Iterator[Claim]:
    """Loss against the number of codes a vector."""
    many, few = (1, 2, 4, 8), (1, 2, 4)
    own = [world.loss(world.net(Spec("mlp", k=k))) for k in many]
    poor = [world.loss(world.net(Spec("mlp", n_codes=FEW, k=k))) for k in few]
    attention, both = world.loss(world.net(Spec("attention"))), world.loss(world.net(Spec("both")))

    def plot(axes: Axes) -> None:
        axes.plot(many, own, "o-", label=f"{world.setting.n_codes} codes a table")
        axes.plot(few, poor, "s--", color="0.4", label=f"{FEW} codes")
        axes.plot([1], [both], "v", label="and attention")
        axes.plot([1], [attention], "^", label="attention alone")
        axes.axhline(world.machine.entropy_floor(world.setting.length), color="k", ls=":", lw=1, label="least possible")
        axes.set(xlabel="codes a vector", ylabel="nats a token", xscale="log")
        axes.set_xticks(many, [str(k) for k in many])
        axes.minorticks_off()
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")

    said = ", ".join(f"k = {k}: {loss:.4f}" for k, loss in zip(many, own))
    yield Claim(
        "more codes a vector, less loss",
        "with more codes a vector (1, 2, 4, 8) in feed-forward tables the loss never rises by more than 0.005",
        float(np.diff(own).max()),
        Bar("<=", 0.005),
        float(np.diff(poor).max()),
        f"tables of {FEW} codes (k = 1, 2, 4)",
        note=f"The largest rise. Nats a token: {said}; tables of {FEW}: {', '.join(f'{one:.4f}' for one in poor)}.",
        plot=plot,
    )
    yield Claim(
        "both at k = 1 is worst",
        "one code a vector in attention and feed-forward blocks loses more than any number of them in feed-forward blocks alone",
        both - max(own),
        Bar(">", 0.0),
        attention - max(own),
        "one code a head in attention alone, in its place",
        note=f"Both {both:.4f}, attention alone {attention:.4f}.",
        plot=plot,
    )
