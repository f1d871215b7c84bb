"""Influence: in which blocks does the walk from a target start?

A walk runs backwards from the target: at each layer it stays in place with the residual share, or steps along
an edge with the edge's probability. The influence of a block is the probability that the walk ends in that
block at level 0.

Raw influence is dominated by the sink and by nearness, so blocks are ranked by their *excess* f·ln(f / f₀)
over the influence f₀ that a null gives them (see `attngraph_analyses.nulls`):

- ``"uniform"``: the same walk on the same edges with uniform weights, f₀ = u;
- ``"edges"``: the mean of the same walk on rewired graphs;
- ``"distance"``: the mean influence of the blocks around the block;
- ``"targets"``: what the block means to other targets of the run, carried over to this one. The walk is also
  started in the blocks t just before the target's own, and f₀ = u·Σ_t f_t / Σ_t u_t: the uniform walk tells how
  much of the influence is due to who can see whom, the other targets how much of the rest is nothing special.
  Targets to which the block is next don't count: they read it because it is near.

``"heads"`` says nothing here, since influence doesn't distinguish heads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from attngraph.errors import GraphError, UnknownNodeError
from attngraph.graph import AttentionGraph, backward, spans_by_block, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import (
    ALL_BUT_HEADS,
    Null,
    NullName,
    Question,
    compare,
    meaningful,
    other_targets,
)
from attngraph_analyses.results import Answer, about

NEAR = 1
"""Blocks before a target that don't count for it in the null ``"targets"``: every head keeps them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Influence(Answer):
    """What `influence` found: one entry per block.

    Parameters
    ----------
    target
        Where the walk started.
    block
        ``[blocks]``: 0, 1, …
    influence
        ``[blocks]``: probability that the walk ends in the block; sums to 1.
    null
        ``[blocks]``: the influence f₀ under the null.
    excess
        ``[blocks]``: f·ln(f / f₀) in nats, 0 where f = 0. Where f₀ = 0, the least positive f₀ takes its place.
    rank
        ``[blocks]``: 0 for the greatest excess; ties by block.
    spans
        ``[blocks]``: the names of the spans that overlap the block.
    against
        Which null it is.
    """

    target: str
    block: IntArray
    influence: FloatArray
    null: FloatArray
    excess: FloatArray
    rank: IntArray
    spans: tuple[tuple[str, ...], ...]
    against: Null

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
        end = self.blocks_of(before)[0]
        blocks = self.blocks_of(span)
        competing = blocks[(blocks >= 1) & (blocks < end)]
        if not len(competing):
            raise GraphError(
                f"Only blocks after the sink (block 0) and before {before!r} (block {end}) are ranked, but "
                f"{span!r} lies in block(s) {', '.join(map(str, blocks))}. Its excess is in to_polars()."
            )
        return int((self.rank[1:end] < self.rank[competing].min()).sum())

    def blocks_of(self, span: str) -> IntArray:
        """The blocks that a span overlaps, ascending; UnknownNodeError if there is no such span."""
        blocks = np.flatnonzero([span in names for names in self.spans])
        if not len(blocks):
            known = ", ".join(sorted({name for names in self.spans for name in names})) or "none"
            raise UnknownNodeError(f"{span!r} is no span of this run. Spans: {known}.")
        return blocks


def influence(graph: AttentionGraph, target: str = "output", *, null: Null | NullName = "uniform") -> Influence:
    """Share of the target's backward walk that starts in each block, its null, and the excess over it.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    target
        A span, ``"block:N"``, ``"token:N"`` (a recorded target) or ``"output"``.
    null
        A null, or the name of one with its default draws.

    Raises
    ------
    UnknownNodeError
        If the target names nothing.
    ConfigError
        If the null is unknown, or ``"heads"``.
    GraphError
        If a layer can't be read under the graph's policy, or the null has nothing to compare with.
    """
    against = meaningful(null, "influence", *ALL_BUT_HEADS)
    found = influence_of_targets(graph, (target,))[:, 0]
    expected = _expected(graph, target, found, against)
    reached = found > 0
    if (expected > 0).any():
        floor = expected[expected > 0].min()
        excess = np.where(reached, found * np.log(np.where(reached, found, 1.0) / np.maximum(expected, floor)), 0.0)
    else:
        excess = np.zeros(graph.blocks)
    rank = np.empty(graph.blocks, np.int64)
    rank[np.argsort(-excess, kind="stable")] = np.arange(graph.blocks)
    return Influence(
        target=target,
        block=np.arange(graph.blocks),
        influence=found,
        null=expected,
        excess=excess,
        rank=rank,
        spans=spans_by_block(graph),
        against=against,
        **about(graph, target),
    )


def influence_of_targets(graph: AttentionGraph, targets: Sequence[str]) -> FloatArray:
    """Where the walks from several targets end at level 0, ``[blocks, targets]``, in one pass.

    A target's node counts to the block of its token.

    Raises
    ------
    UnknownNodeError
        If a target names nothing.
    """
    start = np.stack([target_state(graph, target) for target in targets], axis=1)
    (end,) = deque(backward(graph, start), maxlen=1)
    blocks = end[: graph.blocks].copy()
    np.add.at(blocks, graph.node_blocks()[graph.blocks :], end[graph.blocks :])
    return blocks


def _expected(graph: AttentionGraph, target: str, found: FloatArray, null: Null) -> FloatArray:
    """The influence f₀ of every block under a null, ``[blocks]``."""
    if null.name == "distance":
        return _around(found, null.draws)
    if null.name == "targets":
        return _carried_over(graph, target, null)

    def ask(question: Question) -> FloatArray:
        return influence_of_targets(question.graph, (question.target,))[:, 0]

    return compare(ask, Question(graph, None, target), null, value=found).mean


def _around(found: FloatArray, draws: int) -> FloatArray:
    """The mean influence of the `draws` blocks nearest to each block, itself and the sink left out."""
    blocks = len(found)
    if blocks < 3:
        raise GraphError(f"null='distance' compares a block with those around it, but this graph has {blocks} in all.")
    expected = np.empty(blocks)
    for block in range(blocks):
        others = np.arange(max(1, block - draws), min(blocks, block + draws + 1))
        others = others[others != block]
        nearest = others[np.argsort(np.abs(others - block), kind="stable")[:draws]]
        expected[block] = found[nearest].mean()
    return expected


def _carried_over(graph: AttentionGraph, target: str, null: Null) -> FloatArray:
    """u·Σ_t f_t / Σ_t u_t over the other targets t; u for a block that counts for none of them."""
    others = other_targets(Question(graph, None, target), null.draws)
    names = [target, *(f"block:{block}" for block in others)]
    counts = np.arange(graph.blocks)[:, None] < np.asarray(others) - NEAR
    uniform = influence_of_targets(graph.uniform(), names)
    reached = np.where(counts, influence_of_targets(graph, names[1:]), 0.0).sum(1)
    reached_uniformly = np.where(counts, uniform[:, 1:], 0.0).sum(1)
    known = reached_uniformly > 0
    return np.where(known, uniform[:, 0] * reached / np.where(known, reached_uniformly, 1.0), uniform[:, 0])
