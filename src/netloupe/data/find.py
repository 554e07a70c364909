"""Black-box functions whose truth is known: what an explainer may call, and what it is graded against.

A :class:`Function` is called like a unit of a network that one knows nothing about; its :class:`Truth` says what it is. Curves come
from :mod:`netloupe.data.find_numeric`, programs on strings from :mod:`netloupe.data.find_strings`, units that respond to concepts or
map words to words from :mod:`netloupe.data.find_neurons`. Source: arXiv 2309.03886.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError

Kind = Literal["numeric", "string", "entity", "relation"]
CORRUPTION_SD = 0.1


@dataclass(frozen=True)
class Truth:
    """What a function is.

    ``family``: the curve, the operation, or the rule; composed ones are joined by ``;``, the way of joining last. ``params``: of the
    family, nested tuples. ``nuisance``: ``clean``, a kind of noise (``normal``, ``uniform``, ``poisson``), a place of corruption
    (``smaller``, ``larger``, ``inside``) or ``approximated``. ``interval``: where the output is replaced by noise of sd 0.1 about
    ``level``; ends may be infinite. ``domain``: where inputs are asked for. ``seed``: of its noise. ``network``: weights of the
    approximation ``(w1, b1, w2, b2)``, once fitted.
    """

    kind: Kind
    family: str
    params: Any = ()
    nuisance: str = "clean"
    interval: tuple[float, float] | None = None
    level: float = 0.0
    domain: tuple[float, float] = (-100.0, 100.0)
    seed: int = 0
    network: tuple[tuple[float, ...], ...] | None = None

    @property
    def corrupted(self) -> bool:
        """Whether an interval of its inputs behaves otherwise."""
        return self.interval is not None

    @property
    def noisy(self) -> bool:
        """Whether every call adds a fresh draw."""
        return self.nuisance in ("normal", "uniform", "poisson")

    def dumps(self) -> str:
        """As JSON text; :meth:`loads` gives the same bits back."""
        document = asdict(self)
        if self.interval is not None:  # JSON has no infinity
            document["interval"] = [None if np.isinf(end) else end for end in self.interval]
        return json.dumps(document, allow_nan=False)

    @classmethod
    def loads(cls, text: str) -> Truth:
        """Reads what :meth:`dumps` wrote. Raises InputError for anything else."""
        try:
            found = {name: _tuples(value) for name, value in json.loads(text).items()}
            if found.get("interval") is not None:
                low, high = found["interval"]
                found["interval"] = (-np.inf if low is None else low, np.inf if high is None else high)
            return cls(**found)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"the text is no truth of a function ({error}); give what dumps() wrote") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


@dataclass
class Function:
    """Something to be explained: call it, and know what each call cost.

    ``clean``: the function without noise, of one input; curves take arrays. ``truth``: for the grader. ``hints``: inputs that an
    interpreter may be given to begin with. ``calls``: so far. Values without noise are cached, noise is drawn anew at every call
    from the seed and the number of the call, so averaging is a legal strategy and a run repeats.
    """

    truth: Truth
    clean: Callable[[Any], Any]
    hints: tuple[str, ...] = ()
    calls: int = 0
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __call__(self, value: Any) -> Any:
        """The output for one input: a float for curves and entity units, else a string."""
        self._check(value)
        self.calls += 1
        if value not in self._cache:
            self._cache[value] = self.clean(value)
        return self._disturbed(value, self._cache[value])

    def many(self, values: Sequence[Any]) -> list[Any]:
        """One call for each input, in order."""
        if self.truth.kind != "numeric" or not len(values):
            return [self(value) for value in values]
        points = np.asarray(values, dtype=np.float64)
        if self.truth.nuisance in ("clean", "approximated"):
            self.calls += len(points)
            return self.expected(points).tolist()
        return [self(float(value)) for value in points]

    def expected(self, values: Float[np.ndarray, " input"]) -> Float[np.ndarray, " input"]:
        """A curve without noise, with what its corrupted interval is on average; no call is counted."""
        points = np.asarray(values, dtype=np.float64)
        with np.errstate(all="ignore"):
            found = np.asarray(self.clean(points), dtype=np.float64)
        if self.truth.interval is None:
            return found
        return np.where(self.inside(points), self.truth.level, found)

    def inside(self, values: Float[np.ndarray, " input"] | float) -> Any:
        """Which inputs lie in the corrupted interval, whose finite ends belong to it only for half-lines."""
        if self.truth.interval is None:
            return np.zeros(np.shape(values), dtype=bool)
        low, high = self.truth.interval
        points = np.asarray(values)
        if np.isinf(low):
            return points <= high
        return points >= low if np.isinf(high) else (points > low) & (points < high)

    def _disturbed(self, value: Any, clean: Any) -> Any:
        truth = self.truth
        if truth.kind != "numeric":
            return clean
        draw = np.random.default_rng([truth.seed, self.calls]) if truth.noisy or truth.corrupted else None
        if draw is None:
            return float(clean)
        if truth.corrupted:
            return float(draw.normal(truth.level, CORRUPTION_SD) if self.inside(value) else clean)
        noise = {"normal": draw.normal, "uniform": lambda: draw.uniform(-1, 1), "poisson": lambda: draw.poisson(1.0)}
        return float(clean + noise[truth.nuisance]())

    def _check(self, value: Any) -> None:
        if self.truth.kind == "numeric" and (isinstance(value, (str, bytes)) or not np.isscalar(value)):
            raise InputError(f"input {value!r} is no number; this function takes one number a call")
        if self.truth.kind != "numeric" and not isinstance(value, str):
            raise InputError(f"input {value!r} is no text; this function takes one string a call")

    def fresh(self, **changes: Any) -> Function:
        """The same function with no calls counted, and a truth with these changes."""
        return Function(replace(self.truth, **changes), self.clean, self.hints)


def from_truth(truth: Truth) -> Function:
    """The function that a truth describes; units that need word vectors or tables cannot be made from their truth alone."""
    from netloupe.data.find_numeric import curve  # the generators stand on this module
    from netloupe.data.find_strings import program

    if truth.kind == "numeric":
        return curve(truth)
    if truth.kind == "string":
        return program(truth)
    raise InputError(
        f"a function of kind '{truth.kind}' needs its word vectors or its table; make it with make_entities or make_relations"
    )


def grading_points(half_width: int = 128) -> Float[np.ndarray, " input"]:
    """Where curves are compared: ``i + 1/2`` for ``i = -half_width .. half_width - 1``, so that poles at integers are avoided."""
    return np.arange(-half_width, half_width) + 0.5
