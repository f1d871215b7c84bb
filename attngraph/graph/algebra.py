"""Sweeps: one state vector carried through all layers, one layer in memory at a time.

Every path between two levels has the same number of steps, so one pass over the layers is exact: O(edges)
time, one number per node of state. A sweep differs from another only in how steps are joined and paths are
merged, which is its algebra (see `attngraph.graph.semirings`): probabilities, best paths, widest paths,
reachability.

Forward is the model's direction, level 0 to L; backward is that of a walk which starts at a target. Many
sources, or many targets, cost one node each when they act together (a state with several entries), and one
column each when they are asked for apart (a state of several columns, carried in one pass over the files).
Where both sweeps meet, every edge, and so every head, gets its share: `head_values`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attngraph.errors import GraphError
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.semirings import Algebra, State, known, merge, pull, push, state_in, through
from attngraph.graph.source import AnyFloats, FloatArray
from attngraph.graph.transition import Transitions


def forward(graph: Transitions, state: State, algebra: Algebra = "plus_times") -> Iterator[State]:
    """h_{ℓ+1} = P_ℓ h_ℓ from h_0 = `state`: yields h_0, …, h_L.

    With the indicator of a source, h_ℓ[i] is the probability that a backward walk from node i of level ℓ ends
    in the source.

    Parameters
    ----------
    state
        ``[nodes]``, or ``[nodes, n]`` for n sweeps in one pass; in the algebra's own terms, see `state_in`.
    algebra
        How steps are joined and paths are merged.

    Raises
    ------
    GraphError
        If the state doesn't have one row per node.
    ConfigError
        If there is no such algebra.
    """
    current = _checked(graph, state, algebra)
    yield current
    for layer in range(graph.layers):
        current = pull(graph.transition(layer), current, algebra)
        yield current


def backward(graph: Transitions, state: State, algebra: Algebra = "plus_times") -> Iterator[State]:
    """f_ℓ = f_{ℓ+1} P_ℓ from f_L = `state`: yields f_L, …, f_0.

    With the distribution in which a walk starts, f_ℓ is its distribution over the nodes of level ℓ; its sum
    is kept.

    Parameters
    ----------
    state
        ``[nodes]``, or ``[nodes, n]`` for n sweeps in one pass; in the algebra's own terms, see `state_in`.
    algebra
        How steps are joined and paths are merged.

    Raises
    ------
    GraphError
        If the state doesn't have one row per node.
    ConfigError
        If there is no such algebra.
    """
    current = _checked(graph, state, algebra)
    yield current
    for layer in reversed(range(graph.layers)):
        current = push(graph.transition(layer), current, algebra)
        yield current


def best_log_weights(graph: Transitions, sources: AnyFloats) -> FloatArray:
    """Log of the best path's product from any source to each node, ``[levels, nodes]``; -inf without a path.

    Heads stay apart: parallel edges compete, they don't add up.

    Parameters
    ----------
    sources
        ``[nodes]``: the weight with which a path starts at each node of level 0; 0 for no source.

    Raises
    ------
    GraphError
        If `sources` doesn't have one entry per node.
    """
    return np.stack(list(forward(graph, state_in("max_times", sources), "max_times")))


def head_values(
    graph: AttentionGraph, sources: AnyFloats, targets: AnyFloats, algebra: Algebra = "plus_times"
) -> tuple[State, State]:
    """What passes each head between sources and targets, and what stays in place, layer by layer.

    Parameters
    ----------
    sources, targets
        ``[nodes]``: the weight of each node as a start at level 0, and as an end at level L; 0 for neither.
    algebra
        In ``"plus_times"`` a value is the total weight of the paths through the head, and a layer's values
        sum to the total of all paths; in ``"max_times"`` it is the logarithm of the best path through the
        head, in ``"max_min"`` the width of the widest, in ``"or_and"`` whether there is any.

    Returns
    -------
    tuple
        ``[layers, heads]`` for the heads, ``[layers]`` for staying in place.

    Raises
    ------
    GraphError
        If a state doesn't have one entry per node.
    ConfigError
        If there is no such algebra.
    """
    below = list(forward(graph, state_in(algebra, sources), algebra))
    above = _checked(graph, state_in(algebra, targets), algebra)
    heads, stays = [], []
    for layer in reversed(range(graph.layers)):
        transition = graph.transition(layer)
        edges, stay = through(transition, below[layer], above, algebra)
        heads.append(merge(edges, transition.head, graph.heads, algebra))
        stays.append(merge(stay, np.zeros(len(stay), np.int64), 1, algebra)[0])
        above = push(transition, above, algebra)
    return np.stack(heads[::-1]), np.stack(stays[::-1])


def _checked(graph: Transitions, state: State, algebra: Algebra) -> State:
    if state.ndim not in (1, 2) or state.shape[0] != graph.nodes:
        raise GraphError(
            f"A state of shape {state.shape} doesn't fit this graph: give ({graph.nodes},) or "
            f"({graph.nodes}, n), one row per block and target."
        )
    return state.astype(bool if known(algebra) == "or_and" else np.float64)
