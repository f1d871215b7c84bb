"""Flow networks: the maximum flow through them, and the cut that it saturates.

Vertex 0 is the source, vertex 1 the target. SciPy's maximum flow (Dinic) takes 32-bit integers, so capacities are
multiplied by a power of two and rounded, in two rounds: the first, with units coarse enough for the sum of all
capacities, finds some cut; the second has units so fine that this cut, and so the least one, just fits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from attngraph.graph.source import FloatArray, IntArray

SOURCE, TARGET, FIRST = 0, 1, 2
"""The two ends, and the first vertex that is neither."""
ENDLESS = 2**31 - 1
"""What can't be cut has this capacity."""
LIMIT = 2.0**30
"""The least cut stays below this many units."""


class Network(NamedTuple):
    """Arcs between the vertices 0 … `size` − 1, from `tail` to `head`; a capacity of inf can't be cut."""

    size: int
    tail: IntArray
    head: IntArray
    capacity: FloatArray


class Saturated(NamedTuple):
    """A minimum cut and the maximum flow.

    `crossing` are the arcs from the source's side of the cut to the target's, `flow` is the maximum flow, and
    `scale` the number of integer units per unit of capacity. Where what can't be cut joins the ends, nothing
    crosses and the flow is infinite.
    """

    crossing: IntArray
    flow: float
    scale: float


def joined(size: int, starts: IntArray, ends: IntArray, *arcs: tuple[IntArray, IntArray, FloatArray]) -> Network:
    """A network of arcs, and of arcs that can't be cut from the source to `starts` and from `ends` to the target."""
    out = (np.full(len(starts), SOURCE), starts, np.full(len(starts), np.inf))
    into = (ends, np.full(len(ends), TARGET), np.full(len(ends), np.inf))
    tails, heads, capacities = map(np.concatenate, zip(*arcs, out, into, strict=True))
    return Network(size, tails, heads, capacities)


def saturated(network: Network, *, whole: bool = False) -> Saturated:
    """The minimum cut nearest to the source.

    Parameters
    ----------
    network
        With capacities of at least 0, or inf.
    whole
        The capacities are whole numbers, small enough to be taken as they are.
    """
    endless = np.isinf(network.capacity)
    fixed = _matrix(network, endless.astype(np.float64))
    if TARGET in csgraph.breadth_first_order(fixed, SOURCE, return_predecessors=False):
        return Saturated(np.zeros(0, np.int64), np.inf, 1.0)
    if whole:
        return _saturated(network, 1.0)
    rough = _saturated(network, _scale(network.capacity[~endless].sum()))
    return _saturated(network, _scale(network.capacity[rough.crossing].sum()))


def _saturated(network: Network, scale: float) -> Saturated:
    units = np.minimum(np.rint(network.capacity * scale), ENDLESS)
    added = _matrix(network, units)
    added.data = np.minimum(added.data, ENDLESS)
    capacities: Any = added.astype(np.int32)
    solved = csgraph.maximum_flow(capacities, SOURCE, TARGET)
    left = (capacities.astype(np.int64) - solved.flow.astype(np.int64)).tocsr()
    left.data = (left.data > 0).astype(np.int64)
    left.eliminate_zeros()
    inside = np.zeros(network.size, bool)
    inside[csgraph.breadth_first_order(left, SOURCE, return_predecessors=False)] = True
    # Arcs of no whole unit cross as well, so they are looked for among the arcs, not in the matrix.
    crossing = np.flatnonzero(inside[network.tail] & ~inside[network.head])
    return Saturated(crossing, float(solved.flow_value) / scale, scale)


def _scale(capacity: float) -> float:
    """The greatest power of two that keeps a capacity within the limit."""
    return float(2.0 ** np.floor(np.log2(LIMIT / capacity))) if capacity > 0 else 1.0


def _matrix(network: Network, capacity: FloatArray) -> sparse.csr_array[np.float64]:
    """Capacities as a matrix, parallel arcs added up."""
    ends = (network.tail.astype(np.int32), network.head.astype(np.int32))
    matrix = sparse.coo_array((capacity, ends), shape=(network.size, network.size)).tocsr()
    matrix.eliminate_zeros()
    return matrix
