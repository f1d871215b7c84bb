"""The layered graph of a run.

Level 0 holds the embeddings, layer ℓ moves information from level ℓ to level ℓ + 1, level L is the model's
output. A node is a block, or a target token, at a level; an edge is a head's attention of a query block (or
target) to a key block. `AttentionGraph` turns one layer at a time into a transition matrix (see
`attngraph.graph.transition`) and holds none of them, so a graph may be larger than memory: every analysis is
a sweep over layers with one number per node. All it keeps of a layer that it has read is what its rows sum to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from attngraph.graph.audit import KeptTransition, kept_transition
from attngraph.graph.source import AnyFloats, IntArray, LayerArrays, LayerSource, SpanRanges, check_source
from attngraph.graph.transition import (
    Heads,
    LayerTransition,
    Policy,
    Residual,
    Rows,
    Sink,
    Weight,
    layer_transition,
)

if TYPE_CHECKING:
    import igraph
    import networkx as nx
    import pyarrow as pa
    import rustworkx
    from scipy import sparse

    from attngraph.graph.edges import Spans
    from attngraph.graph.interop import EdgeData, NodeLabel

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

    __networkx_backend__ = "attngraph"
    """NetworkX hands calls on this graph to `attngraph.graph.networkx_backend`."""

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
        self._rows: dict[int, Rows] = {}

    @classmethod
    def from_edges(
        cls,
        edges: Any,
        *,
        residual: Residual | AnyFloats,
        layers: int | None = None,
        tokens: int | None = None,
        block_size: int = 1,
        targets: Sequence[int] | None = None,
        spans: Spans | None = None,
        weight: Weight = "contribution",
        heads: Heads = "sum",
        sink: Sink = "keep",
    ) -> AttentionGraph:
        """A graph in memory from columns of edges, whoever made them.

        Parameters
        ----------
        edges
            A mapping of arrays, or a table that speaks Arrow (polars, pyarrow, DuckDB), with the columns
            layer, query_block, key_block, and weight (or mass and contribution); head (0 if it is missing);
            target, the token position of an edge into a target, null or -1 for an edge into a block. In any
            order; what comes sorted by layer and query block, as runs do, isn't sorted again.
        residual
            The residual shares λ: an array ``[layers, blocks + targets]`` from 0 to 1, one number for all, or
            ``"half"``. There is no default, because rankings depend on it.
        layers, tokens
            Sizes; as far as the edges, targets and spans reach by default.
        block_size
            Tokens per block.
        targets
            Token positions in the order of their nodes; those that the edges name by default.
        spans
            Half-open token ranges by name: ``{"needle": (30, 41)}``, or several ranges per name.
        weight, heads, sink
            How edges become probabilities; see `Policy`.

        Raises
        ------
        GraphError
            Naming the column, the first bad value and what is allowed: NaN or negative weights, ids out of
            range, missing columns, no edges.
        ConfigError
            If a policy is unknown.

        Examples
        --------
        >>> from attngraph.graph import AttentionGraph
        >>> edges = {"layer": [0, 0], "query_block": [1, 2], "key_block": [0, 1], "weight": [1.0, 1.0]}
        >>> AttentionGraph.from_edges(edges, residual=0.5).to_scipy(0).toarray().tolist()
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
        """
        from attngraph.graph.edges import source_from_edges

        measured = isinstance(residual, np.ndarray | list | tuple)
        source = source_from_edges(
            edges,
            shares=np.asarray(residual, np.float64) if measured else None,
            layers=layers,
            tokens=tokens,
            block_size=block_size,
            targets=targets,
            spans=spans,
        )
        policy: Residual = "measured" if measured else cast("Residual", residual)
        graph = cls(source, weight=weight, residual=policy, heads=heads, sink=sink)
        for layer in range(graph.layers):
            graph.transition(layer)  # refuses what is out of range now, not in the middle of a question
        return graph

    def is_directed(self) -> bool:
        """True: NetworkX asks before it hands a call on."""
        return True

    def is_multigraph(self) -> bool:
        """True: heads are parallel edges."""
        return True

    def __repr__(self) -> str:
        return (
            f"AttentionGraph({self.layers} layers, {self.heads} heads, {self.blocks} blocks, "
            f"{len(self.targets)} targets, {self.policy})"
        )

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
        found = layer_transition(self._source, self._policy, layer, self._rows.get(layer))
        self._rows[layer] = found.rows
        return found

    def kept_transition(self, layer: int) -> KeptTransition | None:
        """Layer `layer` with the dense attention that was dropped; None if nothing is known of it.

        Raises
        ------
        GraphError
            As `transition`; also if the kept masses don't fit the graph.
        """
        kept = self._source.kept_mass(layer)
        return None if kept is None else kept_transition(self._source, self._policy, self.transition(layer), kept)

    @property
    def source(self) -> LayerSource:
        """Where the layers come from."""
        return self._source

    def with_source(self, source: LayerSource) -> AttentionGraph:
        """Another source under this graph's policy; raises as the constructor."""
        return AttentionGraph(source, **vars(self._policy))

    def with_policy(self, **changes: Any) -> AttentionGraph:
        """The same source under this graph's policy but for `changes`; raises as the constructor."""
        return AttentionGraph(self._source, **{**vars(self._policy), **changes})

    def uniform(self) -> AttentionGraph:
        """The null of this graph: the same edges and residual shares, the same weight on every edge."""
        return self.with_policy(weight="uniform")

    def to_scipy(self, layer: int | None = None) -> sparse.csr_array[np.float64]:
        """The transition matrix of a layer, heads summed; or of all layers together.

        Rows are the nodes that read, columns those that are read. All together, node n of level ℓ has the
        number ℓ · `nodes` + n, and the transpose is the graph in the model's direction, for
        `scipy.sparse.csgraph`.
        """
        if layer is not None:
            return self.transition(layer).matrix()
        from scipy import sparse

        # An empty row of blocks at the top and an empty column at the right: layer ℓ leads down from ℓ + 1 to ℓ.
        steps = sparse.block_diag([self.transition(layer).matrix() for layer in range(self.layers)], format="csr")
        indptr = np.concatenate([np.zeros(self.nodes, steps.indptr.dtype), steps.indptr])
        size = (self.layers + 1) * self.nodes
        return sparse.csr_array((steps.data, steps.indices, indptr), shape=(size, size))

    # The conversions below load their libraries on first use: sweeps need neither networkx nor pyarrow.

    def edges_table(self) -> pa.Table:
        """All edges as one Arrow table, a chunk per layer; see `attngraph.graph.arrow.edges_table`."""
        from attngraph.graph.arrow import edges_table

        return edges_table(self)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The edges as an Arrow stream, a layer at a time: ``pl.DataFrame(graph)``, ``duckdb.sql("FROM graph")``."""
        from attngraph.graph.arrow import edge_reader

        return edge_reader(self).__arrow_c_stream__(requested_schema)

    def to_networkx(
        self, *, max_edges: int = 100_000, layers: Iterable[int] | None = None, minimum: float = 0.0
    ) -> nx.MultiDiGraph:
        """An extract as a NetworkX graph; see `attngraph.graph.interop.to_networkx`."""
        from attngraph.graph.interop import to_networkx

        return to_networkx(self, max_edges=max_edges, layers=layers, minimum=minimum)

    def to_igraph(
        self, *, max_edges: int = 1_000_000, layers: Iterable[int] | None = None, minimum: float = 0.0
    ) -> igraph.Graph:
        """An extract as an igraph graph; see `attngraph.graph.interop.to_igraph`."""
        from attngraph.graph.interop import to_igraph

        return to_igraph(self, max_edges=max_edges, layers=layers, minimum=minimum)

    def to_rustworkx(
        self, *, max_edges: int = 1_000_000, layers: Iterable[int] | None = None, minimum: float = 0.0
    ) -> rustworkx.PyDiGraph[NodeLabel, EdgeData]:
        """An extract as a rustworkx graph; see `attngraph.graph.interop.to_rustworkx`."""
        from attngraph.graph.interop import to_rustworkx

        return to_rustworkx(self, max_edges=max_edges, layers=layers, minimum=minimum)
