"""What of the label can be read from how tokens are distributed, beyond their mean.

A linear probe on pooled tokens sees their mean. If a network keeps information in how units vary together over
positions, that probe misses it. Moment probing reads first and second moments. Source: Gao et al., "Tuning Pre-trained
Model via Moment Probing", arXiv 2307.11342.

Three ways: :class:`MomentProbe` trains the published head; :func:`moment_features` gives the moments in closed form
for any linear probe; :func:`second_order` is the lens, in closed form and in one pass over the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.isolation import random_state as seeded
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Statistic
from netloupe.core.training import train
from netloupe.lenses.information.probes import (
    Judged,
    LinearProbe,
    MLPProbe,
    Probe,
    draws_of,
    interval,
    judge,
    required_labels,
)
from netloupe.lenses.information.token_moments import TokenMoments, moments_of, orthonormal
from netloupe.nn.moment_head import Center, MomentHead, Normalise, Pairs, head_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_BOOTSTRAP = 500


class MomentProbe(Probe):
    """The published moment head (:class:`netloupe.nn.moment_head.MomentHead`) trained on frozen tokens.

    Args:
        hidden, n_heads, pairs, center, normalise: of the head's second moments, as there.
        first: ``mean`` over tokens, or ``cls``, the first token, which then takes no part in the second moments.
        epochs, batch_size, learning_rate, weight_decay: AdamW with a cosine schedule; no decay of biases and norms.
        label_smoothing: 0.1 is usual when such a head is tuned for accuracy; the default 0 keeps the probabilities
            honest, which bits need.
        random_state: of the weights and the batches.

    Tokens are ``(sample, position, unit)``, standardised by the fitted samples. ``head_`` is the trained head. Cost: that
    of the head, for every sample and epoch. Raises InputError for pooled input, fewer than two positions, and sizes
    that do not fit.
    """

    ndim_: ClassVar[int] = 3

    def __init__(
        self,
        hidden: int = 512,
        n_heads: int = 4,
        pairs: Pairs = "near",
        center: Center = "scalar",
        normalise: Normalise = "column",
        first: Literal["cls", "mean"] = "mean",
        epochs: int = 60,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.hidden, self.n_heads, self.epochs, self.batch_size = hidden, n_heads, epochs, batch_size
        self.pairs: Pairs = pairs
        self.center: Center = center
        self.normalise: Normalise = normalise
        self.first: Literal["cls", "mean"] = first
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.label_smoothing, self.random_state = label_smoothing, random_state

    def head(self, n_units: int, n_classes: int) -> MomentHead:
        """An untrained head for tokens of so many units."""
        with seeded(self.random_state):
            return MomentHead(
                n_units, n_classes, self.hidden, self.n_heads, self.pairs, self.first,
                center=self.center, normalise=self.normalise,
            )  # fmt: skip

    def n_parameters(self, n_units: int, n_classes: int) -> int:
        """Parameters of the head, all of them trained."""
        return sum(parameter.numel() for parameter in self.head(n_units, n_classes).parameters())

    def _fit(self, x: np.ndarray, codes: np.ndarray) -> None:
        self.head_ = self.head(x.shape[-1], int(codes.max()) + 1)
        decayed = [value for value in self.head_.parameters() if value.ndim > 1]
        rest = [value for value in self.head_.parameters() if value.ndim == 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        tokens, labels = torch.from_numpy(x).float(), torch.from_numpy(codes)

        def loss(output: Any, batch: Batch) -> Tensor:
            assert batch.labels is not None
            return F.cross_entropy(output, batch.labels, label_smoothing=self.label_smoothing)

        batch_size = min(self.batch_size, len(codes))
        history = train(
            self.head_, (tokens, labels), steps=self.epochs * max(1, len(codes) // batch_size), batch_size=batch_size,
            optimizer=torch.optim.AdamW(groups, lr=self.learning_rate), loss=loss, schedule="cosine",
            seed=self.random_state,
        )  # fmt: skip
        if history.state == "diverged":
            raise NonFiniteError(f"training diverged at step {history.n_steps}; choose a smaller learning_rate")

    def _probabilities(self, x: np.ndarray) -> np.ndarray:
        self.head_.eval()
        with torch.no_grad():
            parts = [self.head_(part).double().softmax(-1) for part in torch.from_numpy(x).float().split(256)]
        return torch.cat(parts).numpy()


def moment_features(
    tokens: Float[Tensor, "sample position unit"] | Any,
    orders: Sequence[int] = (1, 2),
    proj: int | Float[np.ndarray, "unit channel"] | None = None,
    *,
    n_heads: int = 4,
    pairs: Pairs = "near",
    center: Center = "token",
    random_state: int = 0,
) -> Float[np.ndarray, "sample moment"]:
    """Moments of every sample's tokens in closed form, for a linear probe or an audit.

    Order 1: the mean over positions. Order 2: the flattened cross-moments ``(1/L) Z_i' Z_j`` of pairs of heads, without
    the head's layer norm and column norm, so that nothing is hidden.

    Args:
        tokens: ``(sample, position, unit)``: tensor, array or stored site, at least two positions.
        orders: 1, 2 or both.
        proj: how channels come from units: None takes the units themselves, a number makes a random orthonormal
            projection to so many, an array is used as it is.
        n_heads, pairs: as in :class:`netloupe.nn.moment_head.CrossMoments`; the heads must divide the channels.
        center: ``token`` gives covariances, to which the means do not contribute; ``scalar`` and ``none`` as there.
        random_state: of the random projection.

    Cost O(n L m (d + m)). Raises InputError for other shapes, orders and channels that the heads do not divide.
    """
    rows = as_rows(tokens, ndim=(3,))
    if rows.shape[1] < 2:
        raise InputError(f"tokens have shape {rows.shape}, second moments need at least 2 positions")
    if not orders or set(orders) - {1, 2}:
        raise InputError(f"orders are {tuple(orders)}, expected 1, 2 or both")
    projection = orthonormal(rows.n_units, proj, random_state) if isinstance(proj, int) else proj
    if projection is not None and (np.ndim(projection) != 2 or len(projection) != rows.n_units):
        raise InputError(f"proj has shape {np.shape(projection)}, expected one row for each of {rows.n_units} units")
    n_channels = rows.n_units if projection is None else np.shape(projection)[1]
    head_pairs(n_heads, pairs)
    if n_channels % n_heads or n_channels == 0:
        raise InputError(f"there are {n_channels} channels, which {n_heads} heads do not divide; give proj or n_heads")
    found = []
    for batch in rows:
        values = batch.values.double().cpu().numpy()
        first, second = moments_of(values, projection, n_heads, pairs, center)
        found.append(np.hstack([first if order == 1 else second for order in orders]))
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class SecondOrder(Finding):
    """How much more of the label can be read from tokens' second moments than from their mean, on held-out samples.

    ``gain_bits`` and ``gain_accuracy`` are differences between a probe of both moments and a linear probe of the
    means, with 95 % bootstrap intervals over the same held-out samples. ``mlp_*`` belong to a perceptron on the means
    with as many parameters as the moment probe: what is gained by size and nonlinearity alone.
    """

    gain_bits: float
    gain_bits_interval: tuple[float, float]
    gain_accuracy: float
    gain_accuracy_interval: tuple[float, float]
    mean_bits: float
    mean_accuracy: float
    moment_accuracy: float
    mlp_gain_bits: float
    mlp_accuracy: float
    beyond_mlp_interval: tuple[float, float]
    label_bits: float
    n_parameters: tuple[int, int, int]
    n_fitted: int
    n_judged: int

    meanings: ClassVar[dict[str, str]] = {
        "gain_bits": "bits about the label that second moments add to the mean, for a linear reader",
        "gain_bits_low": "lower end of its 95 % interval",
        "gain_bits_high": "upper end of its 95 % interval",
        "mlp_gain_bits": "bits that an equally large nonlinear reader of the mean adds instead",
        "mean_bits": "bits about the label in the mean, for a linear reader",
        "label_bits": "bits that there are to know about the label",
        "gain_accuracy": "held-out accuracy gained by second moments",
        "mean_accuracy": "held-out accuracy from the mean",
        "moment_accuracy": "held-out accuracy from mean and second moments",
        "mlp_accuracy": "held-out accuracy of the equally large nonlinear reader of the mean",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        low, high = self.gain_bits_interval
        ends = {"gain_bits_low": low, "gain_bits_high": high}
        return {name: ends[name] if name in ends else getattr(self, name) for name in self.meanings}

    def paragraph(self) -> str:
        """The answer in plain words."""
        (low, high), (one, other) = self.gain_bits_interval, self.gain_accuracy_interval
        return (
            f"Second moments over positions add {self.gain_bits:.2f} bits about the label (95 % interval {low:.2f} to "
            f"{high:.2f}) to the {self.mean_bits:.2f} of {self.label_bits:.2f} that the mean gives a linear reader, and "
            f"{self.gain_accuracy:+.1%} accuracy ({one:+.1%} to {other:+.1%}) to its {self.mean_accuracy:.1%}. A "
            f"perceptron of equal size on the mean alone adds {self.mlp_gain_bits:.2f} bits and names "
            f"{self.mlp_accuracy:.1%}."
        )

    def plot(self, axes: Axes) -> None:
        """Accuracy of the three readers, with the interval of the gain."""
        names = ["mean, linear", "mean, perceptron", "mean and second moments"]
        values = [self.mean_accuracy, self.mlp_accuracy, self.moment_accuracy]
        axes.barh(names, values, color=["C7", "C2", "C0"])
        low, high = self.gain_accuracy_interval
        axes.plot([self.mean_accuracy + low, self.mean_accuracy + high], [2, 2], "|-", color="0.2")
        axes.set(xlim=(0, 1), xlabel="accuracy on held-out samples (line: 95 % interval of the gain)")
        axes.invert_yaxis()


def _moments() -> TokenMoments:
    return TokenMoments(labelled=True)


def _conclude(statistics: Mapping[str, Statistic]) -> SecondOrder:
    moments = statistics["moments"]
    assert isinstance(moments, TokenMoments)
    found = moments.result()
    if (found.labels < 0).any():
        raise InputError("no labels (or negative ones) came with the tokens, and probes read labels; give labels")
    if not np.isfinite(found.second).all():
        raise NonFiniteError("the second moments overflow; rescale the features")
    labels, both = required_labels(torch.from_numpy(found.labels)), np.hstack([found.first, found.second])
    n_classes, state = len(torch.unique(labels)), moments.random_state
    sizes = [(width + 1) * n_classes for width in (found.first.shape[1], both.shape[1])]
    mean = judge(LinearProbe(random_state=state), found.first, labels, chance=False, random_state=state)
    moment = judge(LinearProbe(random_state=state), both, labels, chance=False, random_state=state)
    return _finding(mean, moment, found.first, labels, sizes, state)


@lens(
    question="Do second moments over positions carry more of the label than the mean does?",
    needs=("features", "labels"),
    positions=True,
    min_samples=8,
    statistics={"moments": _moments},
    conclude=_conclude,
)
def second_order(
    features: Float[Tensor, "sample position unit"] | Any, labels: Int[Tensor, " sample"] | Any, mask: Any = None
) -> SecondOrder:
    """The label's bits in covariances over positions, beyond those in the mean, in closed form and one pass.

    Units are projected at random to at most 32 orthonormal channels in four heads. A ridge-regularised logistic
    regression reads the channels' means, another the means and the covariances ``(1/L) (Z_i - m_i)' (Z_j - m_j)`` of
    neighbouring heads (arXiv 2307.11342, centred over tokens, so that nothing of the mean leaks into them), both judged
    on the same held-out quarter. A perceptron on the means with as many parameters is the control.

    Args:
        features: ``(sample, position, unit)``: tensor, array or stored site. The first 2,000 samples and at most 256
            evenly spaced positions of each are used.
        labels: ``(sample,)`` whole numbers from 0, at least four samples of each class.
        mask: bool ``(sample, position)``; padding is left out.

    Cost: one pass, O(n L d m), and three small fits of about 0.1 s each; streams. Raises InputError for sites without
    positions, a single unit, missing labels or a class of fewer than four; NonFiniteError for NaN. What is found
    depends on the random projection: it is one draw, the same each time.
    """
    rows = as_rows(features, labels, mask, ndim=(3,), min_samples=8)
    required_labels(rows.labels)
    moments = _moments()
    for batch in rows:
        found = None if batch.labels is None else batch.labels.long()
        held = None if batch.mask is None else batch.mask.bool()
        moments.update(batch.values, mask=held, labels=found, samples=batch.samples)
    return _conclude({"moments": moments})


def second_order_gain(
    tokens: Float[Tensor, "sample position unit"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    probe: MomentProbe | None = None,
    *,
    share: float = 0.25,
    random_state: int = 0,
) -> SecondOrder:
    """The same comparison with the trained head: linear probe of the mean, moment probe, perceptron of equal size.

    Args:
        tokens: ``(sample, position, unit)``. labels: ``(sample,)`` whole numbers, at least four samples of each class.
        probe: settings of the moment probe. Its default centring lets products of means into the second moments, and
            its layer norm mixes mean and covariance even with ``center="token"``: what it gains over a linear reader of
            the mean need not come from covariances (:func:`second_order` measures these alone).
        share: of samples held out. random_state: of the split and the other probes.

    Cost: that of training the head. Errors as of :func:`second_order`.
    """
    rows = as_rows(tokens, labels, ndim=(3,), min_samples=8)
    targets, values = required_labels(rows.labels), rows.array()
    probe, means = probe or MomentProbe(random_state=random_state), values.double().mean(1)
    n_classes, options = len(torch.unique(targets)), {"share": share, "chance": False, "random_state": random_state}
    sizes = [(rows.n_units + 1) * n_classes, probe.n_parameters(rows.n_units, n_classes)]
    mean = judge(LinearProbe(random_state=random_state), means, targets, **options)
    moment = judge(probe, values, targets, **options)
    return _finding(mean, moment, means, targets, sizes, random_state, share)


def _finding(
    mean: Judged, moment: Judged, means: Any, labels: Tensor, sizes: list[int], random_state: int, share: float = 0.25
) -> SecondOrder:
    """Differences of three readers of the same held-out samples, the third fitted here."""
    n_classes, n_units = len(torch.unique(labels)), means.shape[1]
    n_hidden = MLPProbe.matched(sizes[1], n_units, n_classes)
    mlp = judge(
        MLPProbe(n_hidden, random_state=random_state), means, labels,
        share=share, chance=False, random_state=random_state,
    )  # fmt: skip
    draws = draws_of(len(mean.judged), N_BOOTSTRAP, random_state)
    return SecondOrder(
        gain_bits=moment.bits - mean.bits,
        gain_bits_interval=interval(moment.pointwise - mean.pointwise, draws),
        gain_accuracy=moment.accuracy - mean.accuracy,
        gain_accuracy_interval=interval(moment.hits * 1.0 - mean.hits, draws),
        mean_bits=mean.bits,
        mean_accuracy=mean.accuracy,
        moment_accuracy=moment.accuracy,
        mlp_gain_bits=mlp.bits - mean.bits,
        mlp_accuracy=mlp.accuracy,
        beyond_mlp_interval=interval(moment.hits * 1.0 - mlp.hits, draws),
        label_bits=mean.label_bits,
        n_parameters=(sizes[0], sizes[1], n_hidden * (n_units + 1) + n_classes * (n_hidden + 1)),
        n_fitted=mean.n_fitted,
        n_judged=len(mean.judged),
    )
