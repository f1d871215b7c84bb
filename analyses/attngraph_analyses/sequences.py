"""The weight of a sequence of hops, wherever in depth they happen.

A route fixes the layer of every hop. The same hops, such as needle → block 57 → output, can often be placed at
many layers, with residual steps between them, and their routes share the weight. With a[ℓ, j] the attention
part of P_ℓ from stop j - 1 to stop j, and s[ℓ, j] the residual share of stop j, the walks that have made j of
the hops by level ℓ have the weight

    F[ℓ + 1, j] = F[ℓ, j]·s[ℓ, j] + F[ℓ, j - 1]·a[ℓ, j],    F[0, 0] = 1,

and F[L, n] sums over all placements. The same from the other end tells at which layers each hop happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from attngraph.errors import ConfigError, UnknownNodeError
from attngraph.graph import AttentionGraph, LayerTransition, blocks_of, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import ALL_BUT_HEADS, Null, NullName, Question, compare, meaningful
from attngraph_analyses.results import ComparedAnswer, about


@dataclass(frozen=True, eq=False, kw_only=True)
class SequenceWeight(ComparedAnswer):
    """What `sequence_weight` found.

    Parameters
    ----------
    stops, heads
        The sequence, as it was given; None for any head.
    total
        Probability that the walk from the last stop makes just these hops and ends in the first, at whatever
        layers; from 0 to 1.
    best
        The greatest weight of a single placement.
    best_layers
        Its layers, one per hop, ascending; empty if `total` is 0.
    share
        ``[hops, layers]``: the share of `total` in which a hop happens at a layer; rows sum to 1, or are 0 if
        `total` is.
    against
        How `total` stands against a null.
    """

    stops: tuple[str, ...]
    heads: tuple[int | None, ...]
    total: float
    best: float
    best_layers: tuple[int, ...]
    share: FloatArray

    def to_polars(self) -> pl.DataFrame:
        """One row per hop and layer at which it can happen: hop, from, to, head, layer, share."""
        hop, layer = np.nonzero(self.share)
        rows = [
            (number, self.stops[number], self.stops[number + 1], self.heads[number], at, self.share[number, at])
            for number, at in zip(hop.tolist(), layer.tolist(), strict=True)
        ]
        schema = {
            "hop": pl.Int64,
            "from": pl.String,
            "to": pl.String,
            "head": pl.Int64,
            "layer": pl.Int64,
            "share": pl.Float64,
        }
        return pl.DataFrame(rows, schema=schema, orient="row")


def sequence_weight(
    graph: AttentionGraph,
    stops: Sequence[str],
    heads: Sequence[int | None] | None = None,
    *,
    null: Null | NullName | None = None,
) -> SequenceWeight:
    """The weight of a sequence of hops, summed over all layers at which they could happen.

    Parameters
    ----------
    stops
        At least two names of single nodes in the model's direction: blocks (or spans and tokens inside one
        block), the last one a block or a target. `Route.stops` gives those of a route.
    heads
        The head of each hop, None for all heads together; all together by default.
    null
        Also ask for the total under this null, 0 where the hops can't be made. ``"distance"`` moves the first stop,
        ``"targets"`` the last; ``"heads"`` is for sequences that name a head.

    Raises
    ------
    UnknownNodeError
        If a stop names nothing, or more than one block.
    ConfigError
        If there are fewer than two stops, not one head per hop, or the null is ``"heads"`` where no hop names one.
    GraphError
        If the null has nothing to compare with.
    """
    hops = len(stops) - 1
    if hops < 1:
        raise ConfigError(f"A sequence has at least two stops; got {list(stops)}.")
    asked = (None,) * hops if heads is None else tuple(heads)
    if len(asked) != hops:
        raise ConfigError(f"{len(asked)} heads for {hops} hops; give one head per hop, None for any.")
    named: tuple[NullName, ...] = ("heads",) if any(head is not None for head in asked) else ()
    chosen = None if null is None else meaningful(null, "hops by any head", *ALL_BUT_HEADS, *named)
    nodes = np.array([*(_only_block(graph, stop) for stop in stops[:-1]), _only_end(graph, stops[-1])])
    stay, move = _steps(graph, nodes, asked)
    made = _made(stay, move)
    # The same recurrence from the other end: hops and layers reversed.
    left = _made(stay[::-1, ::-1], move[::-1, ::-1])[::-1, ::-1]
    total = float(made[-1, -1])
    share = (made[:-1, :-1] * move * left[1:, 1:]).T / total if total > 0 else np.zeros((hops, graph.layers))
    best, best_layers = _best_placement(stay, move)
    found = SequenceWeight(
        stops=tuple(stops),
        heads=asked,
        total=total,
        best=best,
        best_layers=best_layers,
        share=share,
        **about(graph, stops[-1]),
    )
    if chosen is None:
        return found

    def ask(question: Question) -> float:
        first, last = question.starts()[: graph.blocks].argmax(), _only_end(question.graph, question.target)
        return float(_made(*_steps(question.graph, np.array([first, *nodes[1:-1], last]), asked))[-1, -1])

    return replace(found, against=compare(ask, Question(graph, nodes[:1], stops[-1]), chosen, value=total))


def _steps(graph: AttentionGraph, nodes: IntArray, heads: Sequence[int | None]) -> tuple[FloatArray, FloatArray]:
    """The probability of staying at every stop and of every hop, ``[layers, hops + 1]`` and ``[layers, hops]``."""
    stay = np.empty((graph.layers, len(nodes)))
    move = np.empty((graph.layers, len(nodes) - 1))
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        stay[layer] = transition.stay[nodes]
        move[layer] = _moves(transition, nodes, heads)
    return stay, move


def _moves(transition: LayerTransition, nodes: IntArray, heads: Sequence[int | None]) -> FloatArray:
    """The probability of every hop at one layer, ``[hops]``."""
    edges, into = transition.edges_into(nodes[1:])
    hop = transition.weights.indices[edges] == nodes[:-1][into]
    edges, into = edges[hop], into[hop]
    asked = np.array([-1 if head is None else head for head in heads])[into]
    chosen = (asked == -1) | (asked == transition.head_of(edges))
    edges, into = edges[chosen], into[chosen]
    probability = transition.scale[nodes[1:]][into] * transition.weights.data[edges]
    return np.bincount(into, probability, minlength=len(heads)).astype(np.float64)


def _made(stay: FloatArray, move: FloatArray) -> FloatArray:
    """F: the weight of the walks that have made j hops by level ℓ, ``[layers + 1, hops + 1]``."""
    made = np.zeros((len(stay) + 1, stay.shape[1]))
    made[0, 0] = 1.0
    for layer in range(len(stay)):
        made[layer + 1] = made[layer] * stay[layer]
        made[layer + 1, 1:] += made[layer, :-1] * move[layer]
    return made


def _best_placement(stay: FloatArray, move: FloatArray) -> tuple[float, tuple[int, ...]]:
    """The weight and the layers of the best single placement."""
    layers, hops = move.shape
    with np.errstate(divide="ignore"):
        log_stay, log_move = np.log(stay), np.log(move)
    best = np.full((layers + 1, hops + 1), -np.inf)
    best[0, 0] = 0.0
    hopped = np.zeros((layers, hops + 1), bool)
    for layer in range(layers):
        stayed = best[layer] + log_stay[layer]
        moved = np.append(-np.inf, best[layer, :-1] + log_move[layer])
        hopped[layer] = moved > stayed
        best[layer + 1] = np.maximum(stayed, moved)
    if not np.isfinite(best[-1, -1]):
        return 0.0, ()
    placed: list[int] = []
    for layer in reversed(range(layers)):
        if hopped[layer, hops - len(placed)]:
            placed.insert(0, layer)
    return float(np.exp(best[-1, -1])), tuple(placed)


def _only_block(graph: AttentionGraph, stop: str) -> int:
    blocks = blocks_of(graph, stop)
    if len(blocks) > 1:
        raise UnknownNodeError(
            f"{stop!r} lies in the blocks {', '.join(map(str, blocks))}; a stop is one of them, such as "
            f"'block:{blocks[0]}'."
        )
    return int(blocks[0])


def _only_end(graph: AttentionGraph, stop: str) -> int:
    ends = np.flatnonzero(target_state(graph, stop))
    return int(ends[0]) if len(ends) == 1 else _only_block(graph, stop)
