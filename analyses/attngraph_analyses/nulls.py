"""Nulls: what would the same question answer if there were nothing to find?

A null makes *alternatives* of a question, an analysis answers each of them, and `compare` says how the real
answer stands among theirs: its ratio to their mean, and how many of them are at least as great. This is the
one way in which analyses take their ``null=``:

1. ``"uniform"``: the same edges and residual shares with the same weight on every edge; one alternative.
2. ``"edges"``: mass-matched edges. In every layer, edges of nearly the same mass exchange their key blocks
   where both stay causal: every row keeps its weights, every key block what it attracts, and only who reads
   whom is chance.
3. ``"heads"``: permuted heads. In every layer and row, heads exchange their names: answers that don't
   distinguish heads stay what they are, those of a single head become those of any head.
4. ``"distance"``: distance-matched blocks. The source is moved by a few blocks, away from itself and from the
   sink, at nearly the same distance from the target.
5. ``"targets"``: other targets of the same run. The question is asked of the blocks before the target's own.

Each keeps all but one thing, so together they tell apart what carries a result: the weights, who reads whom, the head,
the source or the target. Exchanging ends of edges is the rewiring of Maslov & Sneppen (2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.errors import ConfigError, GraphError
from attngraph.graph import AttentionGraph, blocks_of
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.rewiring import exchanged_keys, permuted_heads, rewired

NullName = Literal["uniform", "edges", "heads", "distance", "targets"]
ALL_BUT_HEADS: tuple[NullName, ...] = ("uniform", "edges", "distance", "targets")
"""The nulls of a question whose answer doesn't distinguish heads."""
TIE = 1e-12
"""Answers that differ by less than this share of themselves count as equal: the order of sums differs."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """Which null, and how many alternatives it has.

    Parameters
    ----------
    name
        See the module.
    draws
        Alternatives, at least 1; ``"uniform"`` always has one, and ``"distance"`` and ``"targets"`` have no more than
        the graph has blocks for.
    seed
        Seed of the random ones.

    Raises
    ------
    ConfigError
        For an unknown name or less than one draw.
    """

    name: NullName
    draws: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in get_args(NullName):
            raise ConfigError(f"null={self.name!r} is not one of {', '.join(get_args(NullName))}.")
        if self.draws < 1:
            raise ConfigError(f"draws={self.draws!r} alternatives were asked for; give at least 1.")


class Question(NamedTuple):
    """A graph, the blocks of the source (None for an analysis that takes no source), and the target's name."""

    graph: AttentionGraph
    blocks: IntArray | None
    target: str

    def starts(self) -> FloatArray:
        """1 on the level-0 nodes of the source, or on all where there is none, ``[nodes]``."""
        if self.blocks is None:
            return np.ones(self.graph.nodes)
        return np.isin(self.graph.node_blocks(), self.blocks).astype(np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """How an answer stands among those of a null.

    Parameters
    ----------
    null
        The null.
    value
        ``[...]``: the answer; a number, or an array of them.
    draws
        ``[alternatives, ...]``: the answers of the alternatives; NaN where one has none.
    """

    null: Null
    value: FloatArray
    draws: FloatArray

    @property
    def mean(self) -> FloatArray:
        """``[...]``: mean of the alternatives that have an answer, NaN where none has."""
        known = np.isfinite(self.draws)
        count = known.sum(0)
        total = np.where(known, self.draws, 0.0).sum(0)
        mean: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return mean

    @property
    def ratio(self) -> FloatArray:
        """``[...]``: the answer over the mean of the alternatives, NaN where that is 0."""
        mean = self.mean
        undefined = np.full(np.shape(mean), np.nan)
        return np.asarray(np.divide(self.value, mean, out=undefined, where=mean != 0), np.float64)

    @property
    def rank(self) -> IntArray:
        """``[...]``: how many alternatives are at least as great as the answer; 0 if it exceeds them all."""
        return np.asarray((self.draws >= self.value - TIE * np.abs(self.value)).sum(0), np.int64)

    def at(self, *index: int) -> Compared:
        """One entry of an array of answers."""
        draws = np.array([draw[index] for draw in self.draws])
        return replace(self, value=np.asarray(self.value[index]), draws=draws)

    def columns(self, name: str, *index: IntArray) -> list[pl.Series]:
        """Columns for a table, of all entries or of some: null_`name` (the mean), ratio (both null if undefined), rank.

        Parameters
        ----------
        name
            What was compared.
        index
            One array per axis; all entries of a single axis by default.
        """
        chosen: Any = index or slice(None)
        return [
            pl.Series(f"null_{name}", self.mean[chosen]).fill_nan(None),
            pl.Series("ratio", self.ratio[chosen]).fill_nan(None),
            pl.Series("rank", self.rank[chosen]),
        ]

    def to_dict(self) -> dict[str, Any]:
        """A single answer as plain values: name, draws, mean, ratio (None where undefined), rank."""
        mean, ratio = float(self.mean), float(self.ratio)
        return {
            "name": self.null.name,
            "draws": len(self.draws),
            "mean": mean if np.isfinite(mean) else None,
            "ratio": ratio if np.isfinite(ratio) else None,
            "rank": int(self.rank),
        }


def compare(
    ask: Callable[[Question], npt.ArrayLike],
    question: Question,
    null: Null | NullName,
    *,
    value: npt.ArrayLike | None = None,
) -> Compared:
    """Ask a question and its alternatives under a null.

    Parameters
    ----------
    ask
        The analysis: a number or an array of one shape for every alternative, NaN for no answer.
    question
        The real one.
    null
        A null, or the name of one with its default draws.
    value
        The real answer, if it is known already.

    Raises
    ------
    ConfigError
        If the null is unknown.
    GraphError
        If it has no alternative here.

    Examples
    --------
    Is the needle's share of the walk more than that of blocks around it?

    >>> def share(question):                                                # doctest: +SKIP
    ...     return influence(question.graph, question.target).influence[question.blocks].sum()
    >>> question = Question(graph, blocks_of(graph, "needle"), "output")    # doctest: +SKIP
    >>> compare(share, question, "distance").ratio                          # doctest: +SKIP
    """
    chosen = as_null(null)
    draws = np.stack([np.asarray(ask(other), np.float64) for other in alternatives(question, chosen)])
    answer = np.asarray(ask(question) if value is None else value, np.float64)
    return Compared(null=chosen, value=answer, draws=draws)


def as_null(null: Null | NullName) -> Null:
    """A null by itself or by its name."""
    return null if isinstance(null, Null) else Null(name=null)


def meaningful(null: Null | NullName, of: str, *names: NullName) -> Null:
    """A null, if it is one of those that can change an answer.

    Parameters
    ----------
    null
        The null that was asked for.
    of
        What the answer is, for the error.
    names
        The nulls that can change it.

    Raises
    ------
    ConfigError
        If it is another, naming those that can.
    """
    chosen = as_null(null)
    if chosen.name not in names:
        raise ConfigError(f"null={chosen.name!r} can't change {of}. Nulls that can: {', '.join(names)}.")
    return chosen


def alternatives(question: Question, null: Null) -> Iterator[Question]:
    """The questions that a null puts in a question's place.

    Raises
    ------
    GraphError
        If there are none: ``"distance"`` without a source or without blocks to move it to, ``"targets"`` without a
        block between the sink and the target's.
    """
    graph = question.graph
    if null.name == "uniform":
        yield question._replace(graph=graph.uniform())
    elif null.name == "distance":
        yield from (question._replace(blocks=moved) for moved in matched_blocks(question, null.draws))
    elif null.name == "targets":
        yield from (question._replace(target=f"block:{block}") for block in other_targets(question, null.draws))
    else:
        change = exchanged_keys if null.name == "edges" else permuted_heads
        for draw in range(null.draws):
            yield question._replace(graph=rewired(graph, change, (null.seed, draw)))


def other_targets(question: Question, draws: int) -> list[int]:
    """Up to `draws` blocks before a target's own, not the sink, the nearest first; GraphError without any."""
    first = int(blocks_of(question.graph, question.target)[0])
    blocks = list(range(first - 1, max(first - 1 - draws, 0), -1))
    if not blocks:
        raise GraphError(
            f"null='targets' asks the same of the blocks before the target's, but {question.target!r} is in block "
            f"{first} and only the sink lies before it. Use another null."
        )
    return blocks


def matched_blocks(question: Question, draws: int) -> list[IntArray]:
    """The source's blocks moved by up to `draws` distances, the nearest first, the earlier place on ties.

    Moved blocks stay behind the sink and before the target's blocks, and don't overlap the source's own.

    Raises
    ------
    GraphError
        If there is no source, or no room to move it.
    """
    graph, own = question.graph, question.blocks
    if own is None:
        raise GraphError("null='distance' moves the source, but this question has none. Use another null.")
    end = int(blocks_of(graph, question.target)[0])
    places = []
    for shift in (sign * size for size in range(1, graph.blocks) for sign in (-1, 1)):
        moved = own + shift
        if moved[0] >= 1 and moved[-1] < end and not np.isin(moved, own).any():
            places.append(moved)
        if len(places) == draws:
            break
    if not places:
        raise GraphError(
            f"null='distance' moves the source between the sink and the target, but blocks {own[0]} to {own[-1]} have "
            f"no room before block {end}. Use another null."
        )
    return places
