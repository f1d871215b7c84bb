"""Throughput: of the walks from a target that end in a source, which share passes each node and edge?

With h_ℓ[i] the probability that a backward walk from node i of level ℓ ends in the source, and f_ℓ[i] the
probability that the target's walk is at node i of level ℓ, the walks that do end in the source pass

- a node with the share          θ_ℓ[i] = f_ℓ[i]·h_ℓ[i] / total,
- an edge or a stay with         f_{ℓ+1}[i]·P[i, j]·h_ℓ[j] / total,

where total = Σ_i f_L[i]·h_L[i] (Doob's h-transform of the walk). Nodes sum to 1 at every level; edges and
stays together sum to 1 at every layer, and what enters a node leaves it. The throughput of a head is the sum
of its edges'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import (
    AttentionGraph,
    LayerTransition,
    blocks_of,
    forward,
    no_route,
    target_state,
)
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nodes import node_table
from attngraph_analyses.nulls import Compared, Null, NullName, Question, compare
from attngraph_analyses.results import ComparedAnswer, about

ROUNDING = 1e-9
"""How much a node's share may fall below that of an edge into it, by rounding alone, relative to either."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Throughput(ComparedAnswer):
    """What `throughput` found: edges best first, nodes and residual steps by level and layer.

    Parameters
    ----------
    source, target
        Where the walks end and start.
    total
        Probability that the target's walk ends in the source, from 0 to 1.
    layer, head, key_block, query
        ``[edges]``: the edges that carry anything, greatest throughput first; `query` is a node, see
        `node_block`.
    throughput
        ``[edges]``: share of the walks between target and source, from 0 to 1.
    stay
        ``[layers, nodes]``: share that stays in place.
    by_head
        ``[layers, heads]``: share that goes through each head; with the stays it sums to 1 in every layer. None if it
        wasn't asked for.
    node
        ``[layers + 1, nodes]``: share that passes each node; sums to 1 at every level.
    node_block, node_target
        ``[nodes]``: each node's block, and the token position of those that are targets (None for blocks).
    against, heads_against
        How `total` and the flow `total`·`by_head` stand against a null; None where none was asked for.
    """

    source: str
    target: str
    total: float
    layer: IntArray
    head: IntArray
    key_block: IntArray
    query: IntArray
    throughput: FloatArray
    stay: FloatArray
    by_head: FloatArray | None
    node: FloatArray
    node_block: IntArray
    node_target: tuple[int | None, ...]
    heads_against: Compared | None = None

    def to_polars(self) -> pl.DataFrame:
        """One row per edge, best first: layer, head, key_block, query_block, target, throughput.

        An edge into a target has the target's token position, and the block of that token as `query_block`;
        `target` is null for an edge into a block.
        """
        return pl.DataFrame(
            {
                "layer": self.layer,
                "head": self.head,
                "key_block": self.key_block,
                "query_block": self.node_block[self.query],
                "target": pl.Series(self.node_target, dtype=pl.Int64).gather(self.query),
                "throughput": self.throughput,
            }
        )

    def nodes(self) -> pl.DataFrame:
        """One row per level and node that carries anything: level, block, target, throughput, stay.

        `target` is null for blocks. `stay` is the share that stays in place from this level up to the next,
        null at the last level.
        """
        table = node_table("throughput", self.node, self.node_block, self.node_target)
        stay = np.vstack([self.stay, np.full((1, self.node.shape[1]), np.nan)])
        return table.with_columns(stay=pl.Series(stay[np.nonzero(self.node)]).fill_nan(None))

    def heads(self) -> pl.DataFrame:
        """One row per head that carries anything, best first: layer, head, throughput.

        With a null also null_throughput (the mean of the flow through the head, as a share of `total`), ratio
        and rank; see `attngraph_analyses.nulls.Compared`.

        Raises
        ------
        ConfigError
            If the heads weren't asked for.
        """
        if self.by_head is None:
            raise ConfigError("The heads' throughput wasn't added up; ask for throughput(…, heads=True).")
        layer, head = np.nonzero(self.by_head)
        order = np.argsort(-self.by_head[layer, head], kind="stable")
        layer, head = layer[order], head[order]
        frame = pl.DataFrame({"layer": layer, "head": head, "throughput": self.by_head[layer, head]})
        if self.heads_against is None:
            return frame
        flow = frame.with_columns(self.heads_against.columns("throughput", layer, head))
        return flow.with_columns(pl.col("null_throughput") / self.total)


def throughput(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    top: int | None = None,
    heads: bool = False,
    null: Null | NullName | None = None,
) -> Throughput:
    """The share of the walks from a target to a source that passes each node, edge and residual step.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    top
        Keep only this many edges, the best ones; all that carry anything by default.
    heads
        Also add up the heads' throughput, which takes a look at every edge.
    null
        Also ask how much the target reads of the source, and through which heads, under this null.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no walk from the target ends in the source.
    ConfigError
        If `top` is below 1, or the null is unknown.
    GraphError
        If the null has nothing to compare with.
    """
    if top is not None and top < 1:
        raise ConfigError(f"top={top!r} must be at least 1, or None for all edges.")
    question = Question(graph, blocks_of(graph, source), target)
    found = _throughput(question, source, top, heads or null is not None)
    if found is None:
        raise no_route(graph, source, target)
    found = replace(found, **about(graph, target))
    if null is None or found.by_head is None:
        return found
    compared = compare(_flow, question, null, value=np.append(found.total * found.by_head, found.total))
    by_head = replace(
        compared,
        value=compared.value[:-1].reshape(found.by_head.shape),
        draws=compared.draws[:, :-1].reshape(-1, *found.by_head.shape),
    )
    return replace(found, against=compared.at(-1), heads_against=by_head)


def _flow(question: Question) -> FloatArray:
    """Probability that the walk reaches the source through each head, and at all, ``[layers · heads + 1]``."""
    found = _throughput(question, "", 1, heads=True)
    if found is None or found.by_head is None:
        return np.zeros(question.graph.layers * question.graph.heads + 1)
    return np.append(found.total * found.by_head, found.total)


def _throughput(question: Question, source: str, top: int | None, heads: bool) -> Throughput | None:
    """The throughput of a question's walks; None if there are none."""
    graph, _, target = question
    ends = np.stack(list(forward(graph, question.starts())))
    walk = target_state(graph, target)
    total = float(walk @ ends[-1])
    if total == 0.0:
        return None
    ends = ends / total
    node = np.empty_like(ends)
    node[-1] = walk * ends[-1]
    stay = np.empty_like(ends[1:])
    by_head = np.empty((graph.layers, graph.heads)) if heads else None
    parts = []
    best = np.zeros(0)
    for layer in reversed(range(graph.layers)):
        transition = graph.transition(layer)
        stay[layer] = walk * transition.stay * ends[layer]
        if by_head is not None:
            shares = (
                (walk * transition.scale)[transition.query]
                * transition.weights.data
                * ends[layer][transition.key_block]
            )
            by_head[layer] = np.bincount(transition.head, shares, minlength=graph.heads)
        # What enters a node doesn't exceed what passes it, so only these rows can hold one of the best edges.
        floor = best[-1] if len(best) == top else 0.0
        rows = np.flatnonzero((node[layer + 1] >= floor * (1 - ROUNDING)) & (node[layer + 1] > 0))
        parts.append(_best_edges(transition, rows, walk, ends[layer], top))
        if top is not None:
            best = -np.sort(-np.concatenate([best, parts[-1][-1]]))[:top]
        walk = transition.push(walk)
        node[layer] = walk * ends[layer]
    # Layers ascend here and sorting is stable, so edges of equal throughput keep the order of the run.
    layers, head, key_blocks, queries, shares = map(np.concatenate, zip(*reversed(parts), strict=True))
    order = np.argsort(-shares, kind="stable")[:top]
    return Throughput(
        source=source,
        target=target,
        total=total,
        layer=layers[order],
        head=head[order],
        key_block=key_blocks[order],
        query=queries[order],
        throughput=shares[order],
        stay=stay,
        by_head=by_head,
        node=node,
        node_block=graph.node_blocks(),
        node_target=tuple(graph.node_targets()),
        policy=graph.policy,
        block_size=graph.block_size,
    )


def _best_edges(
    transition: LayerTransition, rows: IntArray, walk: FloatArray, ends: FloatArray, top: int | None
) -> tuple[IntArray, IntArray, IntArray, IntArray, FloatArray]:
    """Layer, head, key block, query node and throughput of the edges above 0 into some nodes, or of the `top` best."""
    edges, into = transition.edges_into(rows)
    key_block = transition.weights.indices[edges].astype(np.int64)
    shares = (walk * transition.scale)[rows][into] * transition.weights.data[edges] * ends[key_block]
    kept = np.flatnonzero(shares > 0)
    if top is not None and len(kept) > top:
        kept = kept[np.argsort(-shares[kept], kind="stable")[:top]]
    return (
        np.full(len(kept), transition.layer),
        transition.head_of(edges[kept]),
        key_block[kept],
        rows[into[kept]],
        shares[kept],
    )
