"""Every way to make a dictionary from activations, under one name each, to one :class:`~netloupe.core.dictionary.Dictionary`.

Ways that need more than activations are where they belong: the local interaction basis (two layers and the map between them,
:mod:`netloupe.lenses.dictionary.lib`), codebooks (trained inside the network, :mod:`netloupe.nn.codebook`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from netloupe.core.dictionary import Dictionary, pca_dictionary
from netloupe.core.errors import InputError
from netloupe.core.rows import PositionRows, as_rows
from netloupe.lenses.dictionary.adaptive_thresholds import AdaptiveThresholdClusters
from netloupe.lenses.dictionary.nmf import NonNegativeDictionary
from netloupe.lenses.dictionary.sae import SparseAutoencoder
from netloupe.lenses.dictionary.snmf import SemiNMF
from netloupe.nn.sparse_coder import Activation

Maker = Callable[..., Dictionary]
FEAST_ROWS = 1000  # for each feature at least: about three times what it needs to forget its start at a rate of .01


def make_dictionary(
    maker: str,
    features: Float[Tensor, "sample unit"] | Any,
    n_features: int,
    site: str = "",
    *,
    mask: Any = None,
    random_state: int = 0,
    **options: Any,
) -> Dictionary:
    """A dictionary of ``n_features`` features of one site's activations.

    Args:
        maker: ``pca`` (:func:`~netloupe.core.dictionary.pca_dictionary`), ``snmf`` (:class:`SemiNMF`), ``nmf``
            (:class:`NonNegativeDictionary`), ``feast`` (:class:`AdaptiveThresholdClusters`), or a sparse
            autoencoder ``relu``, ``topk``, ``batchtopk``, ``jumprelu``
            (:class:`SparseAutoencoder`, here with ``normalise`` unless told otherwise).
        features: ``(sample, unit)`` or ``(sample, position, unit)``, whose positions become rows; an array or a stored site, which
            is streamed. mask: ``(sample, position)``, False where there is padding.
        options: what the maker's class takes, such as ``k``, ``steps``, ``l1``, ``checkpoint``, ``sparsity``.

    Cost: the maker's. Raises InputError for an unknown maker or option and for what the maker refuses.
    """
    if maker not in MAKERS:
        raise InputError(f"the maker is '{maker}', expected one of {', '.join(MAKERS)}")
    rows = features
    if len(getattr(features, "shape", ())) == 3:
        rows = PositionRows(features, mask)
    if isinstance(n_features, bool) or not isinstance(n_features, Integral) or n_features < 1:
        raise InputError(f"{n_features} features were asked for, expected a whole number of at least 1")
    options = checked_options(maker, options)
    as_rows(rows, ndim=(2,), min_samples=2)
    return MAKERS[maker](rows, int(n_features), site, random_state, **options)


def checked_options(maker: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a maker, where these are what it takes: whole numbers where its default is one, numbers where it is a number.

    Raises InputError for an unknown option, with those that there are, and for a value of another kind.
    """
    parameters = inspect.signature(_CLASSES[maker]).parameters.values() if maker in _CLASSES else ()
    own = ("activation", "seed", "random_state", "n_features")  # said by the other arguments
    known = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in own}
    found = {}
    for name, value in options.items():
        if name not in known:
            raise InputError(f"'{maker}' does not take the option '{name}'; it takes {', '.join(known) or 'none'}")
        found[name], default, real = value, known[name], isinstance(value, Real) and not isinstance(value, bool)
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        if not real or value != value or (isinstance(default, int) and not float(value).is_integer()):
            raise InputError(
                f"the option {name} of '{maker}' is {value!r}, expected a {'whole ' * isinstance(default, int)}number"
            )
        found[name] = int(float(value)) if isinstance(default, int) else value
    return found


def _pca(rows: Any, n_features: int, site: str, random_state: int) -> Dictionary:
    return pca_dictionary(rows, n_features, site)


def _snmf(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
    return SemiNMF(n_features, seed=random_state, **options).fit(rows).dictionary(site)


def _nmf(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
    return NonNegativeDictionary(n_features, random_state=random_state, **options).fit(rows).dictionary(site)


def _feast(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
    given = {"init": "kmeans++", "eta": 0.01, "epochs": max(1, -(-n_features * FEAST_ROWS // rows.shape[0]))} | options
    return AdaptiveThresholdClusters(n_features, seed=random_state, **given).fit(rows).dictionary(site)


def _autoencoder(activation: Activation) -> Maker:
    def make(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
        given: dict[str, Any] = {"normalise": True, **options}
        return SparseAutoencoder(n_features, activation, seed=random_state, **given).fit(rows).dictionary(site)

    return make


_CLASSES: dict[str, type] = {
    "snmf": SemiNMF,
    "nmf": NonNegativeDictionary,
    "feast": AdaptiveThresholdClusters,
} | dict.fromkeys(get_args(Activation), SparseAutoencoder)
MAKERS: dict[str, Maker] = {"pca": _pca, "snmf": _snmf, "nmf": _nmf, "feast": _feast} | {
    a: _autoencoder(a) for a in get_args(Activation)
}
