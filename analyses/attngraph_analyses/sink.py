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

from attngraph.graph import AttentionGraph, blocks_of
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.influence import influence, influence_of_targets
from attngraph_analyses.nulls import Compared, Null, NullName, Question, as_null, compare
from attngraph_analyses.results import Answer


@dataclass(frozen=True, eq=False, kw_only=True)
class SinkEffect(Answer):
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
    against
        How the four shares, in this order, stand against the null.
    completeness_excluded
        As `completeness`, which is that of the walk with the sink's edges, of the walk without them.
    policy
        How edges became probabilities, but for `sink`.
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
    against: Compared
    completeness_excluded: float | None = None

    def to_polars(self) -> pl.DataFrame:
        """One row per head: layer, head, mass (null for a head without rows)."""
        layers, heads = self.mass.shape
        layer, head = np.divmod(np.arange(layers * heads), heads)
        return pl.DataFrame({"layer": layer, "head": head, "mass": pl.Series(self.mass.ravel()).fill_nan(None)})

    def shares(self) -> pl.DataFrame:
        """One row per share: of (sink, source), sink (keep, exclude), share, null_share, ratio, rank."""
        frame = pl.DataFrame(
            {
                "of": ["sink", "sink", "source", "source"],
                "sink": ["keep", "exclude"] * 2,
                "share": self.against.value,
            }
        )
        return frame.with_columns(self.against.columns("share"))


def sink_effect(
    graph: AttentionGraph, source: str, target: str = "output", *, null: Null | NullName = "uniform"
) -> SinkEffect:
    """How much attention and influence the sink takes, and what a source gains without it.

    Parameters
    ----------
    graph
        Its policy is recorded in the result; its `sink` is replaced by both values in turn.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    null
        The null of the excess influence by which `rank` ranks, and of the shares.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    ConfigError, GraphError
        As `influence`.
    """
    chosen, own = as_null(null), blocks_of(graph, source)
    kept = influence(graph.with_policy(sink="keep"), target, null=chosen)
    excluded = influence(graph.with_policy(sink="exclude"), target, null=chosen)
    ranks = [int((found.rank[1:] < found.rank[own].min()).sum()) for found in (kept, excluded)]
    shares = _shares_of(kept.influence, excluded.influence, own).tolist()
    return SinkEffect(
        source=source,
        target=target,
        mass=sink_mass(graph),
        share=shares[0],
        share_excluded=shares[1],
        source_share=shares[2],
        source_share_excluded=shares[3],
        rank=ranks[0],
        rank_excluded=ranks[1],
        against=compare(_shares, Question(graph, own, target), chosen, value=shares),
        completeness_excluded=excluded.completeness,
        policy=graph.policy,
        block_size=graph.block_size,
        completeness=kept.completeness,
        completeness_source=kept.completeness_source,
    )


def _shares(question: Question) -> FloatArray:
    """Influence of block 0 with the sink's edges and without, and of the source's blocks likewise, ``[4]``."""
    found = [
        influence_of_targets(question.graph.with_policy(sink=sink), (question.target,))[:, 0]
        for sink in ("keep", "exclude")
    ]
    return _shares_of(found[0], found[1], np.flatnonzero(question.starts()[: question.graph.blocks]))


def _shares_of(kept: FloatArray, excluded: FloatArray, source: IntArray) -> FloatArray:
    return np.array([kept[0], excluded[0], kept[source].sum(), excluded[source].sum()])


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
