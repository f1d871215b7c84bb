"""Routes: along which heads and blocks did a source reach the target?

A route is a path through all layers; its weight is the product of all its steps, residual ones included: the
probability that the walk from the target takes just this path. The weights of all routes from a source sum to
the `total` of `attngraph_analyses.throughput`. Only the hops along attention edges are listed, the residual
steps between them are collapsed. A route without hops stays in place through all layers, which takes a source
that holds the target itself.

The k best are exact; see `attngraph.graph.paths` for the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import (
    AttentionGraph,
    Paths,
    Policy,
    best_paths,
    completeness,
    no_route,
    source_state,
    target_state,
)
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.interop import RESIDUAL, NodeLabel, node_label
from attngraph.graph.paths import STAY


class Hop(NamedTuple):
    """One step along an attention edge, from level `layer` to level `layer` + 1.

    `target` is the token position where the hop ends in a target, else None; `query_block` is then that
    token's block. `weight` is the edge's probability, from 0 to 1.
    """

    layer: int
    head: int
    key_block: int
    query_block: int
    target: int | None
    weight: float


class Route(NamedTuple):
    """A path from source to target: its weight, and its hops in the model's direction."""

    weight: float
    hops: tuple[Hop, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Routes:
    """What `routes` found, best first.

    Parameters
    ----------
    source, target
        The two ends, by name.
    routes
        At least one, and as many as were asked for, unless there are fewer.
    layers
        Layers of the graph; a route starts at level 0 and ends at level `layers`.
    block_size
        Tokens per block; products over blocks only approximate products over tokens.
    policy
        How edges became probabilities.
    completeness
        Share of the target's walk that never leaves the recorded edges, from 0 to 1; None if it isn't known.
    completeness_source
        ``"audited"`` or ``"estimated"``, None if it isn't known; see `attngraph.graph.audit`.
    """

    source: str
    target: str
    routes: tuple[Route, ...]
    layers: int
    block_size: int
    policy: Policy
    completeness: float | None = None
    completeness_source: CompletenessSource | None = None

    def to_polars(self) -> pl.DataFrame:
        """One row per hop: route, route_weight, hop, layer, head, key_block, query_block, target, weight.

        Routes and hops count from 0. A route without hops has no row.
        """
        rows = [
            (number, route.weight, position, *hop)
            for number, route in enumerate(self.routes)
            for position, hop in enumerate(route.hops)
        ]
        whole = ("route", "hop", "layer", "head", "key_block", "query_block", "target")
        columns = ("route", "route_weight", "hop", *Hop._fields)
        schema = {name: pl.Int64 if name in whole else pl.Float64 for name in columns}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON: source, target, policy, block_size, routes, completeness, and
        its source.

        Every route is its weight and its hops, every hop a dictionary of its fields.
        """
        return {
            "source": self.source,
            "target": self.target,
            "policy": asdict(self.policy),
            "block_size": self.block_size,
            "routes": [
                {"weight": route.weight, "hops": [hop._asdict() for hop in route.hops]} for route in self.routes
            ],
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
        }

    def to_networkx(self) -> nx.MultiDiGraph:
        """The union of the routes, with the node labels of `AttentionGraph.to_networkx`.

        Hops are keyed by their head, with the attributes kind="attention", layer, head, weight. The residual
        steps between two hops make one edge, keyed "residual" with kind="residual". Both have `routes`, the
        numbers of the routes that use them. A route without hops adds nothing.
        """
        result = nx.MultiDiGraph()
        for number, route in enumerate(self.routes):
            for lower, upper, key, attributes in _edges(route, self.layers):
                if not result.has_edge(lower, upper, key):
                    result.add_edge(lower, upper, key, routes=(), **attributes)
                result.edges[lower, upper, key]["routes"] += (number,)
        return result


def routes(graph: AttentionGraph, source: str, target: str = "output", k: int = 10) -> Routes:
    """The `k` routes of the greatest weight from a source to a target, exactly.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    k
        Number of routes, at least 1. The k best are always the first k of the k + 1 best.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If there is no path of positive weight.
    ConfigError
        If `k` is below 1.
    """
    if k < 1:
        raise ConfigError(f"k={k!r} routes were asked for; give a whole number of at least 1.")
    paths = best_paths(graph, source_state(graph, source), target_state(graph, target), k)
    if not len(paths.weight):
        raise no_route(graph, source, target)
    complete = completeness(graph, target)
    return Routes(
        source=source,
        target=target,
        routes=tuple(_spelled_out(graph, paths)),
        layers=graph.layers,
        block_size=graph.block_size,
        policy=graph.policy,
        completeness=complete.share,
        completeness_source=complete.source,
    )


def _spelled_out(graph: AttentionGraph, paths: Paths) -> Iterator[Route]:
    blocks, targets = graph.node_blocks().tolist(), graph.node_targets()
    columns = (paths.weight.tolist(), paths.node.tolist(), paths.head.tolist(), paths.probability.tolist())
    for weight, nodes, heads, probabilities in zip(*columns, strict=True):
        steps = enumerate(zip(pairwise(nodes), heads, probabilities, strict=True))
        yield Route(
            weight,
            tuple(
                Hop(layer, head, lower, blocks[upper], targets[upper], probability)
                for layer, ((lower, upper), head, probability) in steps
                if head != STAY
            ),
        )


def _edges(route: Route, layers: int) -> Iterator[tuple[NodeLabel, NodeLabel, int | str, dict[str, object]]]:
    """A route's hops as (lower, upper, key, attributes), and an edge for each stretch of residual steps."""
    stay: dict[str, object] = {"kind": RESIDUAL}
    level, block, target = 0, route.hops[0].key_block if route.hops else 0, None
    for hop in route.hops:
        lower = node_label(hop.layer, hop.key_block, None)
        if hop.layer > level:
            yield node_label(level, block, target), lower, RESIDUAL, stay
        level, block, target = hop.layer + 1, hop.query_block, hop.target
        attributes: dict[str, object] = {
            "kind": "attention",
            "layer": hop.layer,
            "head": hop.head,
            "weight": hop.weight,
        }
        yield lower, node_label(level, block, target), hop.head, attributes
    if route.hops and level < layers:
        yield node_label(level, block, target), node_label(layers, block, target), RESIDUAL, stay
