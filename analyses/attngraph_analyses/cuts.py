"""Cuts: what would have to be blocked so that nothing of a source reaches a target?

The graph is that of all steps which lie on some route from source to target whose every step carries at least
`threshold` of the walks (its throughput). A cut is a set of edges, nodes or blocks that every such route goes
through, and the minimum cut the one of the least capacity. It equals the maximum flow (Ford & Fulkerson 1956),
which Abnar & Zuidema (2020, arXiv 2005.00928) use as a measure of attention.

Choices, all of them recorded in the result:

- `of`: ``"edges"``: attention edges, heads apart. ``"nodes"``: (level, block) pairs; with ``"unit"`` the number of
  routes without common nodes (Menger 1927). ``"blocks"``: blocks at all their levels at once, in the graph of
  blocks that forgets the levels. Blocking these does cut every route, though a smaller set may do where routes
  can't follow the layers' order.
- `capacity`: ``"mass"``, the recorded attention mass that has to be blocked; ``"unit"``, the number of edges, nodes
  or blocks; ``"throughput"``. A node has the sum of what leaves it upwards along edges, or 1; a block the greatest
  of its nodes, or 1. Throughput is itself a flow of 1 between the ends: cuts of edges by throughput are 1 if every
  route is allowed, and with a threshold the share of the walks that the remaining steps can carry at once.
- `residual`: the residual streams. ``"keep"``: residual steps can't be cut, and neither can the streams of source
  and target when nodes are. ``"cut"``: residual steps can be cut like edges, and these streams at every level but
  the source's first and the target's last. Residual steps have no mass.
- A hop straight from the source's streams to the target's passes no other node, so cuts of nodes with ``"keep"``,
  and of blocks, leave such hops out and report what they carry as `direct`.
- The source's nodes at level 0 and the target's at the last level are never cut. What is done with the sink is the
  graph's policy.

SciPy's maximum flow takes 32-bit integers, so capacities are multiplied by `scale`, a power of two, and rounded.
`value` is the cut's capacity before rounding and `flow` the maximum flow divided by `scale`: they differ by at most
½ / `scale` for each of the cut's arcs, parallel heads included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, blocks_of
from attngraph.graph.paths import STAY
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.flow import FIRST, Network, joined, saturated
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about
from attngraph_analyses.steps import (
    RoutesGraph,
    Steps,
    check_threshold,
    head_column,
    routes_graph,
    stacked,
    without_route,
)

Of = Literal["edges", "nodes", "blocks"]
Capacity = Literal["mass", "unit", "throughput"]
CutResidual = Literal["keep", "cut"]


def _no_indices() -> IntArray:
    return np.zeros(0, np.int64)


def _no_shares() -> FloatArray:
    return np.zeros(0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cut(ComparedAnswer):
    """What `minimum_cut` found.

    Parameters
    ----------
    source, target, of, capacity, threshold, residual
        What was asked; see the module.
    node_block, node_target
        Each node's block, and the token position of those that are targets (None for blocks).
    value
        Capacity of the cut; infinite if source and target are joined by what can't be cut, such as one residual stream.
    flow
        The maximum flow.
    scale
        Integer units per unit of capacity.
    direct
        Throughput of the hops straight from the source's streams to the target's where they are left out, else 0.
    layer, head, key_block, query, throughput, mass
        ``[cut]``: of edges: the steps of the cut, greatest throughput first; `head` is -1 and `mass` NaN for a residual
        step. Empty for nodes and blocks.
    level, node
        ``[cut]``: of nodes: the nodes of the cut. Of blocks: `level` is empty. Empty for edges.
    against
        How `value` stands against a null.
    """

    source: str
    target: str
    of: Of
    capacity: Capacity
    threshold: float
    residual: CutResidual
    node_block: IntArray
    node_target: tuple[int | None, ...]
    value: float = np.inf
    flow: float = np.inf
    scale: float = 1.0
    direct: float = 0.0
    layer: IntArray = field(default_factory=_no_indices)
    head: IntArray = field(default_factory=_no_indices)
    key_block: IntArray = field(default_factory=_no_indices)
    query: IntArray = field(default_factory=_no_indices)
    throughput: FloatArray = field(default_factory=_no_shares)
    mass: FloatArray = field(default_factory=_no_shares)
    level: IntArray = field(default_factory=_no_indices)
    node: IntArray = field(default_factory=_no_indices)

    def __len__(self) -> int:
        return len(self.layer) if self.of == "edges" else len(self.node)

    def to_polars(self) -> pl.DataFrame:
        """One row per edge, node or block of the cut.

        Of edges: layer, head (null for a residual step), key_block, query_block, target, throughput, mass (null
        likewise). Of nodes: level, block, target. Of blocks: block, target. `target` is a token position, null for
        blocks.
        """
        targets = pl.Series(self.node_target, dtype=pl.Int64)
        if self.of == "edges":
            return pl.DataFrame(
                {
                    "layer": self.layer,
                    "head": head_column(self.head),
                    "key_block": self.node_block[self.key_block],
                    "query_block": self.node_block[self.query],
                    "target": targets.gather(self.query),
                    "throughput": self.throughput,
                    "mass": pl.Series(self.mass).fill_nan(None),
                }
            )
        levels = {"level": self.level} if self.of == "nodes" else {}
        return pl.DataFrame({**levels, "block": self.node_block[self.node], "target": targets.gather(self.node)})

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON; an infinite value or flow is None."""
        return {
            "source": self.source,
            "target": self.target,
            "policy": vars(self.policy),
            "block_size": self.block_size,
            "of": self.of,
            "capacity": self.capacity,
            "threshold": self.threshold,
            "residual": self.residual,
            "value": self.value if np.isfinite(self.value) else None,
            "flow": self.flow if np.isfinite(self.flow) else None,
            "scale": self.scale,
            "direct": self.direct,
            "cut": self.to_polars().to_dicts(),
            "null": None if self.against is None else self.against.to_dict(),
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
        }


def minimum_cut(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    of: Of = "edges",
    capacity: Capacity = "mass",
    threshold: float = 0.001,
    residual: CutResidual = "keep",
    null: Null | NullName | None = None,
) -> Cut:
    """The edges, nodes or blocks of least capacity that every route from a source to a target goes through.

    All steps that carry anything are held in memory.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    of, capacity, residual
        What is cut, what it costs, and whether residual streams can be cut; see the module.
    threshold
        Steps that carry less than this share of the walks are left out, from 0 to 1. With 0, thousands of steps
        that carry next to nothing decide.
    null
        Also ask for the least capacity under this null.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no route is made of steps that carry at least `threshold`.
    ConfigError
        If a choice is unknown, the threshold out of range, residual steps are to be cut by their mass (they have none),
        or the null changes no cut: ``"heads"`` never does, ``"uniform"`` doesn't where neither a threshold nor the
        capacity asks for weights.
    GraphError
        If the null has nothing to compare with.
    """
    for name, value, allowed in (("of", of, Of), ("capacity", capacity, Capacity), ("residual", residual, CutResidual)):
        if value not in get_args(allowed):
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(get_args(allowed))}.")
    if (of, capacity, residual) == ("edges", "mass", "cut"):
        raise ConfigError("Residual steps have no mass: with residual='cut' use capacity='throughput' or 'unit'.")
    check_threshold(threshold)
    weighed = threshold > 0 or capacity == "throughput"
    names = ALL_BUT_HEADS if weighed else ALL_BUT_HEADS[1:]
    chosen = None if null is None else meaningful(null, "the least capacity", *names)
    question = Question(graph, blocks_of(graph, source), target)
    found = routes_graph(question, threshold)
    if found is None:
        raise without_route(graph, source, target, threshold)
    request = Cut(
        source=source,
        target=target,
        of=of,
        capacity=capacity,
        threshold=threshold,
        residual=residual,
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        **about(graph, target),
    )
    cut = _cut(found, request)
    if chosen is None:
        return cut

    def ask(question: Question) -> float:
        other = routes_graph(question, threshold)
        return np.nan if other is None else _cut(other, request).value

    return replace(cut, against=compare(ask, question, chosen, value=cut.value))


def _cut(found: RoutesGraph, request: Cut) -> Cut:
    """Fill in the answer to a request."""
    graph = found.graph
    steps = stacked(found.layers)
    layer = np.repeat(np.arange(graph.layers), [len(part.share) for part in found.layers])
    direct = 0.0
    if request.of == "blocks" or (request.of == "nodes" and request.residual == "keep"):
        hop = np.isin(steps.lower, found.starts) & np.isin(steps.upper, found.ends) & (steps.head != STAY)
        direct = float(steps.share[hop].sum())
        steps, layer = steps.only(~hop), layer[~hop]
    cost = {"throughput": steps.share, "mass": steps.mass, "unit": np.ones(len(steps.share))}[request.capacity]
    if request.of == "edges":
        stays = (steps.head == STAY) & (request.residual == "keep")
        network = _edge_network(found, layer, steps, np.where(stays, np.inf, cost))
    else:
        network = _vertex_network(found, layer, steps, np.nan_to_num(cost), request)
    answer = saturated(network, whole=request.capacity == "unit")
    crossing = answer.crossing
    value = float(network.capacity[crossing].sum()) if np.isfinite(answer.flow) else np.inf
    result = replace(request, value=value, flow=answer.flow, scale=answer.scale, direct=direct)
    if request.of == "edges":
        crossing = crossing[np.argsort(-steps.share[crossing], kind="stable")]
        return replace(
            result,
            layer=layer[crossing],
            head=steps.head[crossing],
            key_block=steps.lower[crossing],
            query=steps.upper[crossing],
            throughput=steps.share[crossing],
            mass=steps.mass[crossing],
        )
    vertex = np.sort((network.tail[crossing] - FIRST) // 2)
    level, node = np.divmod(vertex, graph.nodes) if request.of == "nodes" else (_no_indices(), vertex)
    return replace(result, level=level, node=node)


def _edge_network(found: RoutesGraph, layer: IntArray, steps: Steps, cost: FloatArray) -> Network:
    """A vertex for every (level, node); the first arcs are the steps, in their order."""
    nodes, layers = found.graph.nodes, found.graph.layers
    lower, upper = layer * nodes + steps.lower, (layer + 1) * nodes + steps.upper
    ends = layers * nodes + found.ends
    size = FIRST + (layers + 1) * nodes
    return joined(size, FIRST + found.starts, FIRST + ends, (FIRST + lower, FIRST + upper, cost))


def _vertex_network(found: RoutesGraph, layer: IntArray, steps: Steps, cost: FloatArray, request: Cut) -> Network:
    """An arc of its capacity for every node or block, from where it is entered to where it is left."""
    nodes, levels = found.graph.nodes, found.graph.layers + 1
    leaving = np.bincount(layer * nodes + steps.lower, cost, minlength=levels * nodes).reshape(levels, nodes)
    own = np.ones((levels, nodes)) if request.capacity == "unit" else leaving
    if request.of == "nodes":
        lower, upper = layer * nodes + steps.lower, (layer + 1) * nodes + steps.upper
        own[0, found.starts] = own[-1, found.ends] = np.inf
        if request.residual == "keep":
            own[:, np.concatenate([found.starts, found.ends])] = np.inf
        starts, ends, capacity = found.starts, (levels - 1) * nodes + found.ends, own.ravel()
    else:
        moving = steps.lower != steps.upper
        lower, upper = np.unique(np.stack([steps.lower[moving], steps.upper[moving]]), axis=1)
        starts, ends, capacity = found.starts, found.ends, own.max(0)
        capacity[np.concatenate([starts, ends])] = np.inf
    used = np.unique(np.concatenate([lower, upper, starts, ends]))
    inner = (FIRST + 2 * used, FIRST + 2 * used + 1, capacity[used])
    outer = (FIRST + 2 * lower + 1, FIRST + 2 * upper, np.full(len(lower), np.inf))
    return joined(FIRST + 2 * len(capacity), FIRST + 2 * starts, FIRST + 2 * ends + 1, inner, outer)
