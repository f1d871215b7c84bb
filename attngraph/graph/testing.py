"""Small graphs for tests: written by hand, drawn by hypothesis, and solved by brute force.

This module needs hypothesis; nothing in the package imports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies

from attngraph.graph.endpoints import source_state, target_state
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.source import AnyFloats, AnyIntegers, ArraySource, LayerArrays
from attngraph.graph.transition import Residual

Edge = tuple[int, int, int, float]
Step = tuple[int, int | None, int, int]
BLOCK_SIZE = 2


def layer_arrays(
    edges: Sequence[Edge],
    target_edges: Sequence[Edge] = (),
    *,
    residual: AnyFloats | None = None,
    target_residual: AnyFloats | None = None,
) -> LayerArrays:
    """One layer from (head, query block, key block, weight) and (head, target index, key block, weight).

    The weight serves as mass and as contribution.
    """
    head, query, key, weight = _columns(edges)
    target_head, target, target_key, target_weight = _columns(target_edges)
    return LayerArrays(
        head=head,
        query_block=query,
        key_block=key,
        mass=weight,
        contribution=weight,
        target_head=target_head,
        target=target,
        target_key_block=target_key,
        target_mass=target_weight,
        target_contribution=target_weight,
        residual=residual,
        target_residual=target_residual,
    )


def random_source(*, seed: int, layers: int = 3, heads: int = 2, blocks: int = 4, targets: int = 1) -> ArraySource:
    """A causal source of random sparse weights with many ties, zeros and empty rows.

    Blocks have two tokens, targets are the last tokens, and every block is a span ``"span:N"``.
    """
    random = np.random.default_rng(seed)
    tokens = blocks * BLOCK_SIZE
    positions = tuple(range(tokens - targets, tokens))

    def shares(size: int) -> AnyFloats:
        return random.choice([0.0, 0.25, 0.5, 1.0, random.random()], size)

    def edges(query_blocks: Sequence[int]) -> list[Edge]:
        return [
            (head, query, key, float(random.choice([0.0, 1e-20, 1.0, 1.0, 2.0, random.random()])))
            for query, block in enumerate(query_blocks)
            for head in range(heads)
            for key in range(block + 1)
            if random.random() < 0.7
        ]

    arrays = [
        layer_arrays(
            edges(range(blocks)),
            edges([position // BLOCK_SIZE for position in positions]),
            residual=shares(blocks),
            target_residual=shares(targets),
        )
        for _ in range(layers)
    ]
    spans = {f"span:{block}": ((block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE),) for block in range(blocks)}
    return ArraySource(arrays=arrays, heads=heads, tokens=tokens, block_size=BLOCK_SIZE, targets=positions, spans=spans)


def sources() -> strategies.SearchStrategy[ArraySource]:
    """Random sources small enough for `all_paths`: up to 3 layers, 2 heads, 4 blocks, and 1 or 2 targets."""
    return strategies.builds(
        random_source,
        seed=strategies.integers(0, 2**32 - 1),
        layers=strategies.integers(1, 3),
        heads=strategies.integers(1, 2),
        blocks=strategies.integers(1, 4),
        targets=strategies.integers(1, 2),
    )


@strategies.composite
def layered_graphs(
    draw: strategies.DrawFn,
    *,
    max_layers: int = 3,
    max_heads: int = 2,
    max_blocks: int = 3,
    max_targets: int = 1,
    residual: Residual = "measured",
) -> AttentionGraph:
    """A strategy: causal graphs with missing, zero, tied and tiny edges, that shrink to few plain ones.

    Blocks have two tokens, targets are the last tokens, and every block is a span ``"span:N"``. Small enough
    for `all_paths`.

    Parameters
    ----------
    max_layers, max_heads, max_blocks, max_targets
        Greatest sizes; at least one layer, head and block, and any number of targets from 0.
    residual
        The graph's residual policy; measured shares are drawn.
    """
    layers = draw(strategies.integers(1, max_layers))
    heads = draw(strategies.integers(1, max_heads))
    blocks = draw(strategies.integers(1, max_blocks))
    targets = draw(strategies.integers(0, min(max_targets, blocks * BLOCK_SIZE)))
    tokens = blocks * BLOCK_SIZE
    positions = tuple(range(tokens - targets, tokens))
    weights = strategies.sampled_from([None, 1.0, 2.0, 0.0, 1e-20]) | strategies.floats(0.01, 10.0)
    # Not below 1e-9: an enumeration multiplies, and would lose paths that sweeps in logarithms find.
    shares = strategies.sampled_from([0.5, 0.0, 1.0]) | strategies.floats(1e-9, 1.0)

    def edges(query_blocks: Sequence[int]) -> list[Edge]:
        places = [
            (head, query, key)
            for query, block in enumerate(query_blocks)
            for head in range(heads)
            for key in range(block + 1)
        ]
        drawn = draw(strategies.lists(weights, min_size=len(places), max_size=len(places)))
        return [(*place, weight) for place, weight in zip(places, drawn, strict=True) if weight is not None]

    def residuals(size: int) -> AnyFloats:
        return np.array(draw(strategies.lists(shares, min_size=size, max_size=size)), np.float64)

    arrays = [
        layer_arrays(
            edges(range(blocks)),
            edges([position // BLOCK_SIZE for position in positions]),
            residual=residuals(blocks),
            target_residual=residuals(targets),
        )
        for _ in range(layers)
    ]
    spans = {f"span:{block}": ((block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE),) for block in range(blocks)}
    source = ArraySource(
        arrays=arrays, heads=heads, tokens=tokens, block_size=BLOCK_SIZE, targets=positions, spans=spans
    )
    return AttentionGraph(source, residual=residual)


def step_probabilities(graph: AttentionGraph, steps: Sequence[Step]) -> list[float]:
    """The probability of each step of a path, for graphs without repeated edges."""
    found = []
    for layer, head, lower, upper in steps:
        transition = graph.transition(layer)
        if head is None:
            found.append(float(transition.stay[upper]))
        else:
            edge = (transition.head == head) & (transition.key_block == lower) & (transition.query == upper)
            found.append(float(transition.probability[edge].item()))
    return found


def all_paths(graph: AttentionGraph, source: str, target: str) -> list[tuple[float, tuple[Step, ...]]]:
    """Every path of positive weight from a source to a target, best first, by plain enumeration.

    Returns
    -------
    list
        (weight, steps); a step is (layer, head, node of level layer, node of level layer + 1), its head None
        for a residual step.
    """
    starts, ends = source_state(graph, source), target_state(graph, target)
    transitions = [graph.transition(layer) for layer in range(graph.layers)]

    def walks(level: int, node: int) -> Iterator[tuple[float, tuple[Step, ...]]]:
        if level == 0:
            yield float(starts[node]), ()
            return
        transition = transitions[level - 1]
        into: list[tuple[int | None, int, float]] = [(None, node, float(transition.stay[node]))]
        into += [
            (int(transition.head[edge]), int(transition.key_block[edge]), float(transition.probability[edge]))
            for edge in np.flatnonzero(transition.query == node)
        ]
        for head, lower, probability in into:
            for weight, steps in walks(level - 1, lower):
                yield probability * weight, (*steps, (level - 1, head, lower, node))

    found = [
        (float(ends[node]) * weight, steps)
        for node in np.flatnonzero(ends).tolist()
        for weight, steps in walks(graph.layers, node)
    ]
    return sorted((path for path in found if path[0] > 0), key=lambda path: -path[0])


def _columns(edges: Sequence[Edge]) -> tuple[AnyIntegers, AnyIntegers, AnyIntegers, AnyFloats]:
    table = np.array(edges, np.float64).reshape(-1, 4)
    return (*table[:, :3].astype(np.int64).T, table[:, 3])
