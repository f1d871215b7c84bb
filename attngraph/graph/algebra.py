"""Sweeps: one state vector carried through all layers, one layer in memory at a time.

Every path between two levels has the same number of steps, so one pass over the layers is exact: O(edges)
time, one number per node of state. A sweep differs from another only in how steps are joined and paths are
merged:

- (×, +) carries probability: `forward` and `backward`;
- (×, max) finds the best path: `best_log_weights`, in logarithms, because products over deep models
underflow;
- (×, top-k) finds the k best: `attngraph.graph.paths`.

Forward is the model's direction, level 0 to L; backward is that of a walk which starts at a target.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attngraph.errors import GraphError
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.source import AnyFloats, FloatArray
from attngraph.graph.transition import LayerTransition


def forward(graph: AttentionGraph, state: AnyFloats) -> Iterator[FloatArray]:
    """h_{ℓ+1} = P_ℓ h_ℓ from h_0 = `state`: yields h_0, …, h_L.

    With the indicator of a source, h_ℓ[i] is the probability that a backward walk from node i of level ℓ ends
    in the source.

    Parameters
    ----------
    state
        ``[nodes]``, or ``[nodes, n]`` for n sweeps in one pass.

    Raises
    ------
    GraphError
        If the state doesn't have one row per node.
    """
    current = _checked(graph, state)
    yield current
    for layer in range(graph.layers):
        current = np.asarray(graph.transition(layer).matrix() @ current)
        yield current


def backward(graph: AttentionGraph, state: AnyFloats) -> Iterator[FloatArray]:
    """f_ℓ = f_{ℓ+1} P_ℓ from f_L = `state`: yields f_L, …, f_0.

    With the distribution in which a walk starts, f_ℓ is its distribution over the nodes of level ℓ; its sum
    is kept.

    Parameters
    ----------
    state
        ``[nodes]``, or ``[nodes, n]`` for n sweeps in one pass.

    Raises
    ------
    GraphError
        If the state doesn't have one row per node.
    """
    current = _checked(graph, state)
    yield current
    for layer in reversed(range(graph.layers)):
        current = np.asarray(graph.transition(layer).matrix().T @ current)
        yield current


def best_log_weights(graph: AttentionGraph, sources: AnyFloats) -> FloatArray:
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
    best = np.empty((graph.layers + 1, graph.nodes))
    with np.errstate(divide="ignore"):
        best[0] = np.log(_checked(graph, sources))
    for layer in range(graph.layers):
        transition = graph.transition(layer)
        edges, stays = log_weights_through(transition, best[layer])
        np.maximum.at(stays, transition.query, edges)
        best[layer + 1] = stays
    return best


def log_weights_through(transition: LayerTransition, below: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log weight of the best path that ends with each edge, ``[edges]``, and with each stay, ``[nodes]``."""
    with np.errstate(divide="ignore"):
        return (
            np.log(transition.probability) + below[transition.key_block],
            np.log(transition.stay) + below,
        )


def _checked(graph: AttentionGraph, state: AnyFloats) -> FloatArray:
    if state.ndim not in (1, 2) or state.shape[0] != graph.nodes:
        raise GraphError(
            f"A state of shape {state.shape} doesn't fit this graph: give ({graph.nodes},) or "
            f"({graph.nodes}, n), one row per block and target."
        )
    return state.astype(np.float64)
