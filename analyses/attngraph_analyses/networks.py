"""Network-based statistic: differences that hang together (Zalesky et al. 2010, NeuroImage 53).

Hop by hop a difference may be too small to survive correction; a set of neighbouring hops that all differ is rarer.

1. A hop (layer ℓ, head, key role → query role) joins the nodes (ℓ, key role) and (ℓ + 1, query role). Hops whose |t|
   is at least `threshold` are kept, of either sign: what is read less here may be read more there.
2. Two hops belong together if they share a node, or if nodes of the same role lie at most `gap` levels apart: the
   residual stream carries from one to the other. A component's size is its number of hops.
3. The same is done for every permutation of the labels. p of a component is the share of permutations whose largest
   component has at least its size: family-wise over components, for one threshold chosen beforehand.

It says that a component differs, not which of its hops does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.groups import Grouped
from attngraph_analyses.permutation import (
    TIE,
    BoolArray,
    Labels,
    Statistic,
    assignments,
    chunks,
    correlation_of,
    correlations,
    observed_correlations,
    standardised,
    t_of,
)
from attngraph_analyses.role_features import RoleFeatures


class Hops(NamedTuple):
    """What hops join, ``[hops]`` each: a layer, and the numbers of a key role and of a query role."""

    layer: IntArray
    key_role: IntArray
    query_role: IntArray


class Components(NamedTuple):
    """What `network_based_statistic` found.

    `member` ``[hops]``: the number of a hop's component, the largest 0, −1 for a hop below the threshold. `size` and
    `p` ``[components]``; `t` ``[hops]``, 0 for a hop that doesn't vary.
    """

    member: IntArray
    size: IntArray
    p: FloatArray
    t: FloatArray


def network_based_statistic(
    values: FloatArray,
    hops: Hops,
    labels: Labels,
    *,
    threshold: float = 3.0,
    gap: int = 1,
    permutations: int = 9_999,
    seed: int = 0,
    statistic: Statistic = "rank",
) -> Components:
    """Connected components of differing hops, and how rarely chance makes one as large.

    Parameters
    ----------
    values
        ``[runs, hops]``, finite: one feature of every hop.
    hops
        What they join.
    labels
        The groups and strata of these runs.
    threshold
        Least |t| of a hop, above 0.
    gap
        Levels that a role's residual stream bridges between two hops, at least 0.
    permutations, seed, statistic
        As for `attngraph_analyses.permutation.max_t`.

    Raises
    ------
    ConfigError
        If the threshold or the gap is out of range.
    """
    if not threshold > 0:
        raise ConfigError(f"threshold={threshold!r} is a least |t| of a hop; give one above 0, such as 3.")
    if gap < 0:
        raise ConfigError(f"gap={gap!r} levels is below 0.")
    unit, _ = standardised(values, labels, statistic)
    placed, exact = assignments(labels, permutations, seed)
    least = correlation_of(threshold, labels) - TIE
    observed = observed_correlations(unit, labels)
    member, size = joined(np.abs(observed)[None] >= least, hops, gap)
    largest = np.concatenate(
        [
            greatest_sizes(np.abs(correlations(ways, unit, labels)) >= least, hops, gap)
            for ways in chunks(placed, len(hops.layer))
        ]
    )
    extra = 0 if exact else 1
    counts = (largest[:, None] >= size[None]).sum(0)
    return Components(member[0], size, (counts + extra) / (len(largest) + extra), t_of(observed, labels))


def component_table(
    runs: RoleFeatures, found: Grouped, feature: str, threshold: float, gap: int, **chance: Any
) -> pl.DataFrame:
    """The hops of connected components of one feature that differs, the largest component first.

    Parameters
    ----------
    runs, found
        The runs' features, and their groups.
    feature
        One of those that belong to hops.
    threshold, gap, **chance
        As for `network_based_statistic`.

    Returns
    -------
    polars.DataFrame
        component, size, p, layer, head, query_role, key_role, t.

    Raises
    ------
    ConfigError
        If the threshold or the gap is out of range.
    GraphError
        If not all runs have the feature.
    """
    schema = {"component": pl.Int64, "size": pl.Int64, "p": pl.Float64}
    common = ~np.isnan(runs.values[found.runs]).any(0)
    is_hop = np.flatnonzero((runs.keys["feature"] == feature).to_numpy() & common)
    keys = runs.keys[is_hop]
    if not len(keys):
        raise GraphError(f"The runs have no hops with the feature {feature!r} in common; name another feature.")
    values = runs.values[found.runs][:, is_hop].astype(np.float64)
    names = sorted({*keys["key_role"], *keys["query_role"]})
    numbers = {name: number for number, name in enumerate(names)}
    hops = Hops(
        keys["layer"].to_numpy(),
        *(np.array([numbers[name] for name in keys[column]]) for column in ("key_role", "query_role")),
    )
    result = network_based_statistic(values, hops, found.labels, threshold=threshold, gap=gap, **chance)
    rows = np.flatnonzero(result.member >= 0)
    component = result.member[rows]
    frame = pl.DataFrame(
        {"component": component, "size": result.size[component], "p": result.p[component]}, schema=schema
    )
    named = keys[rows].select("layer", "head", "query_role", "key_role")
    return pl.concat([frame, named, pl.DataFrame({"t": result.t[rows]})], how="horizontal").sort(
        "component", "layer", "head", "query_role", "key_role", maintain_order=True
    )


def joined(kept: BoolArray, hops: Hops, gap: int) -> tuple[IntArray, IntArray]:
    """Components of the kept hops ``[graphs, hops]`` of several graphs over the same nodes.

    Returns
    -------
    member, size
        ``[graphs, hops]``: number of each hop's component over all graphs, the largest first, −1 for a hop that isn't
        kept; and ``[components]``.
    """
    graph, hop = np.nonzero(kept)
    member = np.full(kept.shape, -1)
    if not len(hop):
        return member, np.zeros(0, np.int64)
    levels, roles = int(hops.layer.max()) + 2, int(max(hops.key_role.max(), hops.query_role.max())) + 1
    offset = graph * (levels * roles)
    lower = offset + hops.layer[hop] * roles + hops.key_role[hop]
    upper = offset + (hops.layer[hop] + 1) * roles + hops.query_role[hop]
    touched = np.zeros(len(kept) * levels * roles, bool)
    touched[lower] = touched[upper] = True
    starts, ends = [lower], [upper]
    by_level = touched.reshape(len(kept), levels, roles)
    for distance in range(1, gap + 1):
        near, level, role = np.nonzero(by_level[:, :-distance] & by_level[:, distance:])
        start = near * (levels * roles) + level * roles + role
        starts.append(start)
        ends.append(start + distance * roles)
    start, end = np.concatenate(starts), np.concatenate(ends)
    links = sparse.coo_array((np.ones(len(start), bool), (start, end)), shape=(len(touched),) * 2)
    _, label = connected_components(links, directed=False)
    _, component, size = np.unique(label[lower], return_inverse=True, return_counts=True)
    order = np.argsort(-size, kind="stable")
    member[graph, hop] = np.argsort(order)[component]
    return member, size[order]


def greatest_sizes(kept: BoolArray, hops: Hops, gap: int) -> IntArray:
    """Size of the largest component of each graph, ``[graphs]``; 0 without any hop."""
    member, size = joined(kept, hops, gap)
    sizes = np.append(size, 0)[member]  # −1 finds the 0 at the end
    return np.asarray(sizes.max(1, initial=0), np.int64)
