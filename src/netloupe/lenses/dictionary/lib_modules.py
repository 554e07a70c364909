"""Groups of features that interact with each other more than with the rest.

Source: Bushnaq et al., "The Local Interaction Basis", arXiv 2405.10928 (edges in log space, then community detection).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from netloupe.core.errors import InputError, MissingExtraError, NonFiniteError


@dataclass(frozen=True, eq=False)
class Modules:
    """``labels[l]`` ``(feature,)``: each feature's module, largest module 0; -1 for the constant. ``modularity``: share of
    edge weight inside modules, minus what degrees alone would put there, at the resolution asked."""

    labels: tuple[Int[np.ndarray, " feature"], ...]
    modularity: float
    n_modules: int
    sizes: tuple[int, ...]


def modules(
    edges: Sequence[Any],
    resolution: float = 1.0,
    *,
    least: float | Sequence[float] | None = None,
    n_constant: int | Sequence[int] = 1,
    method: Literal["louvain", "leiden"] = "louvain",
    random_state: int = 0,
) -> Modules:
    """Communities of the graph whose weights are ``log10(E / least)``, clipped at 0.

    Args:
        edges: matrices ``(feature_out, feature_in)`` of consecutive layer pairs.
        resolution: larger gives more and smaller modules; sweep it.
        least: the smallest edge that counts, one number or one a pair; best the smallest edge that
            :func:`~netloupe.lenses.dictionary.lib_edges.edges_needed` keeps. Default: a millionth of the pair's largest.
        n_constant: how many leading features of each layer are constants, left out; one number for every layer but the last
            (which has none), or one for each layer.
        method: ``louvain`` of networkx, or ``leiden``, which needs igraph and leidenalg.

    Cost: about linear in the number of edges. Raises InputError for shapes that do not follow each other, NonFiniteError,
    MissingExtraError where leiden is not installed.
    """
    tables = [np.asarray(each, dtype=np.float64) for each in edges]
    if not tables or any(each.ndim != 2 or 0 in each.shape for each in tables):
        raise InputError("edges of at least one pair of layers are needed, each (feature_out, feature_in)")
    if any(one.shape[0] != two.shape[1] for one, two in pairwise(tables)):
        raise InputError(f"edges have shapes {[each.shape for each in tables]}, which do not follow each other")
    if not all(np.isfinite(each).all() for each in tables):
        raise NonFiniteError("an edge is NaN or infinite, but finite numbers are needed")
    widths = [tables[0].shape[1], *(each.shape[0] for each in tables)]
    skipped = [n_constant] * len(tables) + [0] if isinstance(n_constant, int) else list(n_constant)
    limits = [least] * len(tables) if least is None or isinstance(least, (int, float)) else list(least)
    if len(skipped) != len(widths) or len(limits) != len(tables):
        raise InputError(f"n_constant needs one number a layer ({len(widths)}) and least one a pair ({len(tables)})")
    starts = np.concatenate([[0], np.cumsum(widths)])
    found = []
    for index, (table, limit) in enumerate(zip(tables, limits)):
        eps = 1e-6 * float(table.max()) if limit is None else float(limit)
        if eps <= 0:
            raise InputError(f"pair {index} has no positive edge to measure others by; give least above 0")
        weight = np.log10(np.maximum(table / eps, 1.0))
        weight[: skipped[index + 1]], weight[:, : skipped[index]] = 0, 0
        i, j = np.nonzero(weight)
        found += zip((starts[index] + j).tolist(), (starts[index + 1] + i).tolist(), weight[i, j].tolist())
    nodes = [int(start + k) for start, width, skip in zip(starts, widths, skipped) for k in range(skip, width)]
    groups, modularity = _communities(nodes, found, resolution, method, random_state)
    groups.sort(key=lambda group: (-len(group), min(group)))
    flat = np.full(starts[-1], -1, dtype=np.int64)
    for label, group in enumerate(groups):
        flat[list(group)] = label
    labels = tuple(flat[a:b] for a, b in pairwise(starts))
    return Modules(labels, modularity, len(groups), tuple(map(len, groups)))


def _communities(
    nodes: list[int], edges: list[tuple[int, int, float]], resolution: float, method: str, seed: int
) -> tuple[list[set[int]], float]:
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(nodes)
    graph.add_weighted_edges_from(edges)
    if not edges:
        return [{node} for node in nodes], 0.0
    if method == "leiden":
        groups = _leiden(nodes, edges, resolution, seed)
    elif method == "louvain":
        groups = [set(g) for g in nx.community.louvain_communities(graph, resolution=resolution, seed=seed)]
    else:
        raise InputError(f"method is '{method}', expected louvain or leiden")
    return groups, float(nx.community.modularity(graph, groups, resolution=resolution))


def _leiden(nodes: list[int], edges: list[tuple[int, int, float]], resolution: float, seed: int) -> list[set[int]]:
    try:
        import igraph
        import leidenalg
    except ImportError:
        raise MissingExtraError("leidenalg", "graphs", "the method 'leiden'") from None
    place = {node: index for index, node in enumerate(nodes)}
    graph = igraph.Graph(n=len(nodes), edges=[(place[a], place[b]) for a, b, _ in edges])
    found = leidenalg.find_partition(
        graph, leidenalg.RBConfigurationVertexPartition, weights=[w for *_, w in edges],
        resolution_parameter=resolution, seed=seed,
    )  # fmt: skip
    return [{nodes[index] for index in group} for group in found]
