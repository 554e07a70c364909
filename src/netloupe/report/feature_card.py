"""A feature on one card: where it is active, what it is called and how well that fits, what it does, who resembles it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, StoreError
from netloupe.core.finding import plain
from netloupe.core.identity import describe_model
from netloupe.data.bytes_text import characters
from netloupe.lenses.naming.naming import Judge, Name, Proposer, UnnameableError, name_feature
from netloupe.lenses.naming.proposals import (
    Marked,
    distinctive_endings,
    distinctive_words,
    ending_judge,
    phrase_list,
    several,
    word_judge,
)
from netloupe.report.examples import Example, Gallery
from netloupe.report.feature_effects import Ablation, Output, Push, Responses, ablation, pushes, responses, vocabulary
from netloupe.report.html import safe, save_page
from netloupe.report.words import number, percent
from netloupe.subjects import Data, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_EXAMPLES, N_NEIGHBOURS = 8, 3
KL_TARGETS = (0.1, 0.25)


class Neighbour(NamedTuple):
    """A feature of a dictionary and the cosine of its direction with the card's."""

    dictionary: str
    feature: int
    cosine: float


class Histogram(NamedTuple):
    """How often the feature is how active, where it is on: ``counts`` between neighbouring ``edges``."""

    edges: Float[np.ndarray, " edge"]
    counts: Int[np.ndarray, " bin"]


@dataclass(frozen=True)
class FeatureCard:
    """All that :func:`feature_card` found; None is what the network or the data do not allow to ask, with the reason in ``missing``.

    ``density``: share of positions at which the feature is on. ``images``: pictures of the examples, by their names.
    """

    site: str
    feature: int
    made_by: str
    subject: dict[str, Any]
    n_samples: int
    n_rows: int
    density: float
    maximum: float
    mean: float
    histogram: Histogram
    examples: tuple[Example, ...]
    images: dict[str, np.ndarray]
    name: Name | None
    vocabulary: tuple[tuple[Output, ...], tuple[Output, ...]] | None
    ablation: Ablation | None
    pushes: tuple[Push, ...]
    neighbours: tuple[Neighbour, ...]
    missing: dict[str, str]

    def document(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON takes it: numbers that are not finite become null."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("images", "examples")}
        return plain(_records(kept | {"examples": [_example(example) for example in self.examples]}))

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Writes ``<site>-<feature>.json`` and ``.png`` into a folder; returns both paths."""
        name = f"{safe(self.site)}-{self.feature}"
        written = save_page(
            json.dumps(self.document(), indent=2, allow_nan=False) + "\n", Path(folder) / f"{name}.json"
        )
        picture = Path(folder) / f"{name}.png"
        try:
            self.figure().savefig(picture, dpi=110)
        except OSError as error:
            raise StoreError(f"the figure could not be written to '{picture}': {error.strerror or error}") from error
        return written, picture

    def paragraph(self) -> str:
        """The card in plain words."""
        name = f"without a name ({self.missing.get('name', '')})"
        if self.name is not None:
            name = f"called '{self.name.text}' (held-out score {self.name.score:.2f}, {self.name.low:.2f} to {self.name.high:.2f})"
        said = (
            f"Feature {self.feature} of {self.site} is on at {percent(self.density)} of {self.n_rows} positions, {name}"
        )
        if self.ablation is None:
            return said + "."
        change = self.ablation.loss_without - self.ablation.loss
        said += f"; without it outputs move by {number(self.ablation.kl)} nats"
        said += f" and the loss by {number(change)}" if np.isfinite(change) else ""
        raised = ", ".join(repr(o.text) for o in self.ablation.raised[:3])
        return said + (f"; it raises {raised} most." if raised else ".")

    def figure(self) -> Figure:
        """The card as a matplotlib figure."""
        from netloupe.report.feature_figure import draw_card

        return draw_card(self)


def feature_card(
    subject: Subject,
    data: Data,
    dictionary: Dictionary,
    feature: int,
    *,
    site: str = "",
    others: Mapping[str, Dictionary] | None = None,
    proposer: Proposer | None = None,
    judge: Judge | None = None,
    kl_targets: Sequence[float] = KL_TARGETS,
    share: float = 0.05,
    random_state: int = 0,
    progress: bool = False,
) -> FeatureCard:
    """Everything about one feature of a dictionary.

    Args:
        subject, data: the network and its samples, as ``load_model`` and ``load_data`` give them.
        site: where the dictionary belongs; the one it knows by default.
        others: further dictionaries of as many units, by name, in which to look for neighbours; its own is searched too.
        proposer, judge: where names come from and who scores them (:mod:`netloupe.lenses.naming.naming`). They read text around
            the strongest position (:class:`~netloupe.lenses.naming.proposals.Marked`), or the label where samples are not text. By
            default words that stand out and what texts end in there, judged by their presence; for labelled data the class
            names, judged by the label.
        kl_targets: nats to which the output is pushed along the direction, both ways. share: of the samples that count as active.

    Cost: three passes over the data and about 60 runs of one batch for each target. Raises InputError for a feature that does not
    exist, SiteError for a site that does not, NonFiniteError for NaN.
    """
    where = site or dictionary.site
    if not where:
        raise InputError("the dictionary does not know its site; give site='...'")
    model, missing = subject.model, {}
    seen = responses(model, data.batches, dictionary, feature, where, progress)
    gallery = Gallery(_Shows(subject, data, (seen.info,)))
    outputs = _output_names(subject, data)
    found = None
    if not dictionary.normed:
        found = ablation(model, data.batches, dictionary, feature, where, seen, outputs)
    pushed: tuple[Push, ...] = ()
    if found is None:
        reason = "its directions are of normalised activations" if dictionary.normed else "the network gives no logits"
        missing["ablation"] = missing["pushes"] = reason
    elif not found.raised:
        missing["pushes"] = "the feature is never on, or raises no output"
    else:
        wanted = [o.index for o in found.raised]
        pushed = pushes(model, data.batches, dictionary, feature, where, wanted, kl_targets, random_state)
    projected = vocabulary(model, next(iter(data.batches)), dictionary, feature, where, outputs)
    if projected is None:
        missing["vocabulary"] = "the direction is not as wide as what the head reads"
    name = _name(data, gallery, seen, proposer, judge, share, random_state, missing)
    examples = _examples(gallery, seen)
    return FeatureCard(
        where, feature, dictionary.made_by, {"model": subject.identity or describe_model(model), "data": data.identity},
        len(seen.strongest), seen.n_rows, seen.density, float(seen.moments.maximum[0]), float(seen.moments.mean[0]),
        _histogram(seen), examples, _images(data, seen, examples), name, projected, found, pushed,
        neighbours(dictionary, feature, others or {}), missing,
    )  # fmt: skip


def neighbours(
    dictionary: Dictionary, feature: int, others: Mapping[str, Dictionary], most: int = N_NEIGHBOURS
) -> tuple[Neighbour, ...]:
    """The ``most`` nearest directions by cosine in each dictionary, its own first and without itself.

    Raises InputError for a dictionary of another width.
    """
    own = dictionary.unit_directions()[feature]
    found = []
    for name, other in {"this dictionary": dictionary, **others}.items():
        if other.n_units != dictionary.n_units:
            raise InputError(
                f"'{name}' has {other.n_units} units, the feature {dictionary.n_units}; cosines need equal widths"
            )
        cosines = (other.unit_directions().double() @ own.double()).cpu().numpy()
        if other is dictionary:
            cosines[feature] = -np.inf
        order = np.argsort(-cosines, kind="stable")[:most]
        found += [Neighbour(name, int(i), float(cosines[i])) for i in order if np.isfinite(cosines[i])]
    return tuple(found)


@dataclass(frozen=True)
class _Shows:
    subject: Subject
    data: Data
    sites: tuple[Any, ...]
    observation: Any = None


def _examples(gallery: Gallery, seen: Responses) -> tuple[Example, ...]:
    order = np.argsort(-seen.strongest, kind="stable")[:N_EXAMPLES]
    on = [int(i) for i in order if seen.strongest[i] > 0]
    return tuple(gallery.example(seen.info, float(seen.strongest[i]), i, int(seen.at[i])) for i in on)


def _images(data: Data, seen: Responses, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """The whole pictures behind the examples, under the names that the examples give them."""
    order = np.argsort(-seen.strongest, kind="stable")[: len(examples)]
    shown = {e.picture: data.show(int(i)).image for e, i in zip(examples, order) if e.picture and data.show}
    return {str(name): image for name, image in shown.items() if image is not None}


def _histogram(seen: Responses, n_bins: int = 40) -> Histogram:
    """Of the values other than 0, in equal bins from 0 (or the smallest) to the largest."""
    low, high = min(0.0, float(seen.moments.minimum[0])), float(seen.moments.maximum[0])
    on = seen.quantiles.values != 0
    edges = np.linspace(low, high if high > low else low + 1, n_bins + 1)
    counts, _ = np.histogram(seen.quantiles.values[on], edges, weights=seen.quantiles.counts[on])
    return Histogram(edges, counts.astype(np.int64))


def _name(
    data: Data, gallery: Gallery, seen: Responses, proposer: Proposer | None, judge: Judge | None, share: float,
    random_state: int, missing: dict[str, str],
) -> Name | None:  # fmt: skip
    samples, default, scorer = _nameable(data, gallery, seen)
    proposer, judge = proposer or default, judge or scorer
    if samples is None or proposer is None or judge is None:
        missing["name"] = "the samples are neither text nor labelled; give a proposer and a judge"
        return None
    try:
        return name_feature(seen.strongest, samples, proposer, judge, share=share, random_state=random_state)
    except UnnameableError as error:
        missing["name"] = str(error)
        return None


def _nameable(
    data: Data, gallery: Gallery, seen: Responses
) -> tuple[Sequence[Any] | None, Proposer | None, Judge | None]:
    """What a proposer and a judge read, and the two that need nothing else."""
    n = len(seen.strongest)
    if data.show is not None and data.show(0).tokens is not None:
        texts = [marked(gallery.example(seen.info, 0.0, i, int(seen.at[i]))) for i in range(n)]
        return texts, several(distinctive_words(), distinctive_endings()), ending_judge(word_judge())
    if data.labels is not None and not data.labels.is_floating_point() and data.labels.ndim == 1:
        words = data.class_names or [f"class {i}" for i in range(int(data.labels.max()) + 1)]
        labels = [str(words[int(label)]) for label in data.labels[:n]]
        return (
            labels,
            phrase_list(list(dict.fromkeys(labels))),
            lambda text, seen: np.array([s == text for s in seen], float),
        )
    return (list(range(n)), None, None)


def marked(example: Example) -> Marked:
    """An example's tokens as text again, what comes before and after the strong one apart; without one all is before."""
    parts, at = ["", "", ""], 0
    for token in example.tokens:
        at = 1 if token.strong else 2 if at else 0
        parts[at] += (" " if token.space else "") + token.text
    return Marked(*parts)


def _output_names(subject: Subject, data: Data) -> list[str] | None:
    """What the outputs are called: classes, tokens of the network's tokenizer, or bytes."""
    if data.class_names is not None:
        return list(data.class_names)
    if subject.tokenizer is not None:
        return [str(t) for t in subject.tokenizer.convert_ids_to_tokens(list(range(len(subject.tokenizer))))]
    if data.kind == "text":
        import torch

        return list(characters(torch.arange(256)))
    return None


def _example(example: Example) -> dict[str, Any]:
    text = marked(example)
    return {
        "value": example.value, "caption": example.caption, "place": example.place,
        **(text._asdict() if example.tokens else {}),
        **({"box": example.box} if example.box else {}),
    }  # fmt: skip


def _records(value: Any) -> Any:
    """Data classes and named tuples as dictionaries, at any depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _records(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _records(inner) for key, inner in value._asdict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, Mapping):
        return {key: _records(inner) for key, inner in value.items()}
    return [_records(inner) for inner in value] if isinstance(value, list | tuple) else value
