"""The steps that walks from a target to a source take: attention edges and residual steps, with their throughput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from attngraph.errors import ConfigError, NoRouteError
from attngraph.graph import AttentionGraph, backward, blocks_of, forward, no_route, target_state
from attngraph.graph.paths import STAY
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.nulls import Question

BoolArray = npt.NDArray[np.bool_]


class Steps(NamedTuple):
    """Steps of one layer, ``[steps]`` each.

    `head` is `STAY` for a residual step, `lower` and `upper` are the nodes that it joins, `share` its throughput,
    `mass` its recorded mass, NaN for a residual step.
    """

    head: IntArray
    lower: IntArray
    upper: IntArray
    share: FloatArray
    mass: FloatArray

    def only(self, kept: BoolArray | IntArray) -> Steps:
        """Some of the steps: those of a mask, or of indices in their order."""
        return Steps(self.head[kept], self.lower[kept], self.upper[kept], self.share[kept], self.mass[kept])


class Walks(NamedTuple):
    """The walks from a target to a source.

    `reached` is the probability of each node's walk to end in the source, `passed` that of the target's walk to be
    at the node, both ``[levels, nodes]``; `total` is the probability that the target's walk ends in the source.
    """

    graph: AttentionGraph
    reached: FloatArray
    passed: FloatArray
    total: float

    @property
    def node(self) -> FloatArray:
        """Throughput of every node, ``[levels, nodes]``, 1 in every level."""
        return self.passed * self.reached / self.total

    def steps(self, layer: int) -> Steps:
        """The steps of a layer that carry anything: residual ones first, then edges in the run's order."""
        transition = self.graph.transition(layer)
        nodes = np.arange(self.graph.nodes)
        lower = np.concatenate([nodes, transition.key_block])
        upper = np.concatenate([nodes, transition.query])
        probability = np.concatenate([transition.stay, transition.probability])
        share = self.passed[layer + 1, upper] * probability * (self.reached[layer, lower] / self.total)
        head = np.concatenate([np.full(len(nodes), STAY), transition.head])
        mass = np.concatenate([np.full(len(nodes), np.nan), transition.mass.astype(np.float64)])
        return Steps(head, lower, upper, share, mass).only(share > 0)


def head_column(head: IntArray) -> pl.Series:
    """Heads for a table: null for a residual step."""
    heads = pl.Series("head", head)
    return heads.set(heads == STAY, None)


def stacked(layers: Sequence[Steps]) -> Steps:
    """The steps of all layers, one after the other."""
    head, lower, upper, share, mass = map(np.concatenate, zip(*layers, strict=True))
    return Steps(head, lower, upper, share, mass)


def walks(question: Question) -> Walks | None:
    """The walks of a question's target to its source; None if there are none."""
    graph = question.graph
    reached = np.stack(list(forward(graph, question.starts())))
    passed = np.stack(list(backward(graph, target_state(graph, question.target)))[::-1])
    total = float(passed[-1] @ reached[-1])
    return None if total == 0.0 else Walks(graph, reached, passed, total)


def connected(layers: Sequence[Steps], kept: BoolArray) -> tuple[list[Steps], BoolArray]:
    """The steps on whole paths through kept nodes, and those nodes, ``[levels, nodes]``."""
    live = kept.copy()
    for layer in reversed(range(len(layers))):
        live[layer] &= _touched(layers[layer].lower, live[layer + 1, layers[layer].upper], live.shape[1])
    for layer, steps in enumerate(layers):
        live[layer + 1] &= _touched(steps.upper, live[layer, steps.lower], live.shape[1])
    live &= live[-1].any()
    return [
        steps.only(live[layer, steps.lower] & live[layer + 1, steps.upper]) for layer, steps in enumerate(layers)
    ], live


def _touched(ends: IntArray, alive: BoolArray, nodes: int) -> BoolArray:
    touched = np.zeros(nodes, bool)
    touched[ends[alive]] = True
    return touched


class RoutesGraph(NamedTuple):
    """All steps, by layer, on routes whose every step carries enough, and the nodes at which these start and end."""

    graph: AttentionGraph
    layers: list[Steps]
    live: BoolArray

    @property
    def starts(self) -> IntArray:
        """The nodes of level 0 that a route starts from."""
        return np.flatnonzero(self.live[0])

    @property
    def ends(self) -> IntArray:
        """The nodes of the last level that a route ends in."""
        return np.flatnonzero(self.live[-1])


def routes_graph(question: Question, threshold: float) -> RoutesGraph | None:
    """The steps of a question's routes that carry at least `threshold`; None if they make no route."""
    found, graph = walks(question), question.graph
    if found is None:
        return None
    every = (found.steps(layer) for layer in range(graph.layers))
    layers, live = connected([steps.only(steps.share >= threshold) for steps in every], found.node > 0)
    return RoutesGraph(graph, layers, live) if live.any() else None


def check_threshold(threshold: float) -> None:
    """ConfigError for a threshold that is no share."""
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"threshold={threshold!r} is a share of the walks, from 0 to 1.")


def without_route(graph: AttentionGraph, source: str, target: str, threshold: float) -> NoRouteError:
    """The error where no route carries enough."""
    if threshold == 0.0 or walks(Question(graph, blocks_of(graph, source), target)) is None:
        return no_route(graph, source, target)
    return NoRouteError(
        f"No route from {source!r} to {target!r} is made of steps that each carry at least threshold={threshold:g} of "
        f"the walks. Lower the threshold; throughput(graph, {source!r}, {target!r}) tells what the steps carry."
    )
