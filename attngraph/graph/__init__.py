"""A run as a layered graph: transitions, sweeps over layers, best paths, and conversions."""

from __future__ import annotations

from attngraph.graph.algebra import backward, best_log_weights, forward, head_values
from attngraph.graph.audit import Completeness, KeptTransition, completeness, mean_completeness, row_completeness
from attngraph.graph.diverse import diverse_paths
from attngraph.graph.endpoints import blocks_of, no_route, source_state, spans_by_block, target_state
from attngraph.graph.layered import AttentionGraph
from attngraph.graph.paths import Paths, best_paths
from attngraph.graph.semirings import Algebra, state_in
from attngraph.graph.source import ArraySource, KeptMass, LayerArrays, LayerSource
from attngraph.graph.transition import LayerTransition, Policy

__all__ = [
    "Algebra",
    "ArraySource",
    "AttentionGraph",
    "Completeness",
    "KeptMass",
    "KeptTransition",
    "LayerArrays",
    "LayerSource",
    "LayerTransition",
    "Paths",
    "Policy",
    "backward",
    "best_log_weights",
    "best_paths",
    "blocks_of",
    "completeness",
    "diverse_paths",
    "forward",
    "head_values",
    "mean_completeness",
    "no_route",
    "row_completeness",
    "source_state",
    "spans_by_block",
    "state_in",
    "target_state",
]
