"""What every answer carries: the policy, the block size, the completeness and how it is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from attngraph.graph import AttentionGraph, blocks_of, completeness, mean_completeness
from attngraph.store import Run, open_store
from attngraph.testing import write_random_run
from attngraph_analyses import (
    betweenness,
    bottlenecks,
    current_flow,
    curvature,
    dominators,
    head_roles,
    head_stability,
    influence,
    influence_profile,
    minimum_cut,
    prune,
    reach,
    routes,
    sequence_weight,
    sink_effect,
    throughput,
)
from attngraph_analyses.results import Answer
from tests.analyses.paths import chain

OF_A_TARGET: dict[str, Callable[[AttentionGraph], Answer]] = {
    "betweenness": betweenness,
    "bottlenecks": lambda graph: bottlenecks(graph, "needle"),
    "current_flow": lambda graph: current_flow(graph, "needle"),
    "curvature": lambda graph: curvature(graph, "needle"),
    "dominators": lambda graph: dominators(graph, "needle"),
    "influence": influence,
    "influence_profile": lambda graph: influence_profile(graph, target="output"),
    "minimum_cut": lambda graph: minimum_cut(graph, "needle"),
    "prune": lambda graph: prune(graph, "needle"),
    "routes": lambda graph: routes(graph, "needle"),
    "sequence_weight": lambda graph: sequence_weight(graph, ["block:3", "output"]),
    "sink_effect": lambda graph: sink_effect(graph, "needle"),
    "throughput": lambda graph: throughput(graph, "needle"),
}
OF_A_SOURCE: dict[str, Callable[[AttentionGraph], Answer]] = {
    "influence_profile": lambda graph: influence_profile(graph, source="needle"),
    "reach": lambda graph: reach(graph, "needle"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_random_run(tmp_path_factory.mktemp("results"), layers=3, heads=2, blocks=30, budget=6)


@pytest.mark.parametrize("name", OF_A_TARGET)
def test_every_answer_carries_its_targets_completeness(run: Run, name: str):
    graph = run.graph(weight="mass")
    found = OF_A_TARGET[name](graph)
    known = completeness(graph)
    assert (found.completeness, found.completeness_source) == (known.share, "estimated")
    assert (found.policy, found.block_size) == (graph.policy, 16)
    assert 0.0 < known.share < 1.0


@pytest.mark.parametrize("name", OF_A_SOURCE)
def test_questions_without_a_target_carry_the_mean_over_all_nodes(run: Run, name: str):
    graph = run.graph()
    found = OF_A_SOURCE[name](graph)
    ends = ["output", *(f"block:{block}" for block in range(graph.blocks))]
    expected = np.mean([completeness(graph, end).share for end in ends])
    assert found.completeness == pytest.approx(expected, rel=1e-9)
    assert found.completeness_source == mean_completeness(graph).source == "estimated"


def test_another_target_has_another_completeness(run: Run):
    graph = run.graph()
    assert betweenness(graph, "needle").completeness == completeness(graph, "needle").share
    assert sequence_weight(graph, ["sink", "block:9"]).completeness == completeness(graph, "block:9").share
    assert completeness(graph, "block:9").share != completeness(graph, "needle").share


def test_the_sink_has_two(run: Run):
    graph = run.graph()
    found = sink_effect(graph.with_policy(sink="exclude"), "needle")
    assert found.completeness == completeness(graph).share
    assert found.completeness_excluded == completeness(graph.with_policy(sink="exclude")).share
    assert found.completeness != found.completeness_excluded


def test_head_roles_carry_what_the_targets_rows_keep(run: Run):
    kept = run.target_rows().select(pl.col("kept_mass").mean()).collect().item()
    found = head_roles(run)
    assert (found.completeness, found.completeness_source) == (pytest.approx(kept, rel=1e-6), "audited")
    of_blocks = head_roles(run, target="needle")
    rows = run.rows().filter(pl.col("query_block").is_in(blocks_of(run.graph(), "needle").tolist())).collect()
    estimates = rows.select(pl.coalesce("kept_mass", "kept_mass_estimate").mean()).item()
    assert (of_blocks.completeness, of_blocks.completeness_source) == (pytest.approx(estimates, rel=1e-6), "estimated")
    stability = head_stability(open_store(run.path.parent), count=1)
    assert stability.runs["completeness"].to_list() == [found.completeness]
    assert stability.runs["completeness_source"].to_list() == ["audited"]


@pytest.mark.parametrize("ask", [*OF_A_TARGET.values(), *OF_A_SOURCE.values()])
def test_what_nobody_knows_is_none(ask: Callable[[AttentionGraph], Answer]):
    found = ask(chain())
    assert (found.completeness, found.completeness_source) == (None, None)
