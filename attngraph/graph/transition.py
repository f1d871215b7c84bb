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
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from attngraph.errors import ConfigError, GraphError
from attngraph.graph.source import AnyFloats, FloatArray, IntArray, LayerArrays, LayerSource, check_layer

Weight = Literal["contribution", "mass", "uniform"]
MeasuredOrHalf = Literal["measured", "half"]
Residual = MeasuredOrHalf | float
Heads = Literal["sum", "max"]
Sink = Literal["keep", "exclude"]


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
    """The transition from level ℓ + 1 down to level ℓ, edge by edge; rows of `matrix` sum to 1.

    Parameters
    ----------
    layer
        ℓ, from 0.
    head, query, key_block
        ``[edges]``: `query` is a node of level ℓ + 1 (a block, or B + the target's index), `key_block` a
        block of level ℓ.
    mass, contribution
        ``[edges]``: the recorded weights.
    probability
        ``[edges]``: p_e = (1 - λ)·w_e / Σ_row w.
    stay
        ``[nodes]``: λ; 1 for a node without any weight left on its row (nothing recorded, all weights 0, or
        only the excluded sink).
    """

    layer: int
    head: IntArray
    query: IntArray
    key_block: IntArray
    mass: AnyFloats
    contribution: AnyFloats
    probability: FloatArray
    stay: FloatArray

    def matrix(self) -> sparse.csr_array[np.float64]:
        """The matrix P, ``[nodes of level ℓ + 1, nodes of level ℓ]``, heads summed, rows summing to 1."""
        nodes = np.arange(len(self.stay))
        values = np.concatenate([self.probability, self.stay])
        rows = np.concatenate([self.query, nodes]).astype(np.int32)
        columns = np.concatenate([self.key_block, nodes]).astype(np.int32)
        return sparse.coo_array((values, (rows, columns)), shape=(len(nodes), len(nodes))).tocsr()


class Recorded(NamedTuple):
    """A layer's recorded edges, targets after blocks, and which of them a policy lets through.

    `query` is a node (see above); `weight` is the policy's; `admitted` [edges] is False for edges from an excluded
    sink; `kept` are the indices, ascending, of the edges that the policy keeps; `residual` [nodes] is λ, 1 where no
    weight is left on the row.
    """

    head: IntArray
    query: IntArray
    key_block: IntArray
    mass: AnyFloats
    contribution: AnyFloats
    weight: FloatArray
    admitted: npt.NDArray[np.bool_]
    kept: IntArray
    residual: FloatArray


def layer_transition(source: LayerSource, policy: Policy, layer: int) -> LayerTransition:
    """Read one layer and normalise its weights by a policy.

    Raises
    ------
    GraphError
        If the layer doesn't exist, its arrays are out of range, or measured shares are wanted and missing.
    """
    recorded = read_layer(source, policy, layer)
    kept, stay = recorded.kept, recorded.residual
    query, weight = recorded.query[kept], recorded.weight[kept]
    total = np.bincount(query, weight, minlength=len(stay))
    return LayerTransition(
        layer=layer,
        head=recorded.head[kept],
        query=query,
        key_block=recorded.key_block[kept],
        mass=recorded.mass[kept],
        contribution=recorded.contribution[kept],
        probability=(1.0 - stay)[query] * weight / np.where(total > 0, total, 1.0)[query],
        stay=stay,
    )


def read_layer(source: LayerSource, policy: Policy, layer: int) -> Recorded:
    """Read one layer, weigh its edges and choose among them by a policy; raises as `layer_transition`."""
    if not 0 <= layer < source.layers:
        raise GraphError(f"layer={layer} is outside this graph's layers 0 to {source.layers - 1}.")
    arrays = source.layer(layer)
    check_layer(arrays, source, layer)
    node_blocks = np.concatenate([np.arange(source.blocks), np.asarray(source.targets, np.int64) // source.block_size])
    head = np.concatenate([arrays.head, arrays.target_head]).astype(np.int64)
    query = np.concatenate([arrays.query_block.astype(np.int64), arrays.target.astype(np.int64) + source.blocks])
    key_block = np.concatenate([arrays.key_block, arrays.target_key_block]).astype(np.int64)
    mass = np.concatenate([arrays.mass, arrays.target_mass])
    contribution = np.concatenate([arrays.contribution, arrays.target_contribution])
    weight = _weights(policy.weight, mass, contribution)

    admitted = np.ones(len(weight), bool)
    if policy.sink == "exclude":
        admitted = (key_block != 0) | (node_blocks[query] == 0)
    kept = np.flatnonzero(admitted)
    if policy.heads == "max":
        kept = kept[_strongest_head(query[kept], key_block[kept], head[kept], weight[kept])]
    total = np.bincount(query[kept], weight[kept], minlength=len(node_blocks))
    residual = np.where(total > 0, _residual_shares(arrays, source, policy.residual, layer), 1.0)
    return Recorded(head, query, key_block, mass, contribution, weight, admitted, kept, residual)


def _weights(weight: Weight, mass: AnyFloats, contribution: AnyFloats) -> FloatArray:
    if weight == "uniform":
        return ((mass > 0) | (contribution > 0)).astype(np.float64)
    return (mass if weight == "mass" else contribution).astype(np.float64)


def _strongest_head(query: IntArray, key_block: IntArray, head: IntArray, weight: FloatArray) -> IntArray:
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
