"""Routes: along which heads and blocks did a source reach the target?

A route is a path through all layers; its weight is the product of all its steps, residual ones included: the
probability that the walk from the target takes just this path. The weights of all routes from a source sum to
the `total` of `attngraph_analyses.throughput`. Only the hops along attention edges are listed, the residual
steps between them are collapsed. A route without hops stays in place through all layers, which takes a source
that holds the target itself.

`routes` gives the k best, exactly (`attngraph.graph.paths` has the algorithm), or the k widest, or routes that
avoid what those before them used. `sequence_weight` asks the other way round: given the hops, what do all the
layers at which they could happen add up to? `reach` tells how early a source can be felt at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
import polars as pl

from attngraph.graph import (
    AttentionGraph,
    Paths,
    best_paths,
    blocks_of,
    diverse_paths,
    no_route,
    source_state,
    target_state,
)
from attngraph.graph.interop import RESIDUAL, NodeLabel, node_label
from attngraph.graph.paths import STAY, Distinct, Kind
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about


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
    """A path from source to target: its weight, its hops in the model's direction, and its width.

    The width is the smallest probability among all its steps, residual ones included.
    """

    weight: float
    hops: tuple[Hop, ...]
    width: float

    @property
    def stops(self) -> tuple[str, ...]:
        """The names of the blocks that it passes, and of the target or block where it ends; () without hops."""
        ends = [f"block:{hop.query_block}" if hop.target is None else f"token:{hop.target}" for hop in self.hops[-1:]]
        return (*(f"block:{hop.key_block}" for hop in self.hops), *ends)

    @property
    def heads(self) -> tuple[int, ...]:
        """The head of every hop."""
        return tuple(hop.head for hop in self.hops)


@dataclass(frozen=True, eq=False, kw_only=True)
class Routes(ComparedAnswer):
    """What `routes` found, best first.

    Parameters
    ----------
    source, target
        The two ends, by name.
    routes
        At least one, and as many as were asked for, unless there are fewer.
    kind, distinct, reuse
        What was asked for; see `routes`.
    layers
        Layers of the graph; a route starts at level 0 and ends at level `layers`.
    against
        How the best route's weight stands against a null.
    """

    source: str
    target: str
    routes: tuple[Route, ...]
    kind: Kind
    distinct: Distinct
    reuse: float
    layers: int

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
        """The result as plain values for JSON: what was asked, policy, block_size, routes, completeness and its source.

        Every route is its weight, its width and its hops, every hop a dictionary of its fields.
        """
        return {
            "source": self.source,
            "target": self.target,
            "kind": self.kind,
            "distinct": self.distinct,
            "reuse": self.reuse,
            "policy": asdict(self.policy),
            "block_size": self.block_size,
            "routes": [
                {"weight": route.weight, "width": route.width, "hops": [hop._asdict() for hop in route.hops]}
                for route in self.routes
            ],
            "null": None if self.against is None else self.against.to_dict(),
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
        }

    def to_networkx(self, *numbers: int) -> nx.MultiDiGraph:
        """The union of the routes, or of those of some `numbers`, as an extract for NetworkX.

        Nodes are labelled as by `AttentionGraph.to_networkx`.

        Hops are keyed by their head, with the attributes kind="attention", layer, head, weight. The residual
        steps between two hops make one edge, keyed "residual" with kind="residual". Both have `routes`, the
        numbers of the routes that use them. A route without hops adds nothing.
        """
        result = nx.MultiDiGraph()
        for number in numbers or range(len(self.routes)):
            route = self.routes[number]
            for lower, upper, key, attributes in _edges(route, self.layers):
                if not result.has_edge(lower, upper, key):
                    result.add_edge(lower, upper, key, routes=(), **attributes)
                result.edges[lower, upper, key]["routes"] += (number,)
        return result


def routes(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    k: int = 10,
    *,
    kind: Kind = "best",
    distinct: Distinct = "edges",
    reuse: float = 1.0,
    null: Null | NullName | None = None,
) -> Routes:
    """The `k` best routes from a source to a target, exactly; or as many as there are.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    k
        Number of routes, at least 1. The k best are always the first k of the k + 1 best.
    kind
        ``"best"``: the greatest weight; ``"widest"``: the greatest width, however small the product becomes.
    distinct
        ``"edges"``: routes differ in an edge, be it only its head; ``"nodes"``: of the routes through the same
        nodes only the best, with its heads.
    reuse
        Factor from 0 to 1 on every node and edge per earlier route that uses it, the nodes of the source and
        the target excepted, while the next is searched; the weights reported are the true ones, the order is
        that of choice. 1: reuse is free. 0: routes are disjoint. Between: routes are diverse. Below 1 every
        route costs a search of its own; see `attngraph.graph.diverse`.
    null
        Also ask for the weight of the best route under this null, 0 without one.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If there is no path of positive weight.
    ConfigError
        If `k` is below 1, another parameter is out of range, or the null unknown or ``"heads"``, which changes no
        weight.
    GraphError
        If the null has nothing to compare with.
    """
    chosen = None if null is None else meaningful(null, "the best route's weight", *ALL_BUT_HEADS)
    ends = source_state(graph, source), target_state(graph, target)
    if reuse == 1:
        paths = best_paths(graph, *ends, k, kind=kind, distinct=distinct)
    else:
        paths = diverse_paths(graph, *ends, k, reuse=reuse, kind=kind, distinct=distinct)
    if not len(paths.weight):
        raise no_route(graph, source, target)
    question = Question(graph, blocks_of(graph, source), target)
    return Routes(
        source=source,
        target=target,
        routes=tuple(_spelled_out(graph, paths)),
        kind=kind,
        distinct=distinct,
        reuse=reuse,
        layers=graph.layers,
        against=None if chosen is None else compare(_best_weight, question, chosen, value=paths.weight[0]),
        **about(graph, target),
    )


def _best_weight(question: Question) -> float:
    """The weight of a question's best route; 0 if there is none."""
    best = best_paths(question.graph, question.starts(), target_state(question.graph, question.target), 1).weight
    return float(best[0]) if len(best) else 0.0


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
            min(probabilities),
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
