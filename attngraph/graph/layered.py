"""The layered graph of a run.

Level 0 holds the embeddings, layer ℓ moves information from level ℓ to level ℓ + 1, level L is the model's
output. A node is a block, or a target token, at a level; an edge is a head's attention of a query block (or
target) to a key block. `AttentionGraph` turns one layer at a time into a transition matrix (see
`attngraph.graph.transition`) and holds none of them, so a graph may be larger than memory: every analysis is
a sweep over layers with one number per node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from attngraph.graph.audit import KeptTransition, kept_transition
from attngraph.graph.source import IntArray, LayerArrays, LayerSource, SpanRanges, check_source
from attngraph.graph.transition import (
    Heads,
    LayerTransition,
    Policy,
    Residual,
    Sink,
    Weight,
    layer_transition,
)

if TYPE_CHECKING:
    import networkx as nx
    import pyarrow as pa
    from scipy import sparse

__all__ = ["AttentionGraph", "LayerArrays", "LayerSource"]


class AttentionGraph:
    """A run seen as a graph, under one policy.

    Parameters
    ----------
    source
        Where the layers come from; see `LayerSource`.
    weight, residual, heads, sink
        How edges become probabilities; see `Policy`.

    Raises
    ------
    ConfigError
        If a policy is unknown.
    GraphError
        If the source contradicts itself.

    Examples
    --------
    >>> graph = run.graph(weight="contribution", residual="measured")   # doctest: +SKIP
    >>> graph.transition(0).probability                                 # doctest: +SKIP
    """

    def __init__(
        self,
        source: LayerSource,
        *,
        weight: Weight = "contribution",
        residual: Residual = "measured",
        heads: Heads = "sum",
        sink: Sink = "keep",
    ) -> None:
        check_source(source)
        self._source = source
        self._policy = Policy(weight=weight, residual=residual, heads=heads, sink=sink)

    @property
    def policy(self) -> Policy:
        """How edges become probabilities."""
        return self._policy

    @property
    def layers(self) -> int:
        """Number of layers L; levels run from 0 to L."""
        return self._source.layers

    @property
    def heads(self) -> int:
        """Number of heads per layer."""
        return self._source.heads

    @property
    def blocks(self) -> int:
        """Number of blocks B."""
        return self._source.blocks

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return self._source.tokens

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._source.block_size

    @property
    def targets(self) -> tuple[int, ...]:
        """Token positions of the targets, in the order of their nodes."""
        return self._source.targets

    @property
    def spans(self) -> SpanRanges:
        """Half-open token ranges by span name."""
        return self._source.spans

    @property
    def nodes(self) -> int:
        """Number of nodes per level: blocks, then targets."""
        return self.blocks + len(self.targets)

    def node_blocks(self) -> IntArray:
        """The block of every node, ``[nodes]``: a target's is the block of its token."""
        return np.concatenate([np.arange(self.blocks), np.asarray(self.targets, np.int64) // self.block_size])

    def node_targets(self) -> list[int | None]:
        """The token position of every node that is a target, None for blocks, ``[nodes]``."""
        return [None] * self.blocks + list(self.targets)

    def transition(self, layer: int) -> LayerTransition:
        """Layer `layer` as edge probabilities; read anew at every call.

        Raises
        ------
        GraphError
            If the layer doesn't exist, its arrays are out of range, or measured shares are wanted and
            missing.
        """
        return layer_transition(self._source, self._policy, layer)

    def kept_transition(self, layer: int) -> KeptTransition | None:
        """Layer `layer` with the dense attention that was dropped; None if nothing is known of it.

        Raises
        ------
        GraphError
            As `transition`; also if the kept masses don't fit the graph.
        """
        return kept_transition(self._source, self._policy, layer)

    def uniform(self) -> AttentionGraph:
        """The null of this graph: the same edges and residual shares, the same weight on every edge."""
        return AttentionGraph(
            self._source,
            weight="uniform",
            residual=self._policy.residual,
            heads=self._policy.heads,
            sink=self._policy.sink,
        )

    def to_scipy(self, layer: int) -> sparse.csr_array[np.float64]:
        """The transition matrix of a layer, heads summed; see `LayerTransition.matrix`."""
        return self.transition(layer).matrix()

    # The conversions below load their libraries on first use: sweeps need neither networkx nor pyarrow.

    def edges_table(self) -> pa.Table:
        """All edges as one Arrow table, a chunk per layer; see `attngraph.graph.interop.edges_table`."""
        from attngraph.graph.interop import edges_table

        return edges_table(self)

    def to_networkx(
        self, *, max_edges: int = 100_000, layers: Iterable[int] | None = None, minimum: float = 0.0
    ) -> nx.MultiDiGraph:
        """An extract as a NetworkX graph; see `attngraph.graph.interop.to_networkx`."""
        from attngraph.graph.interop import to_networkx

        return to_networkx(self, max_edges=max_edges, layers=layers, minimum=minimum)
