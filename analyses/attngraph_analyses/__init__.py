"""Questions asked of a graph: pure functions that return frozen result objects."""

from __future__ import annotations

from attngraph_analyses.influence import Influence, influence
from attngraph_analyses.routes import Hop, Route, Routes, routes
from attngraph_analyses.throughput import Throughput, throughput

__all__ = ["Hop", "Influence", "Route", "Routes", "Throughput", "influence", "routes", "throughput"]
