"""What the tests of analyses ask of all paths between two ends, enumerated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import Step, all_paths, layer_arrays

Node = tuple[int, int]


def diamond() -> AttentionGraph:
    """Blocks 1 and 2 read block 0 in the first layer, the target reads them 1 : 3 in the second."""
    residual, target = np.array([1.0, 0.5, 0.5, 0.5]), np.array([0.25])
    first = layer_arrays([(0, 1, 0, 1.0), (1, 2, 0, 1.0)], residual=residual, target_residual=target)
    second = layer_arrays([], [(0, 0, 1, 1.0), (1, 0, 2, 3.0)], residual=residual, target_residual=target)
    return AttentionGraph(
        ArraySource(arrays=[first, second], heads=2, tokens=8, block_size=2, targets=(7,), spans={"needle": ((0, 2),)})
    )


def chain(blocks: int = 24, layers: int = 2, heads: int = 2, seed: int = 0) -> AttentionGraph:
    """A graph large enough for nulls: every block and the target read all before them, weights at random."""
    random = np.random.default_rng(seed)

    def edges(rows: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, float]]:
        return [
            (head, row, key, random.random() + 0.01)
            for row, block in rows
            for head in range(heads)
            for key in range(block + 1)
        ]

    arrays = [
        layer_arrays(
            edges((block, block) for block in range(blocks)),
            edges([(0, blocks - 1)]),
            residual=np.full(blocks, 0.5),
            target_residual=np.array([0.5]),
        )
        for _ in range(layers)
    ]
    tokens = 2 * blocks
    spans = {"needle": ((blocks, blocks + 3),), "question": ((tokens - 2, tokens),)}
    return AttentionGraph(
        ArraySource(arrays=arrays, heads=heads, tokens=tokens, block_size=2, targets=(tokens - 1,), spans=spans)
    )


def shares(paths: list[tuple[float, tuple[Step, ...]]]) -> dict[Step, float]:
    """The throughput of every step on any path."""
    total = sum(weight for weight, _ in paths)
    found: dict[Step, float] = defaultdict(float)
    for weight, steps in paths:
        for step in steps:
            found[step] += weight / total
    return dict(found)


def nodes_of(steps: tuple[Step, ...]) -> list[Node]:
    """The (level, node) pairs that a path passes."""
    return [(0, steps[0][2]), *((layer + 1, upper) for layer, _, _, upper in steps)]


def carrying(graph: AttentionGraph, source: str, target: str, threshold: float) -> list[tuple[float, tuple[Step, ...]]]:
    """The paths whose every step carries at least a share of all walks."""
    paths = all_paths(graph, source, target)
    share = shares(paths)
    return [(weight, steps) for weight, steps in paths if all(share[step] >= threshold for step in steps)]
