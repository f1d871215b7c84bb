"""Head roles: which heads fetch the source, which feed on the sink, which look near, far, or after repetitions?

All scores are shares of a head's recorded mass, from 0 to 1:

1. Retrieval: the mass of the target's own row on the source's blocks, and what it exceeds the same by for
   distance-matched blocks (or under another null). Wu et al. (2024, arXiv 2404.15574) count copied tokens instead;
   the contrast with matched blocks is what a score without generation needs.
2. Zones, means over the rows of blocks that have all of them; they sum to 1: the *sink* (block 0), *own* block,
   *previous* block, *near* (up to `reach` blocks back) and *far* (the long range).
3. Induction-like (Olsson et al. 2022, arXiv 2209.11895): a token that occurred before is followed by its earlier
   successor, so a row's candidates are the blocks that hold the successors of earlier occurrences of its tokens, beyond
   the previous block. Tokens with more than `rare` occurrences say nothing and are left out. The score is the mean mass
   on these blocks over the rows that have any, less that on the blocks up to `SHIFTS` places around them.

A head's role is ``"retrieval"`` or ``"induction"`` if that score is at least `threshold` (0.1 in Wu et al.),
whichever is greater, else its greatest zone: ``"sink"``, ``"local"`` (own, previous and near together) or
``"long-range"``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.errors import ConfigError
from attngraph.graph import AttentionGraph, LayerTransition, blocks_of, row_completeness, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph.store import Run
from attngraph_analyses.nulls import Compared, Null, NullName, Question, compare
from attngraph_analyses.results import Answer

SHIFTS = (-4, -3, -2, 2, 3, 4)
"""Where the blocks lie, relative to an induction candidate, that it is compared with."""
ZONES = ("sink", "own", "previous", "near", "far")


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadRoles(Answer):
    """What `head_roles` found; scores are ``[layers, heads]``.

    Parameters
    ----------
    source, target
        The two ends of retrieval, by name.
    reach, rare, threshold
        What was asked; see the module.
    retrieval
        Mass of the target's row on the source's blocks; of a target of several nodes their mean.
    retrieval_against
        The same compared with a null.
    sink, own, previous, near, far
        Mean mass of the zones; they sum to 1, but for a head without any edge. NaN where no row has them all.
    induction, induction_null
        Mean mass on the candidates, and on blocks around them; NaN where no row has candidates.
    policy
        Under which the graph's masses were read.
    completeness
        Of the target's rows, which retrieval speaks of: the share of their dense attention that is recorded, the mean
        over layers and heads. There is no walk here.
    """

    source: str
    target: str
    reach: int
    rare: int
    threshold: float
    retrieval: FloatArray
    retrieval_against: Compared
    sink: FloatArray
    own: FloatArray
    previous: FloatArray
    near: FloatArray
    far: FloatArray
    induction: FloatArray
    induction_null: FloatArray

    @property
    def retrieval_excess(self) -> FloatArray:
        """Retrieval less its mean under the null."""
        return self.retrieval - self.retrieval_against.mean

    @property
    def roles(self) -> npt.NDArray[np.str_]:
        """The role of every head, ``[layers, heads]``."""
        zones = np.nan_to_num(np.stack([self.sink, self.own + self.previous + self.near, self.far]))
        roles = np.array(["sink", "local", "long-range"])[zones.argmax(0)]
        special = np.nan_to_num(np.stack([self.retrieval_excess, self.induction - self.induction_null]))
        named = np.array(["retrieval", "induction"])[special.argmax(0)]
        return np.asarray(np.where(special.max(0) >= self.threshold, named, roles))

    def best(self, count: int = 5) -> list[tuple[int, int]]:
        """The heads (layer, head) of greatest retrieval excess, at most `count`."""
        excess = self.retrieval_excess
        order = np.argsort(-excess.ravel(), kind="stable")[:count]
        return [divmod(int(index), excess.shape[1]) for index in order]

    def to_polars(self) -> pl.DataFrame:
        """One row per head, greatest retrieval excess first.

        layer, head, role, retrieval, retrieval_null, retrieval_ratio, retrieval_rank, sink, own, previous, near, far,
        induction, induction_null; what isn't defined is null.
        """
        layers, heads = self.retrieval.shape
        layer, head = np.divmod(np.arange(layers * heads), heads)
        scores = {
            "retrieval": self.retrieval,
            "retrieval_null": self.retrieval_against.mean,
            "retrieval_ratio": self.retrieval_against.ratio,
            **{zone: getattr(self, zone) for zone in ZONES},
            "induction": self.induction,
            "induction_null": self.induction_null,
        }
        frame = pl.DataFrame(
            {
                "layer": layer,
                "head": head,
                "role": self.roles.ravel().tolist(),
                **{name: pl.Series(score.ravel()).fill_nan(None) for name, score in scores.items()},
                "retrieval_rank": self.retrieval_against.rank.ravel(),
            }
        )
        excess = (pl.col("retrieval") - pl.col("retrieval_null")).fill_null(-1.0)
        return frame.sort(excess, descending=True, maintain_order=True)


def head_roles(
    run: Run,
    source: str = "needle",
    target: str = "output",
    *,
    reach: int = 8,
    rare: int = 8,
    threshold: float = 0.1,
    null: Null | NullName = "distance",
) -> HeadRoles:
    """What every head of a run attends to.

    Parameters
    ----------
    run
        Its tokens tell repetitions apart; masses are those over the kept keys.
    source, target
        A span, ``"block:N"``, ``"token:N"`` or ``"output"``; a target token must be a recorded target.
    reach
        Blocks back that are near, at least 2.
    rare
        Tokens with more occurrences than this make no induction candidates; at least 2.
    threshold
        Least excess for a retrieval or induction head, above 0 and up to 1.
    null
        What retrieval is compared with.

    Raises
    ------
    UnknownNodeError
        If a name means nothing.
    ConfigError
        If a setting is out of range, or the null is unknown.
    GraphError
        If the null has nothing to compare with.
    """
    for name, value in (("reach", reach), ("rare", rare)):
        if value < 2:
            raise ConfigError(f"{name}={value!r} must be at least 2.")
    if not 0.0 < threshold <= 1.0:
        raise ConfigError(f"threshold={threshold!r} is a share of a head's mass, above 0 and up to 1.")
    graph = run.graph(weight="mass", residual=0.0)
    question = Question(graph, blocks_of(graph, source), target)

    @cache  # nulls that only move the source ask again and again for the masses of one graph
    def masses(graph: AttentionGraph, end: str) -> FloatArray:
        return _target_masses(graph, end)

    def ask(question: Question) -> FloatArray:
        return np.asarray(masses(question.graph, question.target)[:, :, question.blocks].sum(-1))

    against = compare(ask, question, null)
    zones = np.stack([_zones(graph.transition(layer), graph, reach) for layer in range(graph.layers)])
    candidates = induction_candidates(run.tokens().sort("position").collect()["token_id"].to_list(), graph, rare)
    induction = np.stack([_induction(graph.transition(layer), graph, candidates) for layer in range(graph.layers)])
    complete = row_completeness(graph, target)
    return HeadRoles(
        source=source,
        target=target,
        reach=reach,
        rare=rare,
        threshold=threshold,
        retrieval=against.value,
        retrieval_against=against,
        **{zone: zones[:, :, index] for index, zone in enumerate(ZONES)},
        induction=induction[:, :, 0],
        induction_null=induction[:, :, 1],
        policy=graph.policy,
        block_size=graph.block_size,
        completeness=complete.share,
        completeness_source=complete.source,
    )


def _target_masses(graph: AttentionGraph, target: str) -> FloatArray:
    """Share of each head's row of the target that is on each block, ``[layers, heads, blocks]``."""
    rows = target_state(graph, target)
    found = np.zeros((graph.layers, graph.heads, graph.blocks))
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        weight = rows[transition.query] * _row_shares(transition, graph)
        np.add.at(found[layer], (transition.head, transition.key_block), weight)
    return found


def _row_shares(transition: LayerTransition, graph: AttentionGraph) -> FloatArray:
    """Each edge's share of its head's row, ``[edges]``, by the graph's weight."""
    row = transition.head * graph.nodes + transition.query
    total = np.bincount(row, transition.probability, minlength=graph.heads * graph.nodes)[row]
    return np.asarray(np.divide(transition.probability, total, out=np.zeros(len(row)), where=total > 0))


def _zones(transition: LayerTransition, graph: AttentionGraph, reach: int) -> FloatArray:
    """Mean share of each zone over the rows of blocks beyond `reach`, ``[heads, zones]``."""
    back = transition.query - transition.key_block
    zone = np.select([transition.key_block == 0, back == 0, back == 1, back <= reach], [0, 1, 2, 3], 4)
    rows = (transition.query > reach) & (transition.query < graph.blocks)
    total = np.zeros((graph.heads, len(ZONES)))
    np.add.at(total, (transition.head[rows], zone[rows]), _row_shares(transition, graph)[rows])
    count = graph.blocks - reach - 1
    return total / count if count > 0 else np.full_like(total, np.nan)


def induction_candidates(tokens: list[int], graph: AttentionGraph, rare: int) -> IntArray:
    """Pairs of query block and candidate key block, ``[pairs, 2]``, sorted.

    Parameters
    ----------
    tokens
        The prompt's token ids.
    graph
        Gives the blocks.
    rare
        Tokens that occur more often are left out.
    """
    occurrences = Counter(tokens)
    successors: dict[int, list[int]] = defaultdict(list)
    pairs: set[tuple[int, int]] = set()
    for position, token in enumerate(tokens):
        if occurrences[token] > rare:
            continue
        block = position // graph.block_size
        pairs.update((block, key) for key in successors[token] if 0 < key < block - 1)
        successors[token].append((position + 1) // graph.block_size)
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _induction(transition: LayerTransition, graph: AttentionGraph, candidates: IntArray) -> FloatArray:
    """Mean share on a row's candidates, and on as many blocks around them, ``[heads, 2]``; NaN without candidates."""
    rows = np.unique(candidates[:, 0])
    if not len(rows):
        return np.full((graph.heads, 2), np.nan)
    share = _row_shares(transition, graph)
    taken = _codes(candidates, graph)
    edges = _codes(np.stack([transition.query, transition.key_block], axis=1), graph)
    found = np.zeros((graph.heads, 2))
    hit = np.isin(edges, taken)
    found[:, 0] = np.bincount(transition.head[hit], share[hit], minlength=graph.heads)
    for shift in SHIFTS:
        moved = candidates + np.array([0, shift])
        moved = moved[(moved[:, 1] > 0) & (moved[:, 1] < moved[:, 0] - 1)]
        around = np.setdiff1d(_codes(moved, graph), taken)
        if len(around):
            hit = np.isin(edges, around)
            mass = np.bincount(transition.head[hit], share[hit], minlength=graph.heads)
            found[:, 1] += mass * (len(taken) / len(around)) / len(SHIFTS)
    return found / len(rows)


def _codes(pairs: IntArray, graph: AttentionGraph) -> IntArray:
    return np.asarray(pairs[:, 0] * graph.blocks + pairs[:, 1])
