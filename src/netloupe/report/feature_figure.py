"""A feature card as a picture: examples, histogram, outputs, pushes, neighbours."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netloupe.report.examples import Example
from netloupe.report.feature_card import marked
from netloupe.report.words import number, percent

if TYPE_CHECKING:
    from netloupe.report.feature_card import FeatureCard
    from netloupe.report.feature_effects import Output

UP, DOWN, QUIET = "#2a6f97", "#b0562a", "0.45"
_WIDTH = 11.5
_MONO = {"family": "monospace", "fontsize": 8.5}
_SHOWN = 46  # characters shown on either side of the strong token


def draw_card(card: FeatureCard) -> Figure:
    """The whole card; what could not be asked is said in words where its picture would be."""
    pictures = bool(card.images)
    figure = Figure(figsize=(_WIDTH, 8.6 if not pictures else 7.6), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=[2.6 if not pictures else 1.7, 2.2, 2.0])
    top, middle, bottom = parts
    figure.suptitle(_title(card), ha="left", x=0.01, fontsize=12)
    if pictures:
        _pictures(top, card)
    else:
        _texts(top.subplots(), card.examples)
    left, middle_axes, right = middle.subplots(1, 3)
    _histogram(left, card)
    _outputs(
        middle_axes,
        "changed by taking it away",
        card.ablation and (card.ablation.raised, card.ablation.lowered),
        card.missing.get("ablation"),
    )
    _outputs(right, "vocabulary projection", card.vocabulary, card.missing.get("vocabulary"))
    left, right = bottom.subplots(1, 2)
    _pushes(left, card)
    _neighbours(right, card)
    return figure


def _title(card: FeatureCard) -> str:
    name = (
        f"'{card.name.text}': held-out score {card.name.score:.2f} ({card.name.low:.2f} to {card.name.high:.2f}, chance .50)"
        if card.name
        else f"no name: {card.missing.get('name', '')}"
    )
    lost = ""
    if card.ablation is not None:
        change = card.ablation.loss_without - card.ablation.loss
        lost = f"; without it outputs move by {number(card.ablation.kl)} nats" + (
            f", the loss by {number(change)}" if change == change else ""
        )
    return (
        f"{card.site or 'root'}, feature {card.feature} ({card.made_by or 'dictionary'})\n{textwrap.shorten(name, 120)}\n"
        f"on at {percent(card.density)} of {card.n_rows} positions, at most {number(card.maximum)}{lost}"
    )


def _pictures(place: Any, card: FeatureCard) -> None:
    axes = place.subplots(1, 8)
    for at, example in zip(axes, card.examples):
        image = card.images.get(example.picture or "")
        if image is None:
            continue
        at.imshow(
            image,
            cmap="gray" if image.ndim == 2 or image.shape[-1] == 1 else None,
            vmin=0,
            vmax=1,
        )
        if example.box is not None:
            from matplotlib.patches import Rectangle

            left, above, wide, high = (
                v / 100 * s for v, s in zip(example.box, [image.shape[1], image.shape[0]] * 2, strict=True)
            )
            at.add_patch(Rectangle((left - 0.5, above - 0.5), wide, high, fill=False, edgecolor=UP, lw=1.5))
        at.set_title(f"{number(example.value)}\n{example.caption}", fontsize=7.5)
    for at in axes:
        at.set_axis_off()


def _texts(axes: Axes, examples: tuple[Example, ...]) -> None:
    """A line an example, the strong token marked, all strong tokens under each other."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(-len(examples), 0.5))
    if not examples:
        axes.text(0, 0, "the feature is on nowhere", color=QUIET)
    for row, example in enumerate(examples):
        before, strong, after = marked(example)
        axes.text(0, -row, f"{number(example.value):>7}", color=QUIET, va="bottom", **_MONO)
        axes.text(0.46, -row, before[-_SHOWN:], ha="right", va="bottom", **_MONO)
        mark = axes.text(
            0.462, -row, strong, va="bottom", bbox={"facecolor": "#f4d58d", "edgecolor": "none", "pad": 0.8}, **_MONO
        )
        axes.annotate(after[:_SHOWN], (1, 0), xycoords=mark, va="bottom", **_MONO)


def _histogram(axes: Axes, card: FeatureCard) -> None:
    edges, counts = card.histogram
    axes.stairs(counts, edges, fill=True, color=UP)
    if counts.max(initial=0) > 100 * max(1, counts[counts > 0].min(initial=1)):
        axes.set_yscale("log")
    axes.set(xlabel="code, where the feature is on", ylabel="positions")
    axes.set_title("activations", fontsize=10)


def _outputs(
    axes: Axes, title: str, ends: tuple[tuple[Output, ...], tuple[Output, ...]] | None, reason: str | None
) -> None:
    axes.set_title(title, fontsize=10)
    if not ends or not (ends[0] or ends[1]):
        return _say(axes, reason or "nothing changes")
    shown = [*ends[0][:5], *reversed(ends[1][:5])]
    at = range(len(shown), 0, -1)
    axes.barh(list(at), [o.change for o in shown], color=[UP if o.change > 0 else DOWN for o in shown])
    axes.set_yticks(list(at), [_visible(o.text) for o in shown], fontsize=8)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_xlabel("probability that its presence adds" if "away" in title else "logit, mean taken off")
    return None


def _visible(text: str, most: int = 16) -> str:
    """An output's name with spaces that can be seen and line ends that break nothing."""
    return text.replace(" ", "\u2423").replace("\n", "\u23ce")[:most] or "\u2205"


def _pushes(axes: Axes, card: FeatureCard) -> None:
    axes.set_title("pushed along its direction, at equal divergence", fontsize=10)
    if not card.pushes:
        return _say(axes, card.missing.get("pushes", ""))
    for place, push in enumerate(card.pushes):
        axes.bar(place - 0.18, push.rise, 0.36, color=UP if push.alpha > 0 else DOWN)
        axes.bar(place + 0.18, push.random_rise, 0.36, color="0.75")
    words = [
        f"{_sign(p.alpha)}{number(abs(p.alpha))}\n{number(p.kl)} nats{'' if p.converged else ' (not reached)'}"
        for p in card.pushes
    ]
    axes.set_xticks(range(len(words)), words, fontsize=8)
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set_ylabel("its outputs together:\nlog of the times as probable")
    axes.plot([], [], "s", color="0.75", label="random directions")
    axes.legend(frameon=False, fontsize=8)
    return None


def _sign(value: float) -> str:
    return "+" if value > 0 else "\u2212"


def _neighbours(axes: Axes, card: FeatureCard) -> None:
    axes.set_title("nearest features", fontsize=10)
    if not card.neighbours:
        return _say(axes, "there is no other feature")
    at = range(len(card.neighbours), 0, -1)
    axes.barh(list(at), [n.cosine for n in card.neighbours], color=UP)
    axes.set_yticks(list(at), [f"{n.dictionary[:22]} {n.feature}" for n in card.neighbours], fontsize=8)
    axes.set(xlabel="cosine", xlim=(min(0, *(n.cosine for n in card.neighbours)), 1))
    return None


def _say(axes: Axes, sentence: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(sentence, 36), ha="center", va="center", color=QUIET, transform=axes.transAxes)
