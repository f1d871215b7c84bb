"""One layer as a transition matrix.

A walk runs backwards from a target: at node i of level ℓ + 1 it stays where it is with probability λ_i, or
steps along an edge e into i with probability p_e::

    P[i, j] = λ_i·[i = j] + (1 - λ_i) · Σ_h w_h[i, j] / Σ_h,j' w_h[i, j']

with w the chosen weight and λ the residual share. Every row sums to 1. What w, λ and the edges are is a
`Policy`, which each result records, because rankings depend on it.

Nodes of a level are numbered: blocks 0 … B-1 first, then the targets B … B+T-1. Keys are always blocks, so
nothing but a target's own later self ever reads from a target node; at level 0 a target stands for its token
and counts to its block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import (
    AnyFloats,
    AnyIntegers,
    FloatArray,
    IntArray,
    LayerArrays,
    LayerSource,
    check_layer,
)

Weight = Literal["contribution", "mass", "uniform"]
MeasuredOrHalf = Literal["measured", "half"]
Residual = MeasuredOrHalf | float
Heads = Literal["sum", "max"]
Sink = Literal["keep", "exclude"]
TINY = np.finfo(np.float64).tiny
"""The least number of full precision."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How edges become probabilities; recorded in every result.

    Parameters
    ----------
    weight
        ``"contribution"``, ``"mass"``, or ``"uniform"``: 1 on every edge whose mass or contribution is above
        0 (the null).
    residual
        ``"measured"``: the recorded residual shares; ``"half"``: λ = ½ (attention rollout, Abnar & Zuidema
        2020); or one number from 0 to 1 for all nodes.
    heads
        ``"sum"``: every head's edge counts; ``"max"``: of parallel edges between two nodes only the one with
        the greatest weight, the lowest head on ties.
    sink
        ``"keep"``, or ``"exclude"``: edges with key block 0 are dropped, except those into block 0 itself.

    Raises
    ------
    ConfigError
        Naming the policy, its value and what is allowed.
    """

    weight: Weight = "contribution"
    residual: Residual = "measured"
    heads: Heads = "sum"
    sink: Sink = "keep"

    def __post_init__(self) -> None:
        for name, allowed in (("weight", Weight), ("heads", Heads), ("sink", Sink)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}.")
        is_number = isinstance(self.residual, int | float) and not isinstance(self.residual, bool)
        if not (self.residual in get_args(MeasuredOrHalf) or (is_number and 0.0 <= float(self.residual) <= 1.0)):
            raise ConfigError(f"residual={self.residual!r} is not 'measured', 'half' or a number from 0 to 1.")


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerTransition:
    """The transition P = diag(stay) + diag(scale) · weights from level ℓ + 1 down to level ℓ; rows sum to 1.

    The matrix is kept in these three parts, because a sweep over millions of edges needs no more of them: a
    number per edge is read, never written. The edge by edge columns below are made when they are asked for.

    Parameters
    ----------
    layer
        ℓ, from 0.
    weights
        The chosen weight w as a compressed matrix [nodes of level ℓ + 1, nodes of level ℓ], one entry per edge, so
        that heads between the same two nodes are parallel entries. A row is a block, or B + a target's index;
        columns are blocks.
    rows
        ``[nodes]``: `scale`, (1 - λ) / Σ_row w, 0 for a row without weight; and `stay`, λ, 1 for a node without
        any weight left on its row (nothing recorded, all weights 0, or only the excluded sink).
    arrays
        The recorded layer.
    kept
        ``[edges]``: where each edge stands in the recorded layer, block edges first; None if they are all
        there in the same order.
    """

    layer: int
    weights: Weights
    rows: Rows
    arrays: LayerArrays
    kept: IntArray | None

    @property
    def scale(self) -> FloatArray:
        """``[nodes]``: (1 - λ) / Σ_row w."""
        return self.rows.scale

    @property
    def stay(self) -> FloatArray:
        """``[nodes]``: λ."""
        return self.rows.stay

    @cached_property
    def query(self) -> IntArray:
        """``[edges]``, ascending: the node of level ℓ + 1, a block or B + the target's index."""
        return np.repeat(np.arange(len(self.stay)), np.diff(self.weights.indptr))

    @cached_property
    def key_block(self) -> IntArray:
        """``[edges]``: the block of level ℓ."""
        return self.weights.indices.astype(np.int64)

    @cached_property
    def head(self) -> IntArray:
        """``[edges]``."""
        return self.head_of(slice(None))

    def head_of(self, edges: IntArray | slice) -> IntArray:
        """The heads of some edges."""
        recorded = edges if self.kept is None else self.kept[edges]
        if not len(self.arrays.target_head):
            return self.arrays.head[recorded].astype(np.int64)
        return np.concatenate([self.arrays.head, self.arrays.target_head])[recorded].astype(np.int64)

    @cached_property
    def mass(self) -> AnyFloats:
        """``[edges]``: the recorded mass."""
        return self._recorded("mass")

    @cached_property
    def contribution(self) -> AnyFloats:
        """``[edges]``: the recorded contribution."""
        return self._recorded("contribution")

    @cached_property
    def probability(self) -> FloatArray:
        """``[edges]``: p_e = (1 - λ)·w_e / Σ_row w."""
        return np.asarray(self.along_rows(self.scale) * self.weights.data)

    def along_rows(self, values: FloatArray) -> FloatArray:
        """A number per node of level ℓ + 1 as one per edge into it, ``[edges]``."""
        return np.repeat(values, np.diff(self.weights.indptr))

    def edges_into(self, nodes: IntArray) -> tuple[IntArray, IntArray]:
        """The edges into some nodes, row by row, and for each the position of its node in `nodes`."""
        start = self.rows.start[nodes].astype(np.int64)
        count = self.rows.start[nodes + 1] - start
        edges = np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)
        return edges, np.repeat(np.arange(len(nodes)), count)

    def pull(self, state: FloatArray) -> FloatArray:
        """P @ state, ``[nodes]`` or ``[nodes, n]``: every node collects what it reads."""
        stay, scale = (part if state.ndim == 1 else part[:, None] for part in (self.stay, self.scale))
        return np.asarray(stay * state + scale * (self._entries @ state))

    def push(self, state: FloatArray) -> FloatArray:
        """state @ P, ``[nodes]`` or ``[nodes, n]``: every node hands out what it has to those that it reads."""
        stay, scale = (part if state.ndim == 1 else part[:, None] for part in (self.stay, self.scale))
        return np.asarray(stay * state + self._entries.T @ (scale * state))

    def greatest(self, state: FloatArray) -> FloatArray:
        """The greatest w · state of every row's edges, for a state of at least 0, ``[nodes]``; 0 for an empty row.

        Where the nodes below the first that has a state read only one another, as in any causal graph, their edges
        aren't looked at.
        """
        first = int((state > 0).argmax())
        if self.weights.indices[: self.rows.start[first]].max(initial=-1) >= first:
            first = 0
        edges = slice(self.rows.start[first], None)
        values = self.weights.data[edges].astype(np.float64)  # NumPy is slower at products of two types
        values *= state.take(self.weights.indices[edges])
        found = np.zeros(len(state))
        found[first:] = merge_rows(np.maximum, values, self.rows.start[first:] - self.rows.start[first], 0.0)
        return found

    def matrix(self) -> sparse.csr_array[np.float64]:
        """The matrix P, ``[nodes of level ℓ + 1, nodes of level ℓ]``, heads summed, rows summing to 1."""
        nodes = np.arange(len(self.stay), dtype=np.int32)
        values = np.concatenate([self.probability, self.stay])
        rows = np.concatenate([self.query.astype(np.int32), nodes])
        columns = np.concatenate([self.weights.indices, nodes])
        return sparse.coo_array((values, (rows, columns)), shape=(len(nodes), len(nodes))).tocsr()

    @cached_property
    def _entries(self) -> sparse.csr_array[Any]:
        """The weights as SciPy's matrix of these very arrays, which its constructor would copy from longer ones."""
        matrix: sparse.csr_array[Any] = sparse.csr_array(
            (len(self.stay), len(self.stay)), dtype=self.weights.data.dtype
        )
        matrix.data, matrix.indices, matrix.indptr = self.weights
        return matrix

    def _recorded(self, column: str) -> AnyFloats:
        joined: AnyFloats = np.concatenate([getattr(self.arrays, column), getattr(self.arrays, f"target_{column}")])
        return joined if self.kept is None else joined[self.kept]


class Weights(NamedTuple):
    """One weight per edge, sorted by row: `data` and column `indices` [edges]; row i starts at `indptr` [i]."""

    data: AnyFloats
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int32]


class Transitions(Protocol):
    """What a sweep needs to know of a graph."""

    @property
    def layers(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    def transition(self, layer: int) -> LayerTransition: ...


class Rows(NamedTuple):
    """What a layer's rows were found to be: one number per node, few enough to keep for the next sweep.

    `start` says where each row's edges start, `scale` and `stay` are those of `LayerTransition`; `as_recorded`
    says whether the edges are all there and in order.
    """

    start: npt.NDArray[np.int32]
    scale: FloatArray
    stay: FloatArray
    as_recorded: bool


def layer_transition(source: LayerSource, policy: Policy, layer: int, rows: Rows | None = None) -> LayerTransition:
    """Read one layer and normalise its weights by a policy.

    Edges come sorted by their query node; a layer that is stored so, as runs are, isn't sorted again.

    Parameters
    ----------
    rows
        What an earlier call found under the same policy, `LayerTransition.rows`; saves checking and adding up.

    Raises
    ------
    GraphError
        If the layer doesn't exist, its arrays are out of range, or measured shares are wanted and missing.
    """
    if not 0 <= layer < source.layers:
        raise GraphError(f"layer={layer} is outside this graph's layers 0 to {source.layers - 1}.")
    arrays = source.layer(layer)
    if rows is None:
        check_layer(arrays, source, layer)
    weight = _weights(arrays, policy.weight)
    key_block = _joined(arrays.key_block, arrays.target_key_block)
    kept = None
    if rows is None or not rows.as_recorded:
        query = _joined(arrays.query_block, arrays.target + source.blocks)
        runs = _runs(query)
        kept = _kept(source, policy, query, key_block, weight, arrays, runs.ascending)
        if kept is not None:
            query, key_block, weight = query[kept], key_block[kept], weight[kept]
            runs = _runs(query)
        if rows is None:
            rows = _rows(runs, weight, _residual_shares(arrays, source, policy.residual, layer), layer, kept is None)
    weights = Weights(weight, key_block, rows.start)
    return LayerTransition(layer=layer, weights=weights, rows=rows, arrays=arrays, kept=kept)


def _joined(blocks: AnyIntegers, targets: AnyIntegers) -> npt.NDArray[np.int32]:
    """Ids of block edges, then of target edges, in SciPy's type for indices; not copied where that can be avoided."""
    if len(targets):
        return np.concatenate([blocks, targets], dtype=np.int32, casting="unsafe")
    return blocks.view(np.int32) if blocks.dtype == np.uint32 else blocks.astype(np.int32, copy=False)


class _Runs(NamedTuple):
    """Stretches of edges into one row each: the row, and where they start and end."""

    row: npt.NDArray[np.int32]
    start: IntArray
    end: IntArray

    @property
    def ascending(self) -> bool:
        """Whether the edges are sorted by row."""
        return bool((self.row[1:] > self.row[:-1]).all())


def _runs(query: npt.NDArray[np.int32]) -> _Runs:
    cuts = np.flatnonzero(query[1:] != query[:-1]) + 1
    start, end = np.append(0, cuts), np.append(cuts, len(query))
    return _Runs(query[start], start, end) if len(query) else _Runs(query, cuts, cuts)


def _rows(runs: _Runs, weight: AnyFloats, residual: FloatArray, layer: int, as_recorded: bool) -> Rows:
    nodes = len(residual)
    start = np.zeros(nodes + 1, np.int32)
    start[runs.row + 1] = runs.end - runs.start
    start = np.cumsum(start, dtype=np.int32)
    with np.errstate(over="ignore"):
        total = merge_rows(np.add, weight, start, 0.0)
    if not np.isfinite(total).all():
        raise GraphError(f"Layer {layer} has weights that sum to {total.max()} on a row; scale them down.")
    # Subnormal totals have no reciprocal; they count as no weight.
    weighted = total >= TINY
    stay = np.where(weighted, residual, 1.0)
    scale = np.divide(1.0 - stay, total, out=np.zeros(nodes), where=weighted)
    return Rows(start=start, scale=scale, stay=stay, as_recorded=as_recorded)


def merge_rows(merge: np.ufunc, values: AnyFloats, start: npt.NDArray[np.int32], empty: float) -> FloatArray:
    """Merge one value per edge into one per row, in float64; `empty` for a row without edges."""
    filled = start[:-1] < start[1:]
    result = np.full(len(filled), empty)
    if len(values):
        result[filled] = merge.reduceat(values, start[:-1][filled], dtype=np.float64)
    return result


def _weights(arrays: LayerArrays, weight: Weight) -> AnyFloats:
    if weight == "uniform":
        blocks = (arrays.mass > 0) | (arrays.contribution > 0)
        targets = (arrays.target_mass > 0) | (arrays.target_contribution > 0)
        return np.concatenate([blocks, targets], dtype=np.float32)
    blocks, targets = getattr(arrays, weight), getattr(arrays, f"target_{weight}")
    joined: AnyFloats = np.concatenate([blocks, targets]) if len(targets) else blocks
    return joined if joined.dtype in (np.float32, np.float64) else joined.astype(np.float64)


def _kept(
    source: LayerSource,
    policy: Policy,
    query: npt.NDArray[np.int32],
    key_block: npt.NDArray[np.int32],
    weight: AnyFloats,
    arrays: LayerArrays,
    in_order: bool,
) -> IntArray | None:
    """The edges that a policy keeps, sorted by query node; None if they are all edges as they stand."""
    if in_order and policy.heads == "sum" and policy.sink == "keep":
        return None
    kept = np.arange(len(query)) if in_order else np.argsort(query, kind="stable")
    if policy.sink == "exclude":
        first = np.concatenate([np.arange(source.blocks), np.asarray(source.targets, np.int64) // source.block_size])
        kept = kept[((key_block != 0) | (first == 0)[query])[kept]]
    if policy.heads == "max":
        head = np.concatenate([arrays.head, arrays.target_head])[kept]
        kept = kept[_strongest_head(query[kept], key_block[kept], head, weight[kept])]
    return kept


def _strongest_head(query: AnyIntegers, key_block: AnyIntegers, head: AnyIntegers, weight: AnyFloats) -> IntArray:
    """Indices, ascending, of the strongest edge of every (query, key block); the lowest head wins ties."""
    order = np.lexsort((head, -weight, key_block, query))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(query[order]) != 0) | (np.diff(key_block[order]) != 0)
    return np.sort(order[first])


def _residual_shares(arrays: LayerArrays, source: LayerSource, residual: Residual, layer: int) -> FloatArray:
    nodes = source.blocks + len(source.targets)
    if residual == "half":
        return np.full(nodes, 0.5)
    if residual != "measured":
        return np.full(nodes, float(residual))
    parts = (
        ("block", arrays.residual, source.blocks),
        ("target", arrays.target_residual, len(source.targets)),
    )
    shares = []
    for kind, part, size in parts:
        if part is None or len(part) != size:
            found = "none" if part is None else str(len(part))
            raise GraphError(
                f"Layer {layer} has {found} of the {size} measured residual shares, one per {kind}. "
                f"Say residual='half' or a number from 0 to 1 to assume one."
            )
        shares.append(part.astype(np.float64))
        bad = ~((shares[-1] >= 0) & (shares[-1] <= 1))
        if bad.any():
            raise GraphError(
                f"Layer {layer} has the residual share {part[bad.argmax()]} at {kind} {bad.argmax()}; "
                f"shares are from 0 to 1. Say residual='half' or a number to assume one."
            )
    return np.concatenate(shares)
