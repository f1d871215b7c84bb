"""The sink: how much of the walk does block 0 take, and what changes when it takes nothing?

Heads that have nothing to do attend to the first token; Barbero et al. (2025, arXiv 2504.02732) read this as a
guard against over-mixing. The walk from a target leaks into the sink in every layer, so rankings and totals depend
on whether the graph keeps the edges from block 0 (``sink="keep"``) or renormalises every row without them
(``sink="exclude"``). Both are asked here, and nothing else differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from attngraph.graph import AttentionGraph, Policy, blocks_of
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.source import FloatArray
from attngraph_analyses.influence import influence
from attngraph_analyses.nulls import NullName


@dataclass(frozen=True, eq=False, kw_only=True)
class SinkEffect(ArrowTable):
    """What `sink_effect` found.

    Parameters
    ----------
    source, target
        The two ends, by name.
    mass
        ``[layers, heads]``: mean mass on block 0 over the rows of the other blocks and of the targets behind it;
        NaN for a head that has no such rows.
    share, share_excluded
        Influence of block 0 on the target with the sink's edges, and without.
    source_share, source_share_excluded
        The same for the source.
    rank, rank_excluded
        Rank by excess influence of the source's best block among all blocks but block 0, with and without the sink's
        edges; 0 is first.
    policy
        How edges became probabilities, but for `sink`.
    """

    source: str
    target: str
    mass: FloatArray
    share: float
    share_excluded: float
    source_share: float
    source_share_excluded: float
    rank: int
    rank_excluded: int
    policy: Policy

    def to_polars(self) -> pl.DataFrame:
        """One row per head: layer, head, mass (null for a head without rows)."""
        layers, heads = self.mass.shape
        layer, head = np.divmod(np.arange(layers * heads), heads)
        return pl.DataFrame({"layer": layer, "head": head, "mass": pl.Series(self.mass.ravel()).fill_nan(None)})


def sink_effect(
    graph: AttentionGraph, source: str, target: str = "output", *, null: NullName = "uniform"
) -> SinkEffect:
    """How much attention and influence the sink takes, and what a source gains without it.

    Parameters
    ----------
    graph
        Its policy is recorded in the result; its `sink` is replaced by both values in turn.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    null
        The null of the excess influence by which `rank` ranks.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    ConfigError, GraphError
        As `influence`.
    """
    own = blocks_of(graph, source)
    kept = influence(graph.with_policy(sink="keep"), target, null=null)
    excluded = influence(graph.with_policy(sink="exclude"), target, null=null)
    ranks = [int((found.rank[1:] < found.rank[own].min()).sum()) for found in (kept, excluded)]
    return SinkEffect(
        source=source,
        target=target,
        mass=sink_mass(graph),
        share=float(kept.influence[0]),
        share_excluded=float(excluded.influence[0]),
        source_share=float(kept.influence[own].sum()),
        source_share_excluded=float(excluded.influence[own].sum()),
        rank=ranks[0],
        rank_excluded=ranks[1],
        policy=graph.policy,
    )


def sink_mass(graph: AttentionGraph) -> FloatArray:
    """Mean mass of every head on block 0, over the rows of all other blocks and targets, ``[layers, heads]``."""
    recorded = graph.with_policy(weight="mass", heads="sum", sink="keep", residual=0.0)
    behind = graph.node_blocks() > 0
    mass = np.empty((graph.layers, graph.heads))
    for layer in range(graph.layers):
        transition = recorded.transition(layer)
        ours = behind[transition.query]
        rows = np.zeros((graph.heads, graph.nodes), bool)
        rows[transition.head[ours], transition.query[ours]] = True
        first = ours & (transition.key_block == 0)
        total = np.bincount(transition.head[first], transition.mass[first], minlength=graph.heads)
        count = rows.sum(1)
        mass[layer] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mass
