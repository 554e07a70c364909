"""Concepts read in a small network, what follows from them, and what pushing does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from netloupe.core.intervene import intervene
from netloupe.core.nulls import random_direction
from netloupe.core.statistics.ranking import best_threshold
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.logic_tasks import (
    CONCEPTS,
    COUNTRIES,
    OBJECTS,
    LogicItem,
    country_rules,
    pronto_like,
    rail2country_like,
)  # fmt: skip
from netloupe.lenses.control.concepts import ConceptDictionary
from netloupe.lenses.control.reasoning import ActivationReasoner, Reading, steering_edit
from netloupe.lenses.control.rules import RuleBase
from netloupe.studies._activation_reasoning_network import DOT, NAMES, SITE, Coded, World, prompts

KINDS: dict[str, tuple[Any, int]] = {
    "single": ("single", 1),
    "multi-5": ("multi", 5),
    "multi-10": ("multi", 10),
    "tree": ("relation", 10),
}
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def accuracy(found: ConceptDictionary, coded: Coded) -> np.ndarray:
    """Balanced accuracy of every concept on tokens."""
    return found.evaluate(coded.codes, coded.labels, coded.samples).local


def detection_claims(worlds: Sequence[World]) -> list[Claim]:
    """How well each kind of dictionary tells concepts in sentences of other templates."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*KINDS, "shuffled", "random", "random-single")}
    published = []
    for world in worlds:
        rng = np.random.default_rng(world.seed)
        for name, (mode, k) in KINDS.items():
            rows[name].append(accuracy(world.tree if mode == "relation" else world.concepts(mode, k), world.held_out))
        shuffled = world.concepts("relation", labels=world.fitted.labels[rng.permutation(len(world.fitted.labels))])
        rows["shuffled"].append(accuracy(shuffled, world.held_out))
        for name, kind in (("random", "multi-10"), ("random-single", "single")):
            mode, k = KINDS[kind]
            found = world.concepts(mode, k)
            found.latents_ = [rng.permutation(found.n_latents_)[:k] for _ in NAMES]
            rows[name].append(accuracy(_rethresholded(found, world.fitted), world.held_out))
        published.append(accuracy(world.concepts("relation", top=2, search_top=10), world.held_out).mean())
    mean = {name: float(np.mean(values)) for name, values in rows.items()}
    each = {name: [float(one.mean()) for one in values] for name, values in rows.items()}
    worst = {name: float(np.min(rows[name])) for name in KINDS}
    note = (
        "balanced accuracy on held-out tokens "
        + ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
        + f"; worst concept: {', '.join(f'{name} {value:.3f}' for name, value in worst.items())}; trees that see only the published "
        f"10 and 2 largest codes of a token {np.mean(published):.3f}; collisions of multi-10 in the first network: "
        f"{len(worlds[0].concepts('multi').collisions_)} latents"
    )
    method = (
        "; trees are fitted on tokens, a change made when trees fitted on each text's mean, as published, reached 0.54 in a first run with "
        "one of the seeds"
    )
    few = "; a concept is a handful of words with latents of their own here, so that ten latents are nearly enough"

    def plot(axes: Any) -> None:
        axes.boxplot([np.concatenate(rows[name]) for name in rows], tick_labels=list(rows))
        axes.axhline(0.5, color="0.5", ls=":")
        axes.set(ylabel="balanced accuracy of a concept")
        axes.tick_params(axis="x", labelsize=6, rotation=30)

    def gap(one: str, other: str) -> list[float]:
        return [a - b for a, b in zip(each[one], each[other], strict=True)]

    return [
        Claim(
            "tree detects", "a decision tree on latents tells concepts on held-out tokens (mean balanced accuracy)",
            **over_seeds(each["tree"]), bar=Bar(">=", 0.93), control=max(mean["shuffled"], mean["random"]),
            control_statement="trees fitted on shuffled labels, or random latents (the better)", note=note + method, plot=plot,
        ),
        Claim(
            "tree above several latents", "the tree is better than ten weighted latents (difference of balanced accuracy)",
            **over_seeds(gap("tree", "multi-10")), bar=Bar(">=", 0.05), control=float(np.mean(gap("shuffled", "random"))),
            control_statement="trees fitted on shuffled labels less random latents", note=note + few, plot=plot,
        ),
        Claim(
            "several latents against one", "ten weighted latents are no worse than the best one (difference of balanced accuracy)",
            **over_seeds(gap("multi-10", "single")), bar=Bar(">=", -0.02), control=float(np.mean(gap("random", "single"))),
            control_statement="ten random latents less the best one", plot=plot,
        ),
    ]  # fmt: skip


def _rethresholded(found: ConceptDictionary, fitted: Coded, labels: np.ndarray | None = None) -> ConceptDictionary:
    """With token thresholds fitted anew."""
    wanted, scores = fitted.labels if labels is None else labels, found.scores(fitted.codes)
    found.threshold_ = np.array([best_threshold(scores[:, [c]], wanted[:, c])[0][0] for c in range(len(NAMES))])
    return found


def threshold_claim(worlds: Sequence[World]) -> Claim:
    """Fitted thresholds against none."""
    gains, fitted, shuffled, leaks = [], {name: [] for name in KINDS}, [], []
    for world in worlds:
        rng, per_kind, per_kind_shuffled = np.random.default_rng(world.seed + 5), [], []
        for name, (mode, k) in KINDS.items():
            auto, zero = world.concepts(mode, k), world.concepts(mode, k, tau=0.0)
            base = accuracy(zero, world.held_out).mean()
            per_kind.append(accuracy(auto, world.held_out).mean() - base)
            fitted[name].append(per_kind[-1])
            leaks.append(auto.evaluate(world.fitted.codes, world.fitted.labels, world.fitted.samples).leaked)
            wrong = _rethresholded(auto, world.fitted, world.fitted.labels[rng.permutation(len(world.fitted.labels))])
            per_kind_shuffled.append(accuracy(wrong, world.held_out).mean() - base)
        gains.append(float(np.mean(per_kind)))
        shuffled.append(float(np.mean(per_kind_shuffled)))

    def plot(axes: Any) -> None:
        axes.bar(list(fitted), [np.mean(values) for values in fitted.values()])
        axes.axhline(float(np.mean(shuffled)), color="C3", ls=":", label="thresholds from shuffled labels")
        axes.set(ylabel="gain over threshold 0")
        axes.legend(frameon=False, fontsize=7)

    return Claim(
        "thresholds matter", "thresholds fitted on training tokens beat 0 on held-out ones (gain in balanced accuracy, mean over kinds)",
        **over_seeds(gains), bar=Bar(">", 0.0), control=float(np.mean(shuffled)),
        control_statement="thresholds fitted on shuffled labels",
        note="gain " + ", ".join(f"{name} {np.mean(values):.3f}" for name, values in fitted.items())
        + f"; an evaluation on the fitted sentences is flagged as leaked ({np.mean(leaks):.0%} of their texts), on held-out ones not",
        plot=plot,
    )  # fmt: skip


def reasoner(world: World, rules: RuleBase | None = None, **options: Any) -> ActivationReasoner:
    """The network with the concepts that trees detect."""
    return ActivationReasoner(
        world.model, SITE, world.encoder, world.tree, rules or RuleBase(), special=[world.number[DOT]], **options
    )


def first_sentences(items: Sequence[LogicItem]) -> list[LogicItem]:
    """The sentence that tells the fact, without rules and question."""
    return [LogicItem(item.words[: item.words.index(DOT)], item.spans) for item in items]


def _decided(readings: Sequence[Reading], items: Sequence[LogicItem], bases: Sequence[RuleBase]) -> np.ndarray:
    """Which answers are right, from the facts that were read and these rules."""
    said = [base.prove(i.goal, r.facts).value for r, i, base in zip(readings, items, bases, strict=True)]
    return np.array([bool(one) is item.answer for one, item in zip(said, items, strict=True)])


def _shuffled_rules(text: str, seed: int) -> RuleBase:
    rules = [line.split(" is ") for line in text.splitlines()]
    heads = np.random.default_rng(seed).permutation([head for _, head in rules])
    return RuleBase([f"{body} is {head}" for (body, _), head in zip(rules, heads, strict=True)])


def hop_claims(worlds: Sequence[World]) -> list[Claim]:
    """Accuracy on chains of one to five rules, beside a probe without rules."""
    setting = worlds[0].setting
    curves: dict[str, list[list[float]]] = {"with rules": [], "rules used once": [], "probe": [], "shuffled rules": []}
    exact, exact_shuffled, right, spurious = [], [], [], []
    for world in worlds:
        row: dict[str, list[float]] = {name: [] for name in curves}
        for hops in setting.hops:
            items = pronto_like(setting.items, hops, seed=1000 * world.seed + hops)
            bases = [RuleBase.parse(item.rules) for item in items]
            texts = [world.tokens(one.words) for one in first_sentences(items)]
            readings = reasoner(world).read(texts, bases)
            good = np.array([set(r.facts) == set(i.facts) for r, i in zip(readings, items, strict=True)])
            decided = _decided(readings, items, bases)
            wrong = [_shuffled_rules(item.rules, at) for at, item in enumerate(items)]
            confused = _decided(readings, items, wrong)
            once = [
                (item.goal in {head for rule, _ in base.simple(list(r.facts), 1e-9) for head in rule.heads}) is item.answer
                for r, base, item in zip(readings, bases, items, strict=True)
            ]  # fmt: skip
            values = (decided.mean(), np.mean(once), _probe(world, items, hops), confused.mean())
            for name, value in zip(curves, values, strict=True):
                row[name].append(float(value))
            right.append(good.mean())
            spurious.append(np.mean([len(set(r.facts) - set(i.facts)) for r, i in zip(readings, items, strict=True)]))
            exact.append(float(decided[good].mean()))
            exact_shuffled.append(float(confused[good].mean()))
        for name, values in row.items():
            curves[name].append(values)
    means = {name: np.mean(values, axis=0) for name, values in curves.items()}
    spread = [max(one) - min(one) for one in curves["with rules"]]
    lead = [one[-1] - other[-1] for one, other in zip(curves["with rules"], curves["probe"], strict=True)]
    note = (
        f"accuracy at {', '.join(map(str, setting.hops))} hops: "
        + "; ".join(f"{name} {', '.join(f'{v:.3f}' for v in values)}" for name, values in means.items())
        + f"; the facts of {np.mean(right):.1%} of the texts are read exactly, {np.mean(spurious):.3f} wrong ones a text"
    )

    def plot(axes: Any) -> None:
        for name, values in means.items():
            axes.plot(setting.hops, values, "o-", label=name)
        axes.set(xlabel="rules in the chain", ylabel="accuracy", ylim=(0.4, 1.03))
        axes.legend(frameon=False, fontsize=7)

    return [
        Claim(
            "flat in hops", "accuracy does not depend on the length of the chain (largest less smallest over hops)",
            **over_seeds(spread), bar=Bar("<", 0.05), control=float(means["rules used once"][0] - means["rules used once"][-1]),
            control_statement="every rule used once, without chaining: what is lost from the shortest to the longest chain",
            note=note, plot=plot,
        ),
        Claim(
            "above a probe", "at the longest chain the rules beat a linear probe on the text's mean state (difference of accuracy)",
            **over_seeds(lead), bar=Bar(">=", 0.1), control=float((means["shuffled rules"] - means["probe"])[-1]),
            control_statement="the same with the heads of the rules shuffled", note=note, plot=plot,
        ),
        Claim(
            "errors are of detection", "where the facts are read right the answer is right (share, over all hops)",
            float(np.mean(exact)), Bar("==", 1.0), float(np.mean(exact_shuffled)),
            "the same with the heads of the rules shuffled", note=note, plot=plot,
        ),
    ]  # fmt: skip


def _probe(world: World, items: Sequence[LogicItem], hops: int) -> float:
    """Logistic regression on the mean state of whole texts, rules and question included, from as many other items."""
    train = pronto_like(2 * len(items), hops, seed=1000 * world.seed + hops + 500)
    parts = [
        (
            torch.stack([one.mean(0) for one in world.states(group)]).numpy(),
            np.array([item.answer is True for item in group]),
        )
        for group in (train, items)
    ]
    (x, y), (x_test, y_test) = parts
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, y)
    return float(model.score(x_test, y_test))


def country_claim(worlds: Sequence[World]) -> Claim:
    """Flags of trains whose colours are said, or those of things."""
    margins, swapped_margins, rows = [], [], []
    chance = 1 / len(COUNTRIES)
    for world in worlds:
        found = {}
        for meta in (False, True):
            items = rail2country_like(world.setting.items, meta, seed=1000 * world.seed + meta)
            readings = reasoner(world).read([world.tokens(item.words) for item in items])
            for name, text in (("as they are", country_rules()), ("swapped", country_rules(("red", "white")))):
                base, rng = RuleBase.parse(text), np.random.default_rng(world.seed)
                said = [_country(base, reading, item, rng) for reading, item in zip(readings, items, strict=True)]
                found[meta, name] = float(np.mean([one == item.answer for one, item in zip(said, items, strict=True)]))
        rows.append(found)
        explicit, meta_, wrong = found[False, "as they are"], found[True, "as they are"], found[True, "swapped"]
        margins.append(min(explicit - meta_, meta_ - chance - 0.3))
        swapped_margins.append(min(found[False, "swapped"] - wrong, wrong - chance - 0.3))
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}

    def plot(axes: Any) -> None:
        for at, name in enumerate(("as they are", "swapped")):
            axes.bar(np.arange(2) + 0.4 * at, [mean[False, name], mean[True, name]], 0.38, label=f"rules {name}")
        axes.axhline(chance, color="0.5", ls=":", label="chance")
        axes.set(xticks=[0.2, 1.2], ylabel="right flags", ylim=(0, 1.3))
        axes.set_xticklabels(["colour said", "thing named"])
        axes.legend(frameon=False, fontsize=7)

    return Claim(
        "derived and never mentioned",
        "flags follow from colours that are only those of things, less often than from colours that are said, and well above chance "
        "(the smaller of explicit less meta, and of meta less chance less 0.3)",
        **over_seeds(margins), bar=Bar(">", 0.0), control=float(np.mean(swapped_margins)),
        control_statement="the same with red and white exchanged in the rules; a train without a flag gets a random one",
        note=f"right flags: colour said {mean[False, 'as they are']:.3f}, thing named {mean[True, 'as they are']:.3f}, rules swapped "
        f"{mean[False, 'swapped']:.3f} and {mean[True, 'swapped']:.3f}, chance {chance:.3f}; three wagons must be read right, and "
        "sentences of trains have a form of their own",
        plot=plot,
    )  # fmt: skip


def _country(base: RuleBase, reading: Reading, item: LogicItem, rng: np.random.Generator) -> str:
    """The flag that follows from the strongest colour of each wagon; a random one where none or several do."""
    rows = [at for at, word in enumerate(item.words) if word != DOT]
    facts = {}
    for first, last, place in item.segments:
        local = reading.local[[at for at, row in enumerate(rows) if first <= row < last], : len(OBJECTS)].max(0)
        if local.max() > 0:
            facts[f"{NAMES[int(local.argmax())]}({place})"] = float(local.max())
    derived = [one for one in base.closure(facts).derived if one in COUNTRIES]
    return derived[0] if len(derived) == 1 else str(rng.choice(list(COUNTRIES)))


def steering_claims(worlds: Sequence[World]) -> list[Claim]:
    """Log-odds of a derived concept's words as the network is pushed towards it, or along random directions."""
    curves, away, ratios, random_ratios, moved, moved_half = [], [], [], [], [], []
    for world in worlds:
        rng = np.random.default_rng(world.seed)
        pairs = [(one, str(rng.choice([other for other in NAMES if other != one]))) for one in NAMES for _ in range(3)]
        tokens, wanted = prompts(world, pairs)
        bases = [RuleBase([f"{one} is {other}"]) for one, other in pairs]
        layer = reasoner(world, steer_by=world.topics)
        vectors = _pushed(layer, tokens, bases, wanted)
        words = [[world.number[word] for word in (*CONCEPTS[one], *OBJECTS.get(one, ()))] for one in wanted]
        clean = log_odds(world, tokens, words, None)
        curve = [log_odds(world, tokens, words, steering_edit(SITE, vectors, gamma)) - clean for gamma in GAMMAS]
        back = [log_odds(world, tokens, words, steering_edit(SITE, -vectors, gamma)) - clean for gamma in GAMMAS]
        random = []
        for at in range(world.setting.n_random + 1):
            noise = torch.stack(
                [
                    random_direction(torch.ones_like(v), 10_000 * world.seed + 100 * at + i)
                    for i, v in enumerate(vectors)
                ]
            )
            random.append(abs(float((log_odds(world, tokens, words, steering_edit(SITE, noise, 0.5)) - clean).mean())))
        curves.append(np.mean(curve, axis=1))
        away.append(np.mean(back, axis=1))
        ratios.append(float(curves[-1][2] / np.mean(random[1:])))
        random_ratios.append(random[0] / float(np.mean(random[1:])))
        with torch.no_grad():
            plain = world.model(tokens)
            for gamma, into in ((0.0, moved), (0.5, moved_half)):
                with intervene(world.model, steering_edit(SITE, vectors, gamma)):
                    into.append(float((world.model(tokens) - plain).abs().max()))

    def plot(axes: Any) -> None:
        axes.plot(GAMMAS, np.mean(curves, axis=0), "o-", label="towards the derived concept")
        axes.plot(GAMMAS, np.mean(away, axis=0), "s--", label="away from it")
        axes.axhline(0, color="0.6", lw=0.6)
        axes.set(xlabel="strength, in lengths of the state", ylabel="change of log-odds of its words")
        axes.legend(frameon=False, fontsize=7)

    rises = [float(np.diff(one).min()) for one in curves]
    risen = ", ".join(f"{g:g}: {v:.2f}" for g, v in zip(GAMMAS, np.mean(curves, axis=0), strict=True))
    flat = (
        "; in so small a network any push of this length flattens predictions, which favours rare words: the other way raises them "
        f"by {np.mean(away, axis=0)[-1]:.2f} at strength 1"
    )
    return [
        Claim(
            "steering raises", "log-odds of the derived concept's words rise with every step of strength (the smallest mean rise, 0 to 1)",
            **over_seeds(rises), bar=Bar(">", 0.0), control=float(np.mean([np.diff(one).min() for one in away])),
            control_statement="pushed the other way",
            note=f"mean change at strength {risen}{flat}",
            plot=plot,
        ),
        Claim(
            "above random directions", "the rise at strength 0.5 is more than three times what random directions change (ratio)",
            **over_seeds(ratios), bar=Bar(">", 3.0), control=float(np.mean(random_ratios)),
            control_statement="one more random direction for each text, of the same length", note=flat.lstrip("; "), plot=plot,
        ),
        Claim(
            "strength 0 is nothing", "at strength 0 the outputs are those of the network, bit for bit (largest difference)",
            float(max(moved)), Bar("==", 0.0), float(min(moved_half)), "at strength 0.5", plot=plot,
        ),
    ]  # fmt: skip


def _pushed(
    layer: ActivationReasoner, tokens: torch.Tensor, bases: Sequence[RuleBase], wanted: Sequence[str]
) -> torch.Tensor:
    """What follows from each text is pushed; a text in which its concept is not read gets zeros, and counts so."""
    readings = layer.read(tokens, bases)
    vectors, pushed = layer.steering(readings)
    kept = torch.tensor([one in signs for one, signs in zip(wanted, pushed, strict=True)])
    return vectors * kept[:, None]


def log_odds(world: World, tokens: torch.Tensor, words: Sequence[Sequence[int]], edit: Any) -> np.ndarray:
    """Of the next word being one of ``words``, for each text."""
    with torch.no_grad(), intervene(world.model, *([] if edit is None else [edit])):
        logprob = world.model(tokens)[:, -1].double().log_softmax(-1)
    inside = torch.stack([row[list(mine)].logsumexp(0) for row, mine in zip(logprob, words, strict=True)])
    return (inside - torch.log1p(-inside.exp())).numpy()
