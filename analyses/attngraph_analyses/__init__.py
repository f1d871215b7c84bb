"""Questions asked of a graph: pure functions that return frozen result objects."""

from __future__ import annotations

from attngraph_analyses.influence import Influence, influence
from attngraph_analyses.reach import Reach, reach
from attngraph_analyses.routes import Hop, Route, Routes, routes
from attngraph_analyses.sequences import SequenceWeight, sequence_weight
from attngraph_analyses.throughput import Throughput, throughput

__all__ = [
    "Hop",
    "Influence",
    "Reach",
    "Route",
    "Routes",
    "SequenceWeight",
    "Throughput",
    "influence",
    "reach",
    "routes",
    "sequence_weight",
    "throughput",
]
