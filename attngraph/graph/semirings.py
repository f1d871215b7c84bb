"""One layer of a sweep in any of five algebras.

An algebra says how the steps of a path are joined, and how the paths that meet in a node are merged:

===============  ==========================  ===========  ===============================================
name             a state is                  merge, join  what a sweep finds
===============  ==========================  ===========  ===============================================
plus_times       a probability               +, ×         influence: the total of all paths
log_plus_times   a probability's logarithm   log Σ exp, + the same where products underflow
max_times        a probability's logarithm   max, +       the best path (logarithms, for the same reason)
max_min          a width                     max, min     the widest path: its narrowest step
or_and           true or false               or, and      whether there is any path
===============  ==========================  ===========  ===============================================

(Generalised Bellman-Ford; NBFNet, Zhu et al. 2021, arXiv 2106.06935.) Heads stay apart: between the same two
nodes their edges add up in the plus algebras and compete in the others. Residual steps count like edges.

Logarithms are taken of nodes, not of edges: `exp(state - max)` is one number per node, the edges multiply and
merge it, and the logarithm of the result is again one per node. Only where the states of a layer are too far
apart for that does every edge get a logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from attngraph.errors import ConfigError
from attngraph.graph.source import AnyFloats, FloatArray, IntArray
from attngraph.graph.transition import LayerTransition, merge_rows

Algebra = Literal["plus_times", "log_plus_times", "max_times", "max_min", "or_and"]
State = npt.NDArray[Any]

_LOG_RANGE = 640.0
"""Natural logarithm of the widest ratio that products of states and weights may span in float64: e^708, less
what a row's number of edges and a small 1 - λ may take."""


def pull(transition: LayerTransition, state: State, algebra: Algebra) -> State:
    """A state of level ℓ carried up to level ℓ + 1, ``[nodes]`` or ``[nodes, n]``.

    Raises
    ------
    ConfigError
        If there is no such algebra.
    """
    if algebra == "plus_times":
        return transition.pull(state)
    if algebra == "or_and":
        return transition.pull(state.astype(np.float32)) > 0
    return _by_column(_PULLS[known(algebra)], transition, state)


def push(transition: LayerTransition, state: State, algebra: Algebra) -> State:
    """A state of level ℓ + 1 carried down to level ℓ, ``[nodes]`` or ``[nodes, n]``.

    Raises
    ------
    ConfigError
        If there is no such algebra.
    """
    if algebra == "plus_times":
        return transition.push(state)
    if algebra == "or_and":
        return transition.push(state.astype(np.float32)) > 0
    return _by_column(_PUSHES[known(algebra)], transition, state)


def through(transition: LayerTransition, below: State, above: State, algebra: Algebra) -> tuple[State, State]:
    """The merged value of all paths through each edge and each stay of a layer, in an algebra's own terms.

    Parameters
    ----------
    below
        ``[nodes]``: forward state of level ℓ, of the paths from a source.
    above
        ``[nodes]``: backward state of level ℓ + 1, of the paths to a target.

    Returns
    -------
    tuple
        ``[edges]`` and ``[nodes]``. In `plus_times` their sum is the total of all paths, in the others their
        maximum is the best of all paths: on every layer the same number.

    Raises
    ------
    ConfigError
        If there is no such algebra.
    """
    lower: State = below[transition.key_block]
    upper: State = transition.along_rows(above)
    if known(algebra) in ("log_plus_times", "max_times"):
        return upper + _log(transition.probability) + lower, above + _log(transition.stay) + below
    if algebra == "max_min":
        edges = np.minimum(np.minimum(upper, transition.probability), lower)
        return edges, np.minimum(np.minimum(above, transition.stay), below)
    if algebra == "or_and":
        return upper & (transition.probability > 0) & lower, above & (transition.stay > 0) & below
    return upper * transition.probability * lower, above * transition.stay * below


def merge(values: State, groups: IntArray, count: int, algebra: Algebra) -> State:
    """Merge values by group, such as those of `through` by head: ``[count]``.

    Raises
    ------
    ConfigError
        If there is no such algebra.
    """
    if known(algebra) == "plus_times":
        return np.bincount(groups, values, minlength=count)
    result = np.full(count, zero_of(algebra), dtype=values.dtype)
    _MERGES[algebra].at(result, groups, values)
    return result


def zero_of(algebra: Algebra) -> float | bool:
    """The state of a node that no path reaches."""
    if algebra == "or_and":
        return False
    return -np.inf if algebra in ("log_plus_times", "max_times") else 0.0


def state_in(algebra: Algebra, weights: AnyFloats) -> State:
    """Weights of nodes, 0 for none, as an algebra's state; in `max_min` and `or_and` any weight opens a node."""
    if known(algebra) == "or_and":
        return weights > 0
    if algebra == "max_min":
        return (weights > 0).astype(np.float64)
    return _log(weights.astype(np.float64)) if zero_of(algebra) else weights.astype(np.float64)


def known(algebra: Algebra) -> Algebra:
    """Refuse what is no algebra.

    Raises
    ------
    ConfigError
        Naming those that there are.
    """
    if algebra not in get_args(Algebra):
        raise ConfigError(f"algebra={algebra!r} is not one of {', '.join(get_args(Algebra))}.")
    return algebra


def _by_column(step: Callable[[LayerTransition, State], State], transition: LayerTransition, state: State) -> State:
    if state.ndim == 1:
        return step(transition, state)
    return np.stack([step(transition, column) for column in state.T], axis=1)


def _pull_log_plus(transition: LayerTransition, state: State) -> State:
    shift = _shift(transition, state)
    if shift is not None:
        return _log(transition.pull(np.exp(state - shift))) + shift
    edges = _log(transition.probability) + state[transition.key_block]
    return np.logaddexp(merge_rows(np.logaddexp, edges, transition.rows.start, -np.inf), _log(transition.stay) + state)


def _push_log_plus(transition: LayerTransition, state: State) -> State:
    shift = _shift(transition, state)
    if shift is not None:
        return _log(transition.push(np.exp(state - shift))) + shift
    result = _log(transition.stay) + state
    np.logaddexp.at(result, transition.key_block, _log(transition.probability) + transition.along_rows(state))
    return result


def _pull_max_times(transition: LayerTransition, state: State) -> State:
    shift = _shift(transition, state)
    if shift is None:
        values = _log(transition.probability) + state[transition.key_block]
        edges = merge_rows(np.maximum, values, transition.rows.start, -np.inf)
    else:
        edges = _log(transition.greatest(np.exp(state - shift)) * transition.scale) + shift
    return np.maximum(edges, _log(transition.stay) + state)


def _push_max_times(transition: LayerTransition, state: State) -> State:
    stays = _log(transition.stay) + state
    shift = _shift(transition, state)
    if shift is None:
        np.maximum.at(stays, transition.key_block, _log(transition.probability) + transition.along_rows(state))
        return stays
    values = transition.along_rows(np.exp(state - shift))
    values *= transition.probability
    edges = np.zeros(len(state))
    np.maximum.at(edges, transition.key_block, values)
    return np.maximum(_log(edges) + shift, stays)


def _pull_max_min(transition: LayerTransition, state: State) -> State:
    values = np.minimum(transition.probability, state[transition.key_block])
    return np.maximum(merge_rows(np.maximum, values, transition.rows.start, 0.0), np.minimum(transition.stay, state))


def _push_max_min(transition: LayerTransition, state: State) -> State:
    result = np.minimum(transition.stay, state)
    values = np.minimum(transition.probability, transition.along_rows(state))
    np.maximum.at(result, transition.key_block, values)
    return result


def _shift(transition: LayerTransition, state: State) -> float | None:
    """What to take off a state in logarithms, so that its exponentials neither overflow nor underflow.

    None if nothing does: then the edges themselves have to be added up in logarithms.
    """
    finite = state[np.isfinite(state)]
    if not len(finite):
        return 0.0
    greatest = float(finite.max())
    spread = greatest - float(finite.min())
    return greatest if spread + _log_span(transition.weights.data) <= _LOG_RANGE else None


def _log_span(weights: AnyFloats) -> float:
    """Natural logarithm of the ratio between the greatest and the least of the positive weights and 1, at most."""
    if weights.dtype == np.float32:
        return 192.0  # of float32's own range, subnormal numbers included
    least = float(weights.min(initial=1.0, where=weights > 0))
    return float(np.log(weights.max(initial=1.0)) - np.log(least))


def _log(values: AnyFloats) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.log(values)


_PULLS = {"log_plus_times": _pull_log_plus, "max_times": _pull_max_times, "max_min": _pull_max_min}
_PUSHES = {"log_plus_times": _push_log_plus, "max_times": _push_max_times, "max_min": _push_max_min}
_MERGES = {
    "log_plus_times": np.logaddexp,
    "max_times": np.maximum,
    "max_min": np.maximum,
    "or_and": np.logical_or,
}
