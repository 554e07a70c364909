"""How many structures a site's samples form, and how much of that the labels explain, at any width.

Source: Liu, Liao et al., "Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion
Spectral Entropy", arXiv 2312.04823. The paper fixes the bandwidth at 10; here it follows the site's own scale unless it
is given, for with a fixed bandwidth much of the entropy is the size of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.isolation import pinned_threads
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.lenses.information import diffusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENS_N = 768
"""most samples in one spectrum"""
SUBSETS = 3
"""random subsets that show the spread where there are more samples than that"""
REPEATS = 5


@dataclass(frozen=True, eq=False)
class DiffusionEntropy(Finding):
    """Entropy of the spectrum of a diffusion over the samples. ``eigenvalues`` float64 ``(sample,)``, descending."""

    eigenvalues: Float[np.ndarray, " sample"]
    entropy: float
    spread: float | None
    """standard deviation over random subsets; None where all samples were used"""
    label_bits: float | None
    label_error: float | None
    """standard error of ``label_bits`` over its random comparisons"""
    n_samples: int
    n_used: int
    n_units: int
    sigma: float
    median_distance: float
    t: float
    nearest: float
    """largest kernel value between two samples"""
    farthest: float
    """smallest kernel value between two samples"""

    meanings: ClassVar[dict[str, str]] = {
        "entropy": "bits of the diffusion's spectrum, about log2 of the number of structures the samples form",
        "label_bits": "by how many bits this drops within a class, against as many random samples",
        "label_error": "standard error of that drop over the random samples it is compared with",
        "spread": "standard deviation of the entropy over random subsets of the samples",
        "structures": "two to the power of the entropy",
        "entropy_share": "the entropy as a share of its ceiling, log2 of the samples used",
        "samples_used": "samples in one spectrum; values at different numbers do not compare",
        "degenerate": "1 where the bandwidth sees every sample as alone, -1 where it sees all as one, else 0",
    }

    @property
    def degenerate(self) -> int:
        """1 where all samples are alone at this bandwidth, -1 where they are one, 0 otherwise."""
        return 1 if self.nearest < 1e-6 else -1 if self.farthest > 0.999 else 0

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; those of labels only where labels were given."""
        found = {
            "entropy": self.entropy,
            "label_bits": self.label_bits,
            "label_error": self.label_error,
            "spread": self.spread,
            "structures": 2.0**self.entropy,
            "entropy_share": self.entropy / float(np.log2(self.n_used)),
            "samples_used": self.n_used,
            "degenerate": self.degenerate,
        }
        return {name: float(value) for name, value in found.items() if value is not None}

    def paragraph(self) -> str:
        """The answer in plain words."""
        text = (
            f"{self.n_used} samples form about {2**self.entropy:.3g} structures ({self.entropy:.3g} of at most "
            f"{np.log2(self.n_used):.3g} bits"
            + ("" if self.spread is None else f", ± {self.spread:.2g} over random subsets")
            + f") at bandwidth {self.sigma:.3g}, where two samples are typically {self.median_distance:.3g} apart."
        )
        if self.label_bits is not None:
            text += f" Knowing the label takes away {self.label_bits:.3g} bits (standard error {self.label_error:.2g})."
        if self.degenerate:
            seen = "every sample as alone" if self.degenerate > 0 else "all samples as one"
            text += f" This bandwidth sees {seen}, so the number says nothing; choose another sigma."
        return text

    def plot(self, axes: Axes) -> None:
        """The eigenvalues, largest first, and how many of them the entropy counts."""
        ranks = np.arange(1, len(self.eigenvalues) + 1)
        axes.loglog(ranks, np.maximum(np.abs(self.eigenvalues) ** self.t, 1e-12), color="C0")
        axes.axvline(2**self.entropy, color="C1", linestyle="--", label=f"{2**self.entropy:.3g} structures")
        title = f"{self.entropy:.2f} bits"
        if self.label_bits is not None:
            title += f", {self.label_bits:.2f} ± {self.label_error:.2f} about the label"
        axes.set(xlabel="eigenvalue, largest first", ylabel=f"size at t = {self.t:g}", ylim=(1e-6, 1.5))
        axes.set_title(title, fontsize="small")
        axes.legend(frameon=False)


@lens(
    question="How many structures do its samples form, and how much of that does the label explain?",
    needs=("features",),
    optional=("labels",),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def diffusion_entropy(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, " sample"] | Any = None,
    *,
    sigma: float | None = None,
    t: float = 1,
    max_n: int = LENS_N,
    random_state: int = 0,
) -> DiffusionEntropy:
    """Diffusion spectral entropy of a site and, with labels, its mutual information with them, in bits.

    A Gaussian kernel of width ``sigma`` turns the samples into a random walk; ``H = -sum a log2 a`` over its
    eigenvalues' shares ``a_i = |e_i|^t / sum_j |e_j|^t`` counts the structures that survive ``t`` steps: clusters,
    branches, directions. About the label it is the mean drop of ``H`` within a class against equally many random
    samples. Equation and source: arXiv 2312.04823, :mod:`netloupe.lenses.information.diffusion`.

    Args:
        features: ``(sample, unit)``; tensor, array or stored site.
        labels: whole numbers ``(sample,)``; left out of the answer where a class has one sample or there is one class.
        sigma: bandwidth in units of the activations; default half the median distance between samples. The paper's
            10 is absolute: another scale of the same features is then another answer.
        t: diffusion time; larger keeps only the strongest structures.
        max_n: above so many samples, three random subsets of that size (``random_state``), their mean and spread.

    Cost: O(m^2 d + m^3) for ``m = min(n, max_n)``. The declared invariances hold up to ``max_n`` samples and, for scale,
    with the default ``sigma``. Raises InputError for other shapes, fewer than four samples, ``sigma`` of 0 or less, or
    samples of which most coincide; NonFiniteError for NaN.
    """
    rows = as_rows(features, labels, ndim=(2,), min_samples=4)
    if max_n < 4:
        raise InputError(f"max_n is {max_n}, at least 4 samples are needed for a spectrum")
    n = rows.n_samples
    whole = diffusion.points(rows.source)
    draws = [np.arange(n)]
    if n > max_n:
        generator = np.random.default_rng(random_state)
        draws = [np.sort(generator.choice(n, max_n, replace=False)) for _ in range(SUBSETS)]
    median = diffusion.suggest_sigma(whole[draws[0]]) if sigma is None else _median(whole[draws[0]])
    width = median / 2 if sigma is None else sigma
    bits, error = None, None
    with pinned_threads():  # these matrices are too small to share out
        kernels = [diffusion.gaussian_kernel(whole[drawn], width) for drawn in draws]
        spectra = [diffusion.kernel_spectrum(kernel) for kernel in kernels]
        entropies = [diffusion.spectral_entropy(spectrum, t) for spectrum in spectra]
        if rows.labels is not None:
            own = rows.labels.cpu().numpy()[draws[0]]
            bits, error = _about_labels(whole[draws[0]], own, kernels[0].sum(1), width, t, random_state)
    off = kernels[0] - np.eye(len(kernels[0]))
    options = {"sigma": width, "t": t, "max_n": max_n, "median_distance": median, "n_used": len(draws[0])}
    return DiffusionEntropy(
        spectra[0][::-1].copy(), float(np.mean(entropies)), float(np.std(entropies, ddof=1)) if n > max_n else None,
        bits, error, n, len(draws[0]), rows.n_units, float(width), median, float(t), float(off.max()),
        float(kernels[0].min()), context=Context(n_samples=n, seed=random_state, options=options),
    )  # fmt: skip


def _about_labels(
    rows: np.ndarray, labels: np.ndarray, degrees: np.ndarray, sigma: float, t: float, seed: int
) -> tuple[float | None, float | None]:
    """The drop and its standard error; the samples are first put in an order that is their own, not the caller's."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        return None, None
    order = np.lexsort((labels, degrees))
    drops = diffusion.group_entropy_drops(
        rows[order], None, labels[order], 0, REPEATS, sigma, t, len(rows), seed, None, False
    )[1].sum(1)
    return float(drops.mean()), float(drops.std(ddof=1) / np.sqrt(REPEATS))


def _median(rows: np.ndarray) -> float:
    try:
        return diffusion.suggest_sigma(rows)
    except InputError:
        return 0.0
