"""Where concepts show in texts, and how well they are told there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Span(NamedTuple):
    """A concept named in a text: tokens ``first`` to ``last`` (not included) of text ``sample``."""

    sample: int
    first: int
    last: int
    concept: str


class Detected(NamedTuple):
    """``local`` ``(token, concept)`` and ``overall`` ``(text, concept)``: by how much each concept is above its threshold, else 0."""

    local: Float[np.ndarray, "token concept"]
    overall: Float[np.ndarray, "text concept"]


@dataclass(frozen=True, eq=False)
class Detection(Finding):
    """How well concepts are told on labelled tokens and texts.

    ``local``, ``overall`` float64 ``(concept,)``: balanced accuracy on tokens and on texts (NaN where one class is missing);
    ``names``; ``thresholds`` float64 ``(concept,)`` on tokens; ``leaked``: share of these texts that the thresholds were fitted on.
    """

    local: Float[np.ndarray, " concept"]
    overall: Float[np.ndarray, " concept"]
    thresholds: Float[np.ndarray, " concept"]
    names: tuple[str, ...]
    leaked: float

    meanings: ClassVar[dict[str, str]] = {
        "balanced_accuracy": "mean over concepts of the balanced accuracy on tokens; 0.5 is chance",
        "worst": "that of the worst concept",
        "texts": "mean balanced accuracy on whole texts",
        "leaked": "share of the texts that the dictionary was fitted on; above 0 the accuracies are too good",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        parts = [
            float(np.nanmean(self.local)),
            float(np.nanmin(self.local)),
            float(np.nanmean(self.overall)),
            self.leaked,
        ]
        return dict(zip(self.meanings, parts, strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        found, worst = self.summary(), self.names[int(np.nanargmin(self.local))]
        warning = f" {self.leaked:.0%} of the texts were fitted on, so this is too good." if self.leaked else ""
        return (
            f"{len(self.names)} concepts are told on tokens with a balanced accuracy of {found['balanced_accuracy']:.3f} "
            f"(worst: {worst}, {found['worst']:.3f}) and on texts of {found['texts']:.3f}; chance is 0.5.{warning}"
        )

    def plot(self, axes: Axes) -> None:
        """A bar for each concept."""
        axes.barh(self.names, self.local)
        axes.axvline(0.5, color="0.4", ls=":")
        axes.set(xlabel="balanced accuracy on tokens", xlim=(0.4, 1.01))


def log_decay(k: int, mean: float = 1.0) -> Float[np.ndarray, " latent"]:
    """Weights ``1 - log(i + 1) / log(k + 1)``, ``i = 0 .. k - 1``, rescaled to the given mean; falling, ``[mean]`` for ``k = 1``."""
    weights = 1 - np.log(np.arange(k) + 1.0) / np.log(k + 1.0)
    return weights / weights.mean() * mean


def concept_labels(
    spans: Iterable[Span],
    samples: Int[np.ndarray, " token"],
    names: Sequence[str],
    token: Literal["last", "all"] = "last",
) -> Bool[np.ndarray, "token concept"]:
    """Which token shows which concept, from spans in texts; ``token``: the last of a span (default) or all.

    ``samples``: the text that each token belongs to, texts in order. Raises InputError for spans outside their text, for concepts
    without a name among ``names`` and for names without a span.
    """
    labels = np.zeros((len(samples), len(names)), dtype=bool)
    column = {name: index for index, name in enumerate(names)}
    for span in spans:
        where = np.flatnonzero(np.asarray(samples) == span.sample)
        if span.concept not in column or not 0 <= span.first < span.last <= len(where):
            raise InputError(
                f"{span} does not fit text {span.sample} of {len(where)} tokens and concepts {', '.join(names)}"
            )
        labels[where[span.last - 1] if token == "last" else where[span.first : span.last], column[span.concept]] = True
    missing = [name for name, seen in zip(names, np.atleast_1d(labels.any(0)).tolist(), strict=True) if not seen]
    if missing:
        raise InputError(f"no span shows {', '.join(missing)}; give examples of every concept")
    return labels
