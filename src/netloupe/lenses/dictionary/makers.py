"""Every way to make a dictionary from activations, under one name each, to one :class:`~netloupe.core.dictionary.Dictionary`.

Ways that need more than activations are where they belong: the local interaction basis (two layers and the map between them,
:mod:`netloupe.lenses.dictionary.lib`), codebooks (trained inside the network, :mod:`netloupe.nn.codebook`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from netloupe.core.dictionary import Dictionary, pca_dictionary
from netloupe.core.errors import InputError
from netloupe.core.rows import PositionRows, as_rows
from netloupe.lenses.dictionary.nmf import NonNegativeDictionary
from netloupe.lenses.dictionary.sae import SparseAutoencoder
from netloupe.lenses.dictionary.snmf import SemiNMF
from netloupe.nn.sparse_coder import Activation

Maker = Callable[..., Dictionary]


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
            (:class:`NonNegativeDictionary`), or a sparse autoencoder ``relu``, ``topk``, ``batchtopk``, ``jumprelu``
            (:class:`SparseAutoencoder`).
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
    as_rows(rows, ndim=(2,), min_samples=2)
    try:
        return MAKERS[maker](rows, n_features, site, random_state, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise InputError(
            f"'{maker}' does not take the option {str(error).rpartition(' ')[2]}; see its class"
        ) from error


def _pca(rows: Any, n_features: int, site: str, random_state: int) -> Dictionary:
    return pca_dictionary(rows, n_features, site)


def _snmf(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
    return SemiNMF(n_features, seed=random_state, **options).fit(rows).dictionary(site)


def _nmf(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
    return NonNegativeDictionary(n_features, random_state=random_state, **options).fit(rows).dictionary(site)


def _autoencoder(activation: Activation) -> Maker:
    def make(rows: Any, n_features: int, site: str, random_state: int, **options: Any) -> Dictionary:
        return SparseAutoencoder(n_features, activation, seed=random_state, **options).fit(rows).dictionary(site)

    return make


MAKERS: dict[str, Maker] = {"pca": _pca, "snmf": _snmf, "nmf": _nmf} | {
    a: _autoencoder(a) for a in get_args(Activation)
}
