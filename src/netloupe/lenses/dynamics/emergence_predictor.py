"""From a layer's place and its network's shape to the curve of what emerges in it.

Source: Gallego-Feliciano et al., "Hidden Dynamics of Massive Activations in Transformer Training", arXiv 2508.03616.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LassoCV, RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.splits import folds, holdout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ModelName = Literal["ridge", "lasso", "forest", "boosting", "histogram", "best"]
YEO_JOHNSON = ("K",)  # targets that may be negative; the others are transformed by log1p
_N_FOLDS = 5


def architecture_features(
    layer: Any,
    n_layers: Any,
    d_model: Any,
    n_heads: Any,
    d_ff: Any,
    rotary_base: Any = 10_000.0,
    rotary_fraction: Any = 1.0,
) -> tuple[Float[np.ndarray, "row feature"], tuple[str, ...]]:
    """One row of features for each layer, and their names.

    With layer ``l`` (from 1), depth ``L``, heads ``H`` and width ``d``: ``l/L``, its square, cube and root, ``H/d``, ``d_ff/d``, ``d/L``,
    ``H/L``, ``l L``, the logarithms of all sizes, and the rotary base (logarithm) and share of the head that it turns.

    Args: numbers or arrays ``(row,)`` that fit together. Raises InputError for sizes below 1, layers outside 1 to ``L`` and
    lengths that do not fit.
    """
    given = (layer, n_layers, d_model, n_heads, d_ff, rotary_base, rotary_fraction)
    try:
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(each, dtype=float)) for each in given))
    except ValueError as error:
        raise InputError(
            f"the sizes have lengths that do not fit together ({error}); give numbers or equal lengths"
        ) from None
    place, depth, width, heads, hidden, base, share = columns
    if place.ndim != 1 or not all(np.isfinite(each).all() for each in columns):
        raise InputError("the sizes hold NaN or have more than one axis; expected numbers or arrays (row,)")
    if (
        min(each.min() for each in (depth, width, heads, hidden, base)) < 1
        or (place < 1).any()
        or (place > depth).any()
    ):
        raise InputError("a size is below 1 or a layer outside 1 to n_layers; count layers from 1")
    relative = place / depth
    features = {
        "l/L": relative, "(l/L)^2": relative**2, "(l/L)^3": relative**3, "sqrt(l/L)": np.sqrt(relative), "H/d": heads / width,
        "d_ff/d": hidden / width, "d/L": width / depth, "H/L": heads / depth, "l*L": place * depth, "log d": np.log(width),
        "log L": np.log(depth), "log H": np.log(heads), "log d_ff": np.log(hidden), "log rotary base": np.log(base),
        "rotary share": share,
    }  # fmt: skip
    return np.stack(list(features.values()), 1), tuple(features)


@dataclass(frozen=True, eq=False)
class PredictorScores(Finding):
    """How well the parameters of unseen layers are foretold; all ``(target,)``, R^2 never clipped.

    ``r2``, ``mae``, ``rmse`` on a held-out fifth of the rows; ``r2_groups`` on rows of networks that were left out whole (NaN
    without groups): layers of one network are alike, so a random split tells the answer of their neighbours.
    """

    targets: tuple[str, ...]
    models: tuple[str, ...]
    r2: np.ndarray
    mae: np.ndarray
    rmse: np.ndarray
    r2_groups: np.ndarray

    meanings: ClassVar[dict[str, str]] = {
        "mean_r2": "share of variance foretold in held-out layers, averaged over parameters",
        "best_r2": "the same for the parameter that is foretold best",
        "mean_r2_new_network": "the same average for networks left out whole",
    }

    def of(self, target: str) -> float:
        """Held-out R^2 of one parameter."""
        if target not in self.targets:
            raise InputError(f"'{target}' was not predicted; there are {', '.join(self.targets)}")
        return float(self.r2[self.targets.index(target)])

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = {"mean_r2": float(self.r2.mean()), "best_r2": float(self.r2.max())}
        return found | ({} if np.isnan(self.r2_groups).any() else {"mean_r2_new_network": float(self.r2_groups.mean())})

    def plot(self, axes: Axes) -> None:
        """R^2 of every parameter, of unseen layers and of unseen networks."""
        place = np.arange(len(self.targets))
        axes.bar(place - 0.2, self.r2, 0.4, color="C0", label="unseen layers")
        axes.bar(place + 0.2, np.nan_to_num(self.r2_groups), 0.4, color="C1", label="unseen networks")
        axes.axhline(0, color="k", linewidth=0.8)
        axes.set_xticks(place, self.targets)
        axes.set_ylabel("share of variance foretold")
        axes.legend(frameon=False, fontsize="small")


class ArchitecturePredictor:
    """Regression of curve parameters on the architecture, one target at a time.

    Features are standardised; a target is transformed by ``log1p`` (of its absolute value, the sign kept) or, for ``K``, by
    Yeo-Johnson, and transformed back.

    Args:
        model: ``ridge``, ``lasso``, ``forest`` (default), ``boosting``, ``histogram`` (histogram gradient boosting, in the place of
            XGBoost), or ``best``: the one with the highest R^2 in a 5-fold cross-validation on the rows fitted, for each target.
        random_state: of the forests and splits.

    Attributes after ``fit``: ``targets_``, ``models_`` (name chosen for each target), ``regressors_``.
    """

    def __init__(self, model: ModelName | str = "forest", random_state: int = 0) -> None:
        if model not in (*_models(0), "best"):
            raise InputError(f"model is '{model}', expected one of {', '.join(_models(0))}, best")
        self.model, self.random_state = model, random_state

    def fit(self, features: Float[np.ndarray, "row feature"], params: Mapping[str, Any]) -> Self:
        """Fits every parameter ``name -> (row,)``; returns ``self``.

        Raises InputError for fewer than 10 rows, lengths that differ and numbers that are not finite.
        """
        x, targets = _table(features, params)
        self.targets_ = tuple(targets)
        self.regressors_: dict[str, Any] = {}
        self.models_: dict[str, str] = {}
        for name, y in targets.items():
            self.models_[name] = self._chosen(x, name, y)
            self.regressors_[name] = self._regressor(self.models_[name], name).fit(x, y)
        return self

    def predict(self, features: Float[np.ndarray, "row feature"]) -> dict[str, Float[np.ndarray, " row"]]:
        """Every parameter of other rows."""
        return {
            name: regressor.predict(np.asarray(features, dtype=float)) for name, regressor in self.regressors_.items()
        }

    def evaluate(
        self, features: Float[np.ndarray, "row feature"], params: Mapping[str, Any], groups: Any = None
    ) -> PredictorScores:
        """Scores on a held-out fifth, chosen and fitted on the rest; with ``groups`` (a network's name for each row) also
        on each network in turn after fitting the others. Errors as in :meth:`fit`."""
        x, targets = _table(features, params)
        fitted, judged = (rows.numpy() for rows in holdout(len(x), 0.2, random_state=self.random_state))
        part = ArchitecturePredictor(self.model, self.random_state).fit(
            x[fitted], {n: y[fitted] for n, y in targets.items()}
        )
        guess = part.predict(x[judged])
        errors = {name: guess[name] - y[judged] for name, y in targets.items()}
        return PredictorScores(
            tuple(targets),
            tuple(part.models_[name] for name in targets),
            np.array([r2_score(y[judged], guess[name]) for name, y in targets.items()]),
            np.array([mean_absolute_error(y[judged], guess[name]) for name, y in targets.items()]),
            np.array([np.sqrt(np.mean(error**2)) for error in errors.values()]),
            self._left_out(x, targets, part.models_, groups),
        )

    def importance(
        self, features: Float[np.ndarray, "row feature"], params: Mapping[str, Any], target: str
    ) -> Float[np.ndarray, " feature"]:
        """How far R^2 of a target falls when one feature's rows are shuffled (10 times, averaged)."""
        x, targets = _table(features, params)
        found: Any = permutation_importance(
            self._of(target), x, targets[target], n_repeats=10, random_state=self.random_state, scoring="r2"
        )
        return found.importances_mean

    def dependence(
        self, features: Float[np.ndarray, "row feature"], target: str, feature: int, n_points: int = 20
    ) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
        """Partial dependence: values of one feature, and the target's mean prediction with all rows set to each."""
        found: Any = partial_dependence(
            self._of(target), np.asarray(features, dtype=float), [feature], grid_resolution=n_points, kind="average"
        )
        return found["grid_values"][0], found["average"][0]

    def _of(self, target: str) -> Any:
        if target not in getattr(self, "regressors_", {}):
            raise InputError(
                f"'{target}' was not fitted; there are {', '.join(getattr(self, 'targets_', ())) or 'none'}"
            )
        return self.regressors_[target]

    def _chosen(self, x: np.ndarray, name: str, y: np.ndarray) -> str:
        if self.model != "best":
            return self.model
        scores = {}
        for kind in _models(self.random_state):
            splits = [(a.numpy(), b.numpy()) for a, b in folds(len(x), _N_FOLDS, random_state=self.random_state)]
            scores[kind] = float(np.mean(cross_val_score(self._regressor(kind, name), x, y, cv=splits, scoring="r2")))
        return max(scores, key=lambda kind: scores[kind])

    def _regressor(self, kind: str, name: str) -> Any:
        transformer = _Bounded(name in YEO_JOHNSON)
        inner = make_pipeline(StandardScaler(), clone(_models(self.random_state)[kind]))
        return TransformedTargetRegressor(inner, transformer=transformer, check_inverse=False)

    def _left_out(
        self, x: np.ndarray, targets: Mapping[str, np.ndarray], models: Mapping[str, str], groups: Any
    ) -> Float[np.ndarray, " target"]:
        if groups is None:
            return np.full(len(targets), np.nan)
        names = np.unique(np.asarray(groups))
        splits = [
            (a.numpy(), b.numpy()) for a, b in folds(len(x), len(names), groups=groups, random_state=self.random_state)
        ]
        found = []
        for name, y in targets.items():
            guess = np.zeros(len(y))
            for fitted, judged in splits:
                guess[judged] = self._regressor(models[name], name).fit(x[fitted], y[fitted]).predict(x[judged])
            found.append(r2_score(y, guess))
        return np.array(found)


def _models(random_state: int) -> dict[str, RegressorMixin]:
    alphas: Any = np.logspace(-4, 3, 15)
    return {
        "ridge": RidgeCV(alphas),
        "lasso": LassoCV(eps=1e-2, max_iter=20_000, tol=1e-2, random_state=random_state),
        "forest": RandomForestRegressor(100, min_samples_leaf=2, random_state=random_state),
        "boosting": GradientBoostingRegressor(random_state=random_state),
        "histogram": HistGradientBoostingRegressor(min_samples_leaf=5, random_state=random_state),
    }


class _Bounded(TransformerMixin, BaseEstimator):
    """Signed ``log1p`` or Yeo-Johnson of a target, whose inverse stays near what was fitted.

    A line that runs on beyond the rows it was fitted to would leave the range of Yeo-Johnson (NaN) or overflow: transformed
    values are held within half a range of those seen.
    """

    def __init__(self, yeo_johnson: bool = False) -> None:
        self.yeo_johnson = yeo_johnson

    def fit(self, y: np.ndarray, _: Any = None) -> Self:
        self.power_: Any = PowerTransformer("yeo-johnson").fit(y) if self.yeo_johnson else None
        made = self.transform(y)
        margin = np.ptp(made, axis=0) / 2
        self.low_, self.high_, self.seen_ = made.min(0) - margin, made.max(0) + margin, (y.min(0), y.max(0))
        return self

    def transform(self, y: np.ndarray) -> np.ndarray:
        return np.sign(y) * np.log1p(np.abs(y)) if self.power_ is None else self.power_.transform(y)

    def inverse_transform(self, z: np.ndarray) -> np.ndarray:
        held = np.clip(z, self.low_, self.high_)
        if self.power_ is None:
            return np.sign(held) * np.expm1(np.abs(held))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NaN, which is handled here
            back = self.power_.inverse_transform(held)
        middle = (self.power_.transform(np.stack(self.seen_)).mean(0) < held).astype(int)
        return np.where(np.isnan(back), np.where(middle == 1, self.seen_[1], self.seen_[0]), back)


def _table(features: Any, params: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    x = np.asarray(features, dtype=float)
    if x.ndim != 2 or len(x) < 10 or not np.isfinite(x).all():
        raise InputError(f"features have shape {x.shape}, expected at least 10 finite rows (row, feature)")
    targets = {str(name): np.asarray(values, dtype=float) for name, values in params.items()}
    if not targets:
        raise InputError("no parameters were given to predict; give a dictionary of name to (row,)")
    for name, y in targets.items():
        if y.shape != (len(x),) or not np.isfinite(y).all():
            raise InputError(f"the parameter '{name}' has shape {y.shape}, expected {len(x)} finite numbers, one a row")
    return x, targets
