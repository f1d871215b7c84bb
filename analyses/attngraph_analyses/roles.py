"""Roles: what blocks and edges are for, so that runs of different lengths and needle depths can be laid side by side.

A block has one role, the first of these that it overlaps with any token:

1. ``sink``: block 0.
2. ``needle``: the spans needle and value.
3. Any other span of the prompt by its own name, numbers dropped (``hop:2`` is a ``hop``), ``distractor`` among them.
4. ``question``; ``answer``: the answer prefix; then ``sentence`` and ``completion``.
5. ``haystack``: the rest.

An edge has the role of the block that is read, with one exception: what a row reads in its own block or the one before
is ``local``, unless it is the sink, the needle or a span of point 3. The rows of the target itself have the role
``output``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attngraph.graph import AttentionGraph, target_state
from attngraph.graph.source import FloatArray, IntArray
from attngraph_analyses.permutation import BoolArray

SINK, NEEDLE, LOCAL, HAYSTACK, OUTPUT = "sink", "needle", "local", "haystack", "output"
CONTEXT = ("question", "answer", "sentence", "completion")
"""Roles that give way to ``local``."""
SAME = {"value": NEEDLE, "answer_prefix": "answer"}
"""Spans that share the role of another."""


def role_of(span: str) -> str:
    """The role of a span's blocks by its name."""
    name = span.partition(":")[0]
    return SAME.get(name, name)


class Roles(NamedTuple):
    """The roles of a graph's nodes and edges, as numbers into `names`, which are in the order of precedence.

    `block` ``[blocks]``; `query` ``[nodes]``, that of the row: ``output`` for the rows of the target, −1 for other
    targets, whose tokens count with their block.
    """

    names: tuple[str, ...]
    block: IntArray
    query: IntArray
    node_block: IntArray

    def key(self, query: IntArray, key_block: IntArray) -> IntArray:
        """The role of what edges read, ``[edges]``; `query` are nodes."""
        local = self.names.index(LOCAL)
        role = self.block[key_block]
        near = self.node_block[query] - key_block <= 1
        return np.asarray(np.where(near & (role > local), local, role))

    def row_role(self, node: IntArray) -> IntArray:
        """The role of nodes as rows; of other targets that of their block."""
        query = self.query[node]
        return np.asarray(np.where(query >= 0, query, self.block[self.node_block[node]]), np.int64)

    def visible(self) -> BoolArray:
        """Whether a row could read anything of a role, windows aside, ``[nodes, roles]``."""
        is_role = self.block[:, None] == np.arange(len(self.names))
        local = self.names.index(LOCAL)
        any_before = np.maximum.accumulate(is_role, axis=0)
        seen = any_before.copy()
        far = np.zeros_like(seen)
        far[2:] = any_before[:-2]
        seen[:, local + 1 :] = far[:, local + 1 :]
        nearest = is_role[:, local + 1 :].any(1)
        seen[:, local] = nearest | np.append(False, nearest[:-1])
        return np.asarray(seen[self.node_block])

    def rows(self) -> FloatArray:
        """How many rows of each role could read anything of another, ``[roles, roles]``: by row, by what it reads."""
        member = self.query[:, None] == np.arange(len(self.names))
        return np.asarray(member.T.astype(np.float64) @ self.visible())


def roles_of(graph: AttentionGraph, target: str = OUTPUT) -> Roles:
    """The roles of a graph's nodes, seen from a target.

    Raises
    ------
    UnknownNodeError
        If the target means nothing.
    """
    spans = {role: np.zeros(graph.blocks, bool) for role in map(role_of, graph.spans)}
    for name, ranges in graph.spans.items():
        for start, end in ranges:
            spans[role_of(name)][start // graph.block_size : (end - 1) // graph.block_size + 1] = True
    own = sorted(set(spans) - {SINK, NEEDLE, LOCAL, HAYSTACK, OUTPUT, *CONTEXT})
    names = (SINK, NEEDLE, *own, LOCAL, *CONTEXT, HAYSTACK, OUTPUT)
    block = np.full(graph.blocks, names.index(HAYSTACK))
    for number in reversed(range(len(names))):
        if names[number] in spans and names[number] not in (SINK, LOCAL, HAYSTACK, OUTPUT):
            block[spans[names[number]]] = number
    block[0] = 0
    query = np.concatenate([block, np.full(len(graph.targets), -1)])
    query[target_state(graph, target) > 0] = names.index(OUTPUT)
    return Roles(names, block, query, graph.node_blocks())
