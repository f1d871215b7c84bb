"""Questions asked of a graph: pure functions that return frozen result objects."""

from __future__ import annotations

from attngraph_analyses.anchor_checks import (
    AnchorAgreement,
    ImportanceCorrelation,
    category_profile,
    compare_anchors,
    importance_correlation,
)
from attngraph_analyses.anchors import Anchors, anchors, receiver_heads
from attngraph_analyses.betweenness import Betweenness, betweenness
from attngraph_analyses.bottlenecks import Bottlenecks, bottlenecks
from attngraph_analyses.chain_test import ChainTest, chain_test
from attngraph_analyses.chains import Chain, ChainRank, chain, chain_weights
from attngraph_analyses.compare import Comparison, compare
from attngraph_analyses.confirm import Confirmation, confirm
from attngraph_analyses.curvature import Curvature, curvature
from attngraph_analyses.cuts import Cut, minimum_cut
from attngraph_analyses.diff import Diff, diff
from attngraph_analyses.dominators import Dominators, dominators
from attngraph_analyses.heads import HeadRoles, head_roles
from attngraph_analyses.influence import Influence, influence
from attngraph_analyses.knockout import Control, Knockout, knockout
from attngraph_analyses.knockout_curves import KnockoutCurve, necessity, sufficiency
from attngraph_analyses.nulls import Compared, Null, Question
from attngraph_analyses.profile import InfluenceProfile, influence_profile
from attngraph_analyses.reach import Reach, reach
from attngraph_analyses.resistance import CurrentFlow, current_flow
from attngraph_analyses.role_features import RoleFeatures, role_features
from attngraph_analyses.routes import Hop, Route, Routes, routes
from attngraph_analyses.sensitivity import Sensitivity, sensitivity
from attngraph_analyses.sequences import SequenceWeight, sequence_weight
from attngraph_analyses.sink import SinkEffect, sink_effect
from attngraph_analyses.stability import HeadStability, head_stability
from attngraph_analyses.subgraph import Subgraph, carrying, prune
from attngraph_analyses.summaries import HeadSummary, head_summary
from attngraph_analyses.throughput import Throughput, throughput
from attngraph_analyses.variable_chains import other_chains
from attngraph_analyses.vertical import AnchorSettings

__all__ = [
    "AnchorAgreement",
    "AnchorSettings",
    "Anchors",
    "Betweenness",
    "Bottlenecks",
    "Chain",
    "ChainRank",
    "ChainTest",
    "Compared",
    "Comparison",
    "Confirmation",
    "Control",
    "CurrentFlow",
    "Curvature",
    "Cut",
    "Diff",
    "Dominators",
    "HeadRoles",
    "HeadStability",
    "HeadSummary",
    "Hop",
    "ImportanceCorrelation",
    "Influence",
    "InfluenceProfile",
    "Knockout",
    "KnockoutCurve",
    "Null",
    "Question",
    "Reach",
    "RoleFeatures",
    "Route",
    "Routes",
    "Sensitivity",
    "SequenceWeight",
    "SinkEffect",
    "Subgraph",
    "Throughput",
    "anchors",
    "betweenness",
    "bottlenecks",
    "carrying",
    "category_profile",
    "chain",
    "chain_test",
    "chain_weights",
    "compare",
    "compare_anchors",
    "confirm",
    "current_flow",
    "curvature",
    "diff",
    "dominators",
    "head_roles",
    "head_stability",
    "head_summary",
    "importance_correlation",
    "influence",
    "influence_profile",
    "knockout",
    "minimum_cut",
    "necessity",
    "other_chains",
    "prune",
    "reach",
    "receiver_heads",
    "role_features",
    "routes",
    "sensitivity",
    "sequence_weight",
    "sink_effect",
    "sufficiency",
    "throughput",
]
