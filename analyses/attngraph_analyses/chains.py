"""Does the walk back from the answer follow a chain of hops, more than it would follow other places in their stead?

Where an answer is reached in several hops, such as in variable tracking, the hops H_0, …, H_n stand in the text one
after another, each in a block or several.

1. *Weight.* The walk runs backwards from the target. The weight of the chain is the probability that it passes H_n,
   H_{n-1}, …, H_1 in this order, whatever blocks it passes between them and before, and ends in H_0. By first-step
   analysis (Norris 1997, 1.3), with u_j[ℓ, i] for a walk from node i of level ℓ that has still to pass H_j, …, H_1,

       u_0[0, i] = [i ∈ H_0],    u_0[ℓ, i] = (P_{ℓ-1} u_0[ℓ - 1])[i],
       u_j[ℓ, i] = u_{j-1}[ℓ, i] where i ∈ H_j, else (P_{ℓ-1} u_j[ℓ - 1])[i], or 0 at level 0.

   The weight is u_n[L, target]. `sequence_weight` is the stricter one in which nothing lies between the stops.
2. *Controls.* One hop is put at other places between its neighbours, or all of them at other places in order
   (`chain_places.py`): anywhere in the haystack, which tells whether its sentences draw walks at all, or where other
   chains of the same form stand, which tells this chain from them.
3. *Percentile.* The mid-rank of the chain among its m controls, (less + (equal + 1) / 2) / (m + 1): from 0 to 1, 0.5 on
   average where the hops are nothing special. A hop that shares a block with another one, with the sink or with the
   question has none, since its place can't be told from theirs; nor has the chain then as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from attngraph.errors import ConfigError, GraphError, UnknownNodeError
from attngraph.graph import AttentionGraph, blocks_of, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.chain_places import (
    BoolArray,
    Control,
    as_sets,
    first_block,
    haystack_controls,
    other_controls,
)
from attngraph_analyses.nulls import TIE
from attngraph_analyses.results import Answer, about

HOP, DISTRACTOR = "hop:", "distractor"


class ChainRank(NamedTuple):
    """How a chain stands among its controls.

    `stop` is the hop that was replaced, ``"chain"`` where all were; `controls` their number, `control_weight` their
    median weight, `percentile` the chain's mid-rank, `first` whether it exceeds them all; these are None without any.
    """

    stop: str
    control: Control
    controls: int
    control_weight: float | None
    percentile: float | None
    first: bool | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Chain(Answer):
    """What `chain` found.

    Parameters
    ----------
    target
        Where the walk started.
    hops
        The names of the hops, in the order of the text.
    blocks
        The blocks of each.
    weight
        Probability that the walk passes all hops and ends in the first; from 0 to 1.
    ranks
        For all hops together and for each one, by control.
    """

    target: str
    hops: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    weight: float
    ranks: tuple[ChainRank, ...]

    def to_polars(self) -> pl.DataFrame:
        """One row per rank: stop, control, controls, weight, control_weight, percentile, first."""
        columns = {
            "stop": pl.String,
            "control": pl.String,
            "controls": pl.Int64,
            "control_weight": pl.Float64,
            "percentile": pl.Float64,
            "first": pl.Boolean,
        }
        table = pl.DataFrame(self.ranks, schema=columns, orient="row")
        return table.insert_column(3, pl.lit(self.weight).alias("weight"))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "target": self.target,
            "policy": asdict(self.policy),
            "block_size": self.block_size,
            "completeness": self.completeness,
            "completeness_source": self.completeness_source,
            "hops": [{"hop": hop, "blocks": list(own)} for hop, own in zip(self.hops, self.blocks, strict=True)],
            "weight": self.weight,
            "ranks": [rank._asdict() for rank in self.ranks],
        }


def chain(
    graph: AttentionGraph,
    hops: Sequence[str] = (),
    target: str = "output",
    *,
    others: Sequence[Sequence[Sequence[int] | IntArray]] = (),
    before: str = "question",
    draws: int = 199,
    seed: int = 0,
) -> Chain:
    """The weight of the walks through every hop of a chain, and its rank among chains with other places.

    Parameters
    ----------
    graph
        Its span ``distractor``, where it has one, is no haystack.
    hops
        At least two names (spans, blocks or tokens) in the order of the text; by default the spans ``hop:0``,
        ``hop:1``, and so on.
    target
        Where the walk starts.
    others
        Other chains of the same form: for each one the blocks of every hop. `other_chains` gives those of a
        variable-tracking run.
    before
        Other places end before this span, such as the question.
    draws
        Places in the haystack that stand for each hop, and for all, at most; at least 1.
    seed
        Of those that are drawn.

    Raises
    ------
    UnknownNodeError
        If a name means nothing, or there are no hops.
    ConfigError
        If there are fewer than two hops, another chain has fewer or more, or there are no draws.
    GraphError
        If the hops are not in the order of the text, or all lie in one block.

    Examples
    --------
    >>> found = chain(run.graph())                                     # doctest: +SKIP
    >>> found.to_polars().filter(stop="chain").select("percentile")    # doctest: +SKIP
    """
    if draws < 1:
        raise ConfigError(f"draws={draws!r} places in the haystack were asked for; give at least 1.")
    names = tuple(hops) or _hops_of(graph)
    own = [blocks_of(graph, name) for name in names]
    real = as_sets(own, graph.blocks)
    _check_order(names, real)
    for number, other in enumerate(others):
        if len(other) != len(names):
            raise ConfigError(f"others[{number}] has {len(other)} hops, the chain {len(names)}; give as many for each.")
    end = int(blocks_of(graph, before)[0])
    sets = {
        **haystack_controls(names, real, _sentences(graph), end, draws, seed),
        **other_controls(names, real, [as_sets(other, graph.blocks) for other in others], end),
    }
    weights = chain_weights(graph, np.concatenate([real[None], *sets.values()]), target)
    cuts = np.cumsum([1, *map(len, sets.values())])[:-1]
    value, *drawn = np.split(weights, cuts)
    return Chain(
        target=target,
        hops=names,
        blocks=tuple(tuple(places.tolist()) for places in own),
        weight=float(value[0]),
        ranks=tuple(_ranked(*which, float(value[0]), found) for which, found in zip(sets, drawn, strict=True)),
        **about(graph, target),
    )


def chain_weights(graph: AttentionGraph, chains: BoolArray, target: str = "output") -> FloatArray:
    """The weights of several chains, in one pass over the layers, ``[chains]``.

    Parameters
    ----------
    chains
        ``[chains, hops, blocks]``: the blocks of every hop, in the order of the text.
    target
        Where the walk starts.

    Raises
    ------
    UnknownNodeError
        If the target means nothing.
    """
    start = target_state(graph, target)
    inside = chains[:, :, graph.node_blocks()].transpose(2, 1, 0)
    reached = np.zeros(inside.shape)
    reached[:, 0] = inside[:, 0]
    _pass_on(reached, inside)
    for layer in range(graph.layers):
        reached = graph.transition(layer).pull(reached.reshape(graph.nodes, -1)).reshape(inside.shape)
        _pass_on(reached, inside)
    return np.asarray(start @ reached[:, -1])


def _pass_on(reached: FloatArray, inside: BoolArray) -> None:
    """In place: where a walk is in H_j, it goes on as one that has H_j behind it."""
    for hop in range(1, inside.shape[1]):
        np.copyto(reached[:, hop], reached[:, hop - 1], where=inside[:, hop])


def _hops_of(graph: AttentionGraph) -> tuple[str, ...]:
    numbers = [name.removeprefix(HOP) for name in graph.spans if name.startswith(HOP)]
    found = tuple(f"{HOP}{number}" for number in sorted(filter(str.isdecimal, numbers), key=int))
    if not found:
        raise UnknownNodeError(
            f"This graph has no spans hop:0, hop:1, …, so name the hops. Spans: {', '.join(sorted(graph.spans))}."
        )
    return found


def _sentences(graph: AttentionGraph) -> BoolArray:
    """The blocks of other chains' sentences, ``[blocks]``."""
    if DISTRACTOR not in graph.spans:
        return np.zeros(graph.blocks, bool)
    return np.isin(np.arange(graph.blocks), blocks_of(graph, DISTRACTOR))


def _check_order(names: Sequence[str], real: BoolArray) -> None:
    if len(names) < 2:
        raise ConfigError(f"A chain has at least two hops; got {list(names)}.")
    first = first_block(real)
    for one, other, start, later in zip(names, names[1:], first, first[1:], strict=False):
        if start > later:
            raise GraphError(
                f"{one!r} begins in block {start}, after {other!r} in block {later}: no block reads what comes later. "
                f"Name the hops in the order of the text."
            )
    if real.any(0).sum() == 1:
        raise GraphError(
            f"All {len(names)} hops lie in block {first[0]}, so nothing tells them apart. Capture with smaller blocks."
        )


def _ranked(stop: str, control: Control, value: float, drawn: FloatArray) -> ChainRank:
    if not len(drawn):
        return ChainRank(stop, control, 0, None, None, None)
    equal = np.abs(drawn - value) <= TIE * value
    less = (drawn < value) & ~equal
    percentile = float((less.sum() + (equal.sum() + 1) / 2) / (len(drawn) + 1))
    return ChainRank(stop, control, len(drawn), float(np.median(drawn)), percentile, bool(less.all()))
