"""The part of a graph that carries most of what a target reads of a source.

1. In every level the nodes of greatest throughput are kept, as few as hold `node_share` of it.
2. In every layer, of the edges and residual steps between kept nodes, those of greatest throughput are kept, as few as
   hold `edge_share` of theirs.
3. Whatever then lies on no whole path from source to target is dropped.

0.8 and 0.98 are the shares that circuit-tracer (Ameisen et al. 2025) made usual for attribution graphs. It adds up
all nodes of the graph; here every level is added up by itself, because the walk passes each level once, so that a
level where many nodes share the walk isn't emptied for the sake of levels where a few hold it.

What the sub-graph still carries, the share of the walks that never leave it, is measured and not assumed:
`carried`. The walks have many steps, so it is well below `node_share`. `carrying` goes the other way, from what is to
be carried to the shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, blocks_of, no_route
from attngraph.graph.paths import STAY
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about
from attngraph_analyses.steps import BoolArray, Steps, connected, head_column, stacked, walks

LEAST_LEFT_OUT = 9.0
"""Decimal places of the greatest edge share below 1 that `carrying` tries."""
HALVINGS = 10
"""Shares that it tries: the edge share is then known to within 2 % of what it leaves out."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Subgraph(ComparedAnswer):
    """What `prune` kept.

    Parameters
    ----------
    source, target
        Where the walks end and start; None for any source.
    node_share, edge_share
        The shares that were asked for.
    carried
        Share of the walks from target to source that never leave the sub-graph, from 0 to 1.
    layer, head, key_block, query, throughput
        ``[steps]``: the kept edges and residual steps, by layer, greatest throughput first. `head` is -1 for a residual
        step, whose `key_block` is the node that it stays in. `query` is a node, see `node_block`.
    nodes
        Number of (level, node) pairs kept.
    nodes_before, edges_before
        What there was: nodes and edges that carry anything.
    node_block, node_target
        Each node's block, and the token position of those that are targets (None for blocks).
    against
        How `carried` stands against a null.
    """

    source: str | None
    target: str
    node_share: float
    edge_share: float
    carried: float
    layer: IntArray
    head: IntArray
    key_block: IntArray
    query: IntArray
    throughput: FloatArray
    nodes: int
    nodes_before: int
    edges_before: int
    node_block: IntArray
    node_target: tuple[int | None, ...]

    @property
    def edges(self) -> int:
        """Number of attention edges kept."""
        return int((self.head != STAY).sum())

    def to_polars(self) -> pl.DataFrame:
        """One row per step: layer, head (null for a residual step), key_block, query_block, target, throughput.

        `target` is the token position where a step ends in a target, else null.
        """
        return pl.DataFrame(
            {
                "layer": self.layer,
                "head": head_column(self.head),
                "key_block": self.node_block[self.key_block],
                "query_block": self.node_block[self.query],
                "target": pl.Series(self.node_target, dtype=pl.Int64).gather(self.query),
                "throughput": self.throughput,
            }
        )


def prune(
    graph: AttentionGraph,
    source: str | None,
    target: str = "output",
    *,
    node_share: float = 0.8,
    edge_share: float = 0.98,
    null: Null | NullName | None = None,
) -> Subgraph:
    """The few nodes and edges that carry most of the walks from a target to a source.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; None for all that the target reads.
    target
        The same; a target token must be a recorded target.
    node_share, edge_share
        Above 0, up to 1; 1 keeps all that carries anything.
    null
        Also ask how much the same shares carry under this null.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no walk from the target ends in the source.
    ConfigError
        If a share is out of range, or the null is unknown.
    GraphError
        If the null has nothing to compare with.
    """
    for name, share in (("node_share", node_share), ("edge_share", edge_share)):
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"{name}={share!r} is not above 0 and at most 1.")
    chosen = None if null is None else meaningful(null, "what a sub-graph carries", *ALL_BUT_HEADS)
    question = Question(graph, None if source is None else blocks_of(graph, source), target)
    found = _prune(question, source, node_share, edge_share)
    if found is None:
        raise no_route(graph, source or "anywhere", target)
    found = replace(found, **about(graph, target))
    if chosen is None:
        return found

    def ask(question: Question) -> float:
        other = _prune(question, source, node_share, edge_share)
        return np.nan if other is None else other.carried

    return replace(found, against=compare(ask, question, chosen, value=found.carried))


def carrying(graph: AttentionGraph, source: str | None, target: str = "output", *, share: float) -> Subgraph:
    """The smallest sub-graph of all nodes that still carries a share of the walks, by one edge share for all layers.

    It is what `prune` gives for that edge share, which is found by halving, in logarithms of what it leaves out. All
    edges that carry anything are in memory meanwhile.

    Parameters
    ----------
    graph, source, target
        As in `prune`.
    share
        What the sub-graph is to carry at least, above 0 and up to 1.

    Raises
    ------
    UnknownNodeError, NoRouteError
        As `prune`.
    ConfigError
        If the share is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"share={share!r} is not above 0 and at most 1.")
    question = Question(graph, None if source is None else blocks_of(graph, source), target)
    found = walks(question)
    if found is None:
        raise no_route(graph, source or "anywhere", target)
    every, enough = [found.steps(layer) for layer in range(graph.layers)], 1.0
    low, high = 0.0, LEAST_LEFT_OUT
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        edge_share = 1.0 - 10.0**-middle
        layers, _ = _selected(every, found.node, 1.0, edge_share)
        if _carried(layers, found.node) >= share:
            enough, high = edge_share, middle
        else:
            low = middle
    return prune(graph, source, target, node_share=1.0, edge_share=enough)


def _prune(question: Question, source: str | None, node_share: float, edge_share: float) -> Subgraph | None:
    """The sub-graph of a question's walks; None if there are none."""
    found, graph = walks(question), question.graph
    if found is None:
        return None
    node, edges = found.node, []

    def counted(layer: int) -> Steps:
        steps = found.steps(layer)
        edges.append(int((steps.head != STAY).sum()))
        return steps

    layers, live = _selected(map(counted, range(graph.layers)), node, node_share, edge_share)
    carried = _carried(layers, node)
    layers = [steps.only(np.argsort(-steps.share, kind="stable")) for steps in layers]
    chosen = stacked(layers)
    return Subgraph(
        source=source,
        target=question.target,
        node_share=node_share,
        edge_share=edge_share,
        carried=carried,
        layer=np.repeat(np.arange(graph.layers), [len(steps.share) for steps in layers]),
        head=chosen.head,
        key_block=chosen.lower,
        query=chosen.upper,
        throughput=chosen.share,
        nodes=int(live.sum()),
        nodes_before=int((node > 0).sum()),
        edges_before=sum(edges),
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        policy=graph.policy,
        block_size=graph.block_size,
    )


def _selected(
    every: Iterable[Steps], node: FloatArray, node_share: float, edge_share: float
) -> tuple[list[Steps], BoolArray]:
    """The steps of all layers that are kept, and the nodes on them, ``[levels, nodes]``."""
    kept = np.stack([_most(level, node_share) for level in node])
    layers = []
    for layer, steps in enumerate(every):
        between = steps.only(kept[layer + 1, steps.upper] & kept[layer, steps.lower])
        layers.append(between.only(_most(between.share, edge_share)))
    return connected(layers, kept)


def _most(share: FloatArray, wanted: float) -> BoolArray:
    """The greatest shares above 0, as few as hold `wanted` of the sum of all."""
    order = np.argsort(-share, kind="stable")
    order = order[share[order] > 0]
    reached = np.cumsum(share[order])
    kept = np.zeros(len(share), bool)
    if len(order):
        # All of them for a share of 1: the last ones may be too small to change the sum.
        count = len(order) if wanted == 1.0 else int(np.searchsorted(reached, wanted * reached[-1])) + 1
        kept[order[:count]] = True
    return kept


def _carried(layers: list[Steps], node: FloatArray) -> float:
    """Probability that a walk from target to source takes only these steps."""
    inside = node[-1]
    for layer in reversed(range(len(layers))):
        steps = layers[layer]
        taken = inside[steps.upper] * steps.share / node[layer + 1, steps.upper]
        inside = np.bincount(steps.lower, taken, minlength=node.shape[1])
    return float(inside.sum())
