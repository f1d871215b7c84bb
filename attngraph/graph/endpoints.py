"""What the name of a source or target means, as numbers on nodes.

A name is a span (``"needle"``), a block (``"block:17"``), a token (``"token:4093"``) or ``"output"``, the
run's last target. ``output`` and the two prefixes are reserved: they win over spans of the same name. Sources
live at level 0, targets at level L.
"""

from __future__ import annotations

import numpy as np

from attngraph.errors import NoRouteError, UnknownNodeError
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.source import FloatArray, IntArray

OUTPUT = "output"
LISTED = 10
"""Targets that an error message lists."""


def blocks_of(graph: AttentionGraph, name: str) -> IntArray:
    """The blocks that a name stands for, ascending: those that overlap a span, or the one that holds a token.

    Raises
    ------
    UnknownNodeError
        If the name is no span, or its number is out of range; lists what there is.
    """
    if name == OUTPUT:
        return np.array([_output_token(graph) // graph.block_size])
    if name.startswith("block:"):
        return np.array([_number(name, graph.blocks, "blocks")])
    if name.startswith("token:"):
        return np.array([_number(name, graph.tokens, "tokens") // graph.block_size])
    if name not in graph.spans:
        known = ", ".join(sorted(graph.spans)) or "none"
        raise UnknownNodeError(
            f"{name!r} names nothing in this graph. Spans: {known}. Other forms: "
            f"'block:N' (0 to {graph.blocks - 1}), 'token:N' (0 to {graph.tokens - 1}), 'output'."
        )
    ranges = [
        np.arange(start // graph.block_size, (end - 1) // graph.block_size + 1) for start, end in graph.spans[name]
    ]
    return np.unique(np.concatenate(ranges))


def source_state(graph: AttentionGraph, source: str) -> FloatArray:
    """1 on the level-0 nodes of a source, 0 elsewhere, ``[nodes]``; a target counts to its token's block.

    Raises
    ------
    UnknownNodeError
        As `blocks_of`.
    """
    return np.isin(graph.node_blocks(), blocks_of(graph, source)).astype(np.float64)


def target_state(graph: AttentionGraph, target: str) -> FloatArray:
    """Where a walk from a target starts at level L, ``[nodes]``, sum 1.

    A walk from a span starts evenly over the span's tokens where all of them are recorded targets, else evenly over
    its blocks.

    Raises
    ------
    UnknownNodeError
        As `blocks_of`; also for a token whose rows weren't recorded.
    """
    state = np.zeros(graph.nodes)
    if target == OUTPUT or target.startswith("token:"):
        token = _output_token(graph) if target == OUTPUT else _number(target, graph.tokens, "tokens")
        if token not in graph.targets:
            raise UnknownNodeError(
                f"{target!r} is not a target of this run, so its own rows aren't kept. Targets: {_listed(graph)}. "
                f"Its block is 'block:{token // graph.block_size}'."
            )
        state[graph.blocks + graph.targets.index(token)] = 1.0
        return state
    nodes = blocks_of(graph, target)
    if target in graph.spans and not target.startswith("block:"):
        tokens = np.unique(np.concatenate([np.arange(start, end) for start, end in graph.spans[target]]))
        recorded = np.asarray(graph.targets, np.int64)
        if np.isin(tokens, recorded).all():
            nodes = graph.blocks + np.flatnonzero(np.isin(recorded, tokens))
    state[nodes] = 1.0 / len(nodes)
    return state


def spans_by_block(graph: AttentionGraph) -> tuple[tuple[str, ...], ...]:
    """The names of the spans that overlap each block, ``[blocks]``, in the order of `graph.spans`."""
    names: list[list[str]] = [[] for _ in range(graph.blocks)]
    for name, ranges in graph.spans.items():
        covered = {
            block for start, end in ranges for block in range(start // graph.block_size, -(-end // graph.block_size))
        }
        for block in covered:
            names[block].append(name)
    return tuple(map(tuple, names))


def no_route(graph: AttentionGraph, source: str, target: str) -> NoRouteError:
    """The error to raise when no path of positive weight leads from a source to a target."""
    return NoRouteError(
        f"No path of positive weight leads from {source!r} to {target!r} with "
        f"weight={graph.policy.weight!r}, residual={graph.policy.residual!r}, sink={graph.policy.sink!r}. "
        f"influence(graph, {target!r}) tells which blocks do reach it."
    )


def _output_token(graph: AttentionGraph) -> int:
    if not graph.targets:
        raise UnknownNodeError(
            f"'output' is this run's target token, but it has none. The last block is 'block:{graph.blocks - 1}'."
        )
    return graph.targets[-1]


def _listed(graph: AttentionGraph) -> str:
    names = [f"token:{position}" for position in graph.targets[:LISTED]]
    rest = len(graph.targets) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "") or "none"


def _number(name: str, size: int, unit: str) -> int:
    digits = name.partition(":")[2]
    if not (digits.isascii() and digits.isdigit() and int(digits) < size):
        raise UnknownNodeError(f"{name!r} is not among this graph's {size} {unit}: give a number from 0 to {size - 1}.")
    return int(digits)
