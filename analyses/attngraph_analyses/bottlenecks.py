"""Bottlenecks: at which level does what a target reads of a source pass through the fewest blocks?

1. The width of a level is the effective number of nodes that the walks from target to source pass there: with their
   throughput p, a distribution over the level's nodes, N_eff = 1 / Σ p² (order 2, the participation ratio) or
   exp(−Σ p·ln p) (order 1); both are Hill numbers (Hill 1973), 1 for a single node and n for n equal ones.
2. The bottleneck is the narrowest level between the ends' own, 1 to L − 1, the lowest one on ties.
3. The squash ratio says whether the source is over-squashed: its sensitivity bound over that of blocks at the same
   distance (see `attngraph_analyses.sensitivity`); below 1 the weights leave less room for it than for them.

A level through which nearly everything rides on one residual stream has width 1 although nothing is squeezed there;
`hops` tells how much moves between nodes at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import polars as pl

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import AttentionGraph, blocks_of
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import ALL_BUT_HEADS, Compared, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer
from attngraph_analyses.sensitivity import sensitivity
from attngraph_analyses.steps import walks
from attngraph_analyses.throughput import throughput

Order = Literal[1, 2]


class Level(NamedTuple):
    """A level and its width."""

    level: int
    width: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Bottlenecks(ComparedAnswer):
    """What `bottlenecks` found.

    Parameters
    ----------
    source, target
        The two ends, by name.
    order
        The Hill number's order that `width` is.
    width
        ``[layers + 1]``: effective number of nodes at each level, at least 1.
    carrier, carrier_target, carrier_share
        ``[layers + 1]``: the block of the node of greatest throughput at each level, the token position if it is a
        target, and that throughput.
    hops
        ``[layers]``: share of the walks that moves along an edge in each layer; the rest stays in place.
    bottleneck
        The narrowest level between the ends.
    squash
        The source's sensitivity bound against distance-matched blocks; None if there are none.
    against
        How the widths stand against a null, ``[layers + 1]``.
    """

    source: str
    target: str
    order: Order
    width: FloatArray
    carrier: IntArray
    carrier_target: tuple[int | None, ...]
    carrier_share: FloatArray
    hops: FloatArray
    bottleneck: Level
    squash: Compared | None

    def to_polars(self) -> pl.DataFrame:
        """One row per level: level, width, carrier, target, carrier_share, hops (null at the last level).

        With a null also null_width, ratio and rank.
        """
        frame = pl.DataFrame(
            {
                "level": np.arange(len(self.width)),
                "width": self.width,
                "carrier": self.carrier,
                "target": pl.Series(self.carrier_target, dtype=pl.Int64),
                "carrier_share": self.carrier_share,
                "hops": pl.Series([*self.hops.tolist(), None], dtype=pl.Float64),
            }
        )
        return self.beside_null(frame, "width")

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON: source, target, policy, block_size, levels, bottleneck, squash, null."""
        return {
            "source": self.source,
            "target": self.target,
            "policy": vars(self.policy),
            "block_size": self.block_size,
            "order": self.order,
            "levels": self.to_polars().to_dicts(),
            "bottleneck": self.bottleneck._asdict(),
            "squash": None if self.squash is None else self.squash.to_dict(),
            "null": None if self.against is None else self.against.at(self.bottleneck.level).to_dict(),
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
        }


def bottlenecks(
    graph: AttentionGraph,
    source: str,
    target: str = "output",
    *,
    order: Order = 2,
    null: Null | NullName | None = None,
) -> Bottlenecks:
    """How many blocks carry what a target reads of a source, level by level, and where the fewest do.

    Parameters
    ----------
    graph
        Its policy is recorded in the result.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    order
        2 for the participation ratio, 1 for the exponential of the entropy.
    null
        Also ask how wide the levels are under this null.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    NoRouteError
        If no walk from the target ends in the source.
    ConfigError
        If the order is unknown, or the null unknown or ``"heads"``, which changes no width.
    GraphError
        If the null has nothing to compare with.
    """
    if order not in get_args(Order):
        raise ConfigError(f"order={order!r} is not 1 (entropy) or 2 (participation ratio).")
    chosen = None if null is None else meaningful(null, "the widths of levels", *ALL_BUT_HEADS)
    flow = throughput(graph, source, target, top=1)
    width = widths(flow.node, order)
    between = np.arange(1, graph.layers) if graph.layers > 1 else np.arange(graph.layers + 1)
    narrowest = int(between[np.argmin(width[between])])
    carrier = flow.node.argmax(1)
    found = Bottlenecks(
        source=source,
        target=target,
        order=order,
        width=width,
        carrier=flow.node_block[carrier],
        carrier_target=tuple(flow.node_target[node] for node in carrier.tolist()),
        carrier_share=flow.node.max(1),
        hops=1.0 - flow.stay.sum(1),
        bottleneck=Level(narrowest, float(width[narrowest])),
        squash=_squash(graph, source, target),
        policy=flow.policy,
        block_size=flow.block_size,
        completeness=flow.completeness,
        completeness_source=flow.completeness_source,
    )
    if chosen is None:
        return found

    question = Question(graph, blocks_of(graph, source), target)

    def ask(question: Question) -> FloatArray:
        other = walks(question)
        return np.full(len(width), np.nan) if other is None else widths(other.node, order)

    return replace(found, against=compare(ask, question, chosen, value=width))


def widths(node: FloatArray, order: Order = 2) -> FloatArray:
    """Effective number of nodes of each row of a distribution: ``[levels, nodes]`` to ``[levels]``."""
    if order == 2:
        return np.asarray(1.0 / (node**2).sum(1))
    logarithms = np.log(np.where(node > 0, node, 1.0))
    return np.asarray(np.exp(-(node * logarithms).sum(1)))


def _squash(graph: AttentionGraph, source: str, target: str) -> Compared | None:
    try:
        return sensitivity(graph, source, target, null="distance").against
    except GraphError:  # no room to move the source to
        return None
