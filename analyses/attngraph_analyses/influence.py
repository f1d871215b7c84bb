"""Influence: in which blocks does the walk from a target start?

A walk runs backwards from the target: at each layer it stays in place with the residual share, or steps along
an edge with the edge's probability. The influence of a block is the probability that the walk ends in that
block at level 0.

Raw influence is dominated by the sink and by nearness, so blocks are ranked by their *excess* f·ln(f / f₀)
over the influence f₀ of the same walk on the same edges with uniform weights and the same residual shares.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import polars as pl

from attngraph.errors import GraphError, UnknownNodeError
from attngraph.graph import AttentionGraph, Policy, backward, completeness, spans_by_block, target_state
from attngraph.graph.arrow import ArrowTable
from attngraph.graph.audit import CompletenessSource
from attngraph.graph.source import FloatArray, IntArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Influence(ArrowTable):
    """What `influence` found: one entry per block.

    Parameters
    ----------
    target
        Where the walk started.
    block
        ``[blocks]``: 0, 1, …
    influence, null
        ``[blocks]``: probability that the walk, or the walk with uniform weights, ends in the block; sums to
        1.
    excess
        ``[blocks]``: f·ln(f / f₀) in nats, 0 where f = 0.
    rank
        ``[blocks]``: 0 for the greatest excess; ties by block.
    spans
        ``[blocks]``: the names of the spans that overlap the block.
    block_size
        Tokens per block; products over blocks only approximate products over tokens.
    policy
        How edges became probabilities.
    completeness
        Share of the target's walk that never leaves the recorded edges, from 0 to 1; None if it isn't known.
    completeness_source
        ``"audited"`` or ``"estimated"``, None if it isn't known; see `attngraph.graph.audit`.
    """

    target: str
    block: IntArray
    influence: FloatArray
    null: FloatArray
    excess: FloatArray
    rank: IntArray
    spans: tuple[tuple[str, ...], ...]
    block_size: int
    policy: Policy
    completeness: float | None = None
    completeness_source: CompletenessSource | None = None

    def to_polars(self) -> pl.DataFrame:
        """One row per block: block, influence, null, excess, rank, spans."""
        return pl.DataFrame(
            {
                "block": self.block,
                "influence": self.influence,
                "null": self.null,
                "excess": self.excess,
                "rank": self.rank,
                "spans": pl.Series([list(names) for names in self.spans], dtype=pl.List(pl.String)),
            }
        )

    def rank_of(self, span: str, *, before: str) -> int:
        """Rank by excess of a span's best block among the blocks after the sink and before another span.

        Parameters
        ----------
        span
            The span whose best block is ranked, such as ``"needle"``.
        before
            Candidates are block 1 up to the last block before the first one that overlaps this span, such as
            ``"question"``: neither the sink nor the target's own surroundings compete.

        Returns
        -------
        int
            0 if no candidate has more excess.

        Raises
        ------
        UnknownNodeError
            If a span has no such name.
        GraphError
            If no block of `span` is a candidate.
        """
        end = self._blocks_of(before)[0]
        blocks = self._blocks_of(span)
        competing = blocks[(blocks >= 1) & (blocks < end)]
        if not len(competing):
            raise GraphError(
                f"Only blocks after the sink (block 0) and before {before!r} (block {end}) are ranked, but "
                f"{span!r} lies in block(s) {', '.join(map(str, blocks))}. Its excess is in to_polars()."
            )
        return int((self.rank[1:end] < self.rank[competing].min()).sum())

    def _blocks_of(self, span: str) -> IntArray:
        blocks = np.flatnonzero([span in names for names in self.spans])
        if not len(blocks):
            known = ", ".join(sorted({name for names in self.spans for name in names})) or "none"
            raise UnknownNodeError(f"{span!r} is no span of this run. Spans: {known}.")
        return blocks


def influence(graph: AttentionGraph, target: str = "output") -> Influence:
    """Share of the target's backward walk that starts in each block, its null, and the excess over it.

    Parameters
    ----------
    graph
        Its policy is recorded in the result; its null is `graph.uniform()`.
    target
        A span, ``"block:N"``, ``"token:N"`` (a recorded target) or ``"output"``.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    GraphError
        If a layer can't be read under the graph's policy.
    """
    found, null = _walk_ends(graph, target), _walk_ends(graph.uniform(), target)
    excess = np.zeros(graph.blocks)
    reached = found > 0
    excess[reached] = found[reached] * np.log(found[reached] / null[reached])
    rank = np.empty(graph.blocks, np.int64)
    rank[np.argsort(-excess, kind="stable")] = np.arange(graph.blocks)
    complete = completeness(graph, target)
    return Influence(
        target=target,
        block=np.arange(graph.blocks),
        influence=found,
        null=null,
        excess=excess,
        rank=rank,
        spans=spans_by_block(graph),
        block_size=graph.block_size,
        policy=graph.policy,
        completeness=complete.share,
        completeness_source=complete.source,
    )


def _walk_ends(graph: AttentionGraph, target: str) -> FloatArray:
    """Where the walk ends at level 0, by block: a target's node counts to the block of its token."""
    (end,) = deque(backward(graph, target_state(graph, target)), maxlen=1)
    return np.bincount(graph.node_blocks(), end, minlength=graph.blocks).astype(np.float64)
