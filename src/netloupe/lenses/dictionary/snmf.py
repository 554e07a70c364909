"""Groups of units that fire together, with the inputs that fire them, by semi-non-negative matrix factorisation.

Source: "Decomposing MLP Activations into Interpretable Features via Semi-Nonnegative Matrix Factorization", arXiv 2506.10920.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.dictionary import Dictionary, nonnegative_codes
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.rows import as_rows
from netloupe.core.training import train
from netloupe.lenses.dictionary.semi_nmf import Init, factorise, mapped, samples, start, winners

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class SemiNMF(TransformerMixin, BaseEstimator):
    """``X ~ G F`` with ``G >= 0`` ``(sample, feature)`` and signed directions ``F`` ``(feature, unit)``, few units each.

    Each iteration: ``F`` by least squares; only the ``ceil(sparsity d)`` largest entries of each direction stay; columns of ``G``
    to length 1; one multiplicative step of ``G`` (Ding, Li and Jordan, 2010). The best iterate is returned, not the last.

    Args:
        n_components: features ``k``; more than ``min(n, d)`` warns.
        sparsity: share of the units that a direction keeps; 1 keeps all, and directions are then free to rotate.
        init: ``random`` (another seed may find other features: run several), ``svd`` or ``kmeans``.
        max_iter, patience, tol: most iterations; stop after ``patience`` of them without a fall of the loss by ``tol``.
        ridge: added to ``G^T G`` before it is solved.
        seed: of the start. dtype: ``float64`` or ``float32``, in which an iteration takes half the time.
        official: starts ``svd`` as the paper's code does, with the signs of the singular vectors as they come; they are arbitrary,
            and by default each is turned so that more of it is positive. Nothing else differs (compare in ``float32``).
        codes_file: keeps ``G`` in a memory-mapped ``.npy`` file, for more samples than fit.
        progress: a bar on a terminal.

    Attributes: ``directions_`` float64 ``(feature, unit)``, ``codes_`` ``(sample, feature)``, ``loss_path_`` (squared error after
    each iteration), ``n_iter_``, ``best_iter_``, ``loss_``, ``total_`` (the activations' sum of squares), ``relative_error_`` (their
    ratio), ``dead_units_`` (units that are 0 on all samples; no direction has them).

    Activations larger than 2 GiB are read again in every iteration, so a recording larger than memory is fine. Cost:
    O(n d k) an iteration, two products. Raises InputError for sizes that make no sense, ``sparsity * d < 1`` and activations
    that are all 0; NonFiniteError for NaN.
    """

    def __init__(
        self,
        n_components: int,
        sparsity: float = 0.01,
        init: Init = "random",
        max_iter: int = 500,
        patience: int = 100,
        tol: float = 1e-4,
        ridge: float = 1e-6,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
        official: bool = False,
        codes_file: str | None = None,
        progress: bool = False,
    ) -> None:
        self.n_components, self.sparsity, self.init = n_components, sparsity, init
        self.max_iter, self.patience, self.tol, self.ridge, self.seed = max_iter, patience, tol, ridge, seed
        self.dtype, self.official, self.codes_file, self.progress = dtype, official, codes_file, progress

    def fit(self, features: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """Finds the features of activations ``(sample, unit)``: all tokens of all texts, padding and start tokens left out."""
        self.fit_transform(features)
        return self

    def fit_transform(self, features: Any, y: Any = None, **_: Any) -> Float[np.ndarray, "sample feature"]:
        """Finds the features and returns the codes of the same samples, ``codes_``."""
        rows = as_rows(features, ndim=(2,), min_samples=2)
        self._check(rows.n_samples, rows.n_units)
        kind = DTYPES[self.dtype]
        data = samples(rows, kind)
        first = start(data, self.n_components, cast(Init, self.init), kind, self.seed, self.official)
        codes = mapped(first, self.codes_file)
        found = factorise(data, codes, self.sparsity, self.max_iter, self.patience, self.tol, self.ridge, self.progress)
        self.directions_ = found.directions.T.double().numpy()
        self.codes_ = found.codes.numpy()
        self.loss_path_, self.best_iter_, self.n_iter_ = found.loss_path, found.best, len(found.loss_path)
        self.loss_, self.dead_units_ = float(found.loss_path[found.best]), data.dead_units
        self.total_ = data.total
        self.relative_error_ = max(self.loss_, 0.0) / data.total
        return self.codes_

    def _check(self, n: int, d: int) -> None:
        if self.n_components < 1 or self.max_iter < 1 or self.init not in ("random", "svd", "kmeans"):
            raise InputError(
                f"n_components is {self.n_components}, max_iter {self.max_iter} and init '{self.init}'; expected positive numbers "
                "and random, svd or kmeans"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is '{self.dtype}', expected float64 or float32")
        if not 0 < self.sparsity <= 1 or self.sparsity * d < 1:
            raise InputError(
                f"sparsity is {self.sparsity:g} of {d} units, which keeps less than one (or more than all); give {1 / d:.3g} to 1"
            )
        if self.init == "kmeans" and self.n_components > n:
            raise InputError(f"{self.n_components} clusters were asked of {n} samples; give at most as many")
        if self.n_components > min(n, d):
            warnings.warn(
                f"{self.n_components} features of {n} samples and {d} units are not determined by the data",
                stacklevel=3,
            )

    def transform(
        self, features: Float[Tensor, "sample unit"] | Any, solver: Literal["steps", "exact"] = "steps"
    ) -> Float[np.ndarray, "sample feature"]:
        """Codes of new activations, directions held: by multiplicative ``steps``, or ``exact`` (scipy's NNLS, row by row)."""
        rows = as_rows(features, ndim=(2,))
        if rows.n_units != self.directions_.shape[1]:
            raise InputError(f"activations have {rows.n_units} units, the directions {self.directions_.shape[1]}")
        if solver not in ("steps", "exact"):
            raise InputError(f"solver is '{solver}', expected steps or exact")
        directions = torch.from_numpy(self.directions_)
        found = []
        for batch in rows:
            x = batch.values.double()
            if solver == "steps":
                found.append(nonnegative_codes(x, directions).numpy())
            else:
                found.append(np.stack([nnls(self.directions_.T, row)[0] for row in x.numpy()]))
        return np.concatenate(found)

    def dictionary(self, site: str = "") -> Dictionary:
        """The directions as a :class:`~netloupe.core.dictionary.Dictionary`."""
        return Dictionary(
            torch.from_numpy(self.directions_), "nonnegative", site, "semi-NMF",
            options={"sparsity": self.sparsity, "init": self.init, "seed": self.seed, "n_iter": self.n_iter_},
        )  # fmt: skip


class Tree(NamedTuple):
    """``children[level - 1]`` maps each feature of a level above the first to its features one level below."""

    children: tuple[dict[int, tuple[int, ...]], ...]


class _Product(nn.Module):
    """``W1 W2 .. WL H`` with every factor a parameter."""

    def __init__(self, weights: list[Tensor], last: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(w.clone()) for w in weights])
        self.last = nn.Parameter(last.clone())

    def forward(self, rows: Int[Tensor, " sample"]) -> Float[Tensor, "sample unit"]:
        """The product's rows."""
        found = self.weights[0][rows]
        for weight in list(self.weights)[1:]:
            found = found @ weight
        return found @ self.last


class RecursiveSemiNMF(BaseEstimator):
    """Semi-NMF of its own directions, again and again: a tree from specific to general features.

    ``X ~ W1 H1``, ``H1 ~ W2 H2``, ..., so ``X ~ W1 .. WL HL`` with all ``W >= 0``; then all factors together by Adam on the mean
    square of the product.

    Args:
        ranks: features of each level, falling, such as ``(400, 200, 100, 50)``.
        finetune_steps, finetune_rate: of Adam; 0 steps leave the greedy factors.
        strict: after every step of it ``W`` is made non-negative and ``HL`` sparse again. ``False`` is what the paper's code does:
            neither, so that the factors may leave their sets.
        checkpoint, checkpoint_every: folder of the fine-tuning's checkpoints; an interrupted one goes on from the last.
        **options of :class:`SemiNMF` for every level (``options``).

    Attributes: ``weights_`` list of ``(k_{l-1}, k_l)``, the first ``(sample, k_1)``; ``levels_`` greedy directions of each level;
    ``directions_`` ``(k_L, unit)`` of the last; ``error_`` relative squared error before and after fine-tuning.

    Holds the activations in memory. Raises InputError for ranks that do not fall and what :class:`SemiNMF` refuses.
    """

    def __init__(
        self,
        ranks: tuple[int, ...] = (400, 200, 100, 50),
        finetune_steps: int = 500,
        strict: bool = True,
        finetune_rate: float = 1e-3,
        options: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        checkpoint_every: int = 0,
        progress: bool = False,
    ) -> None:
        self.ranks, self.finetune_steps, self.strict, self.finetune_rate = ranks, finetune_steps, strict, finetune_rate
        self.options, self.checkpoint, self.checkpoint_every, self.progress = (
            options,
            checkpoint,
            checkpoint_every,
            progress,
        )

    def fit(self, features: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """Factorises level by level, then together."""
        ranks = tuple(self.ranks)
        if not ranks or min(ranks) < 1 or any(b >= a for a, b in pairwise(ranks)):
            raise InputError(f"ranks are {ranks}, expected positive numbers that fall from level to level")
        options = dict(self.options or {})
        x = as_rows(features, ndim=(2,), min_samples=2).array().double()
        current, weights, levels = x, [], []
        for rank in ranks:
            level = SemiNMF(rank, **options).fit(current)
            weights.append(torch.from_numpy(np.asarray(level.codes_, dtype=np.float64)))
            levels.append(level.directions_)
            current = torch.from_numpy(level.directions_)
        model = _Product(weights, current)
        before = self._error(model, x)
        if self.finetune_steps:
            self._finetune(model, x, float(options.get("sparsity", 0.01)))
        self.levels_ = levels
        self.weights_ = [w.detach().numpy() for w in model.weights]
        self.directions_ = model.last.detach().numpy()
        self.error_ = (before, self._error(model, x))
        return self

    def _finetune(self, model: _Product, x: Tensor, sparsity: float) -> None:
        everything = torch.arange(len(x))

        @torch.no_grad()
        def project(*_: Any) -> None:
            for weight in model.weights:
                weight.clamp_(min=0)
            model.last.copy_(winners(model.last.T, sparsity).T)

        def loss(output: Tensor, batch: Batch) -> Tensor:
            return (output - x).pow(2).mean()

        adam = torch.optim.Adam(model.parameters(), lr=self.finetune_rate)
        if self.strict:
            adam.register_step_post_hook(project)
        train(
            model, lambda step, generator: everything, steps=self.finetune_steps, optimizer=adam, loss=loss,
            checkpoint=self.checkpoint, checkpoint_every=self.checkpoint_every, progress=self.progress, describe="fine-tuning",
        )  # fmt: skip

    @staticmethod
    def _error(model: _Product, x: Tensor) -> float:
        with torch.no_grad():
            return float((model(torch.arange(len(x))) - x).pow(2).sum() / x.pow(2).sum())

    def tree(self, threshold: float = 0.15, max_children: int = 4) -> Tree:
        """Children of a feature: those below whose weight for it is at least ``threshold`` of its largest, the heaviest first."""
        if not 0 <= threshold <= 1 or max_children < 1:
            raise InputError(
                f"threshold is {threshold:g} and max_children {max_children}, expected 0 to 1 and at least one"
            )
        found = []
        for weight in self.weights_[1:]:
            level = {}
            for feature, column in enumerate(weight.T):
                order = np.argsort(-column, kind="stable")[:max_children]
                level[feature] = tuple(int(i) for i in order if column[i] > 0 and column[i] >= threshold * column.max())
            found.append(level)
        return Tree(tuple(found))

    def codes(self, level: int) -> Float[np.ndarray, "sample feature"]:
        """How much each sample has of each feature of a level, counted from 1: ``W1 .. Wl``."""
        if not 1 <= level <= len(self.weights_):
            raise InputError(f"level {level} was asked for, there are 1 to {len(self.weights_)}")
        found = self.weights_[0]
        for weight in self.weights_[1:level]:
            found = found @ weight
        return found

    def dictionary(self, site: str = "") -> Dictionary:
        """The most general directions."""
        return Dictionary(
            torch.from_numpy(self.directions_), "nonnegative", site, "recursive semi-NMF", options={"ranks": list(self.ranks)}
        )  # fmt: skip


def residual_directions(
    directions: Float[Tensor, "feature unit"] | Any,
    weight: Float[Tensor, "residual unit"],
    bias: Float[Tensor, " residual"] | None = None,
) -> Float[Tensor, "feature residual"]:
    """What groups of neurons write into the residual stream: ``r_j = W_out f_j``, ``weight`` being ``Linear.weight`` of ``W_out``.

    ``bias`` only where a norm follows the block's output (post-norm networks), which the caller then applies. Raises InputError
    for widths that do not match and NonFiniteError for NaN.
    """
    rows = torch.atleast_2d(torch.as_tensor(directions)).to(weight)
    if rows.shape[1] != weight.shape[1]:
        raise InputError(f"directions have {rows.shape[1]} units, the output weight takes {weight.shape[1]}")
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteError("directions hold NaN or infinity")
    found = rows @ weight.T
    return found if bias is None else found + bias
