"""Edges to compare with: as many, of their masses, distances and rows, and none of the set itself."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import polars as pl
import pytest

import attngraph as ag
from attngraph.graph.edge_set import EdgeSet, edge_set
from attngraph.testing import write_random_run
from attngraph_analyses.controls import ControlName, control_sets, masses, random_subgraphs

AVOID, NONE = np.array([3]), np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ag.Run:
    store = tmp_path_factory.mktemp("store")
    return write_random_run(store, layers=4, heads=4, blocks=40, budget=12, targets=[200, 636], block_size=16)


@pytest.fixture(scope="module")
def edges(run: ag.Run) -> EdgeSet:
    """A few of every layer but the first, into blocks and into targets, of great mass and of small."""
    rows = pl.concat(
        [
            run.edges().collect().with_columns(target=None),
            run.target_edges()
            .collect()
            .with_columns(query_block=pl.col("target") // 16)
            .select("layer", "head", "query_block", "key_block", "mass", "contribution", "target"),
        ],
        how="vertical_relaxed",
    ).filter((pl.col("layer") > 0) & (pl.col("key_block") != pl.col("query_block")))
    return edge_set(
        run.graph(), rows.group_by("layer", maintain_order=True).map_groups(lambda one: one.sample(9, seed=1))
    )


def sets(graph: ag.AttentionGraph, edges: EdgeSet, name: ControlName, *, draws: int, seed: int = 0, avoid=AVOID):
    """The drawn sets, whose masses are the recorded ones."""
    drawn = control_sets(graph, edges, name, draws=draws, seed=seed, avoid=avoid)
    for one in drawn:
        np.testing.assert_array_equal(one.mass, masses(graph, one.edges))
    return [one.edges for one in drawn]


def tuples(edges: EdgeSet) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in edges), strict=True))


@pytest.mark.parametrize("name", get_args(ControlName))
def test_controls_are_other_edges_as_many_and_the_same_for_one_seed(
    run: ag.Run, edges: EdgeSet, name: ControlName
) -> None:
    graph = run.graph()
    drawn = sets(graph, edges, name, draws=4)
    assert len(drawn) == 4
    for one in drawn:
        assert one.size == edges.size
        assert len(set(tuples(one))) == edges.size
        assert not set(tuples(one)) & set(tuples(edges))
        assert 3 not in one.key_block
        assert (graph.node_blocks()[one.node] != one.key_block).all()
        assert np.isfinite(masses(graph, one)).all()  # each of them is recorded
    again = sets(graph, edges, name, draws=2)
    assert [tuples(one) for one in again] == [tuples(one) for one in drawn[:2]]
    assert len({tuple(sorted(tuples(one))) for one in drawn}) == 4
    other = sets(graph, edges, name, draws=1, seed=1)
    assert set(tuples(other[0])) != set(tuples(drawn[0]))


def test_matched_edges_have_the_layers_and_nearly_the_masses(run: ag.Run, edges: EdgeSet) -> None:
    graph = run.graph()
    wanted = np.sort(masses(graph, edges))
    matched, random = (sets(graph, edges, name, draws=8) for name in ("mass_matched", "random"))
    for one in matched:
        assert Counter(one.layer.tolist()) == Counter(edges.layer.tolist())
        assert np.abs(np.sort(masses(graph, one)) - wanted).max() < 0.06
    assert {0, 1, 2, 3} == {layer for one in random for layer in one.layer.tolist()}
    assert max(np.abs(np.sort(masses(graph, one)) - wanted).max() for one in random) > 0.06


def test_distance_and_row_matched_edges_have_the_rows(run: ag.Run, edges: EdgeSet) -> None:
    graph = run.graph()
    for one in sets(graph, edges, "distance_matched", draws=4):
        rows = [Counter(zip(*(x.tolist() for x in part[:3]), strict=True)) for part in (edges, one)]
        assert rows[0] == rows[1]  # layer, head and node
    for one in sets(graph, edges, "row_matched", draws=4):
        rows = [Counter(zip(part.layer.tolist(), part.node.tolist(), strict=True)) for part in (edges, one)]
        assert rows[0] == rows[1]


def test_the_nearest_by_distance_is_taken_where_there_is_no_choice(tmp_path) -> None:
    # Rows of three: the sink, the block before, the own one. An edge from the sink is matched by the block before.
    run = write_random_run(tmp_path, layers=1, heads=1, blocks=8, budget=3)
    graph = run.graph()
    edges = edge_set(graph, [(0, 0, 6, 0), (0, 0, 7, 0)])
    (one,) = sets(graph, edges, "distance_matched", draws=1, avoid=NONE)
    assert sorted(tuples(one)) == [(0, 0, 6, 5), (0, 0, 7, 6)]
    # With both taken there is nothing left, and with all of a graph's edges nothing anywhere.
    both = edge_set(graph, [(0, 0, 6, 0), (0, 0, 6, 5)])
    for name in ("distance_matched", "row_matched"):
        assert sets(graph, both, name, draws=2, avoid=NONE)[1].size == 0


def test_masses_of_edges_that_are_not_recorded_are_unknown(run: ag.Run) -> None:
    graph = run.graph()
    row = run.edges().filter(layer=2, head=1, query_block=30).collect()
    missing = min(set(range(30)) - set(row["key_block"]))
    known = int(row["key_block"][0])
    found = masses(graph, edge_set(graph, [(2, 1, 30, missing), (2, 1, 30, known)]))
    assert np.isnan(found[0])
    assert found[1] == row["mass"][0]
    one = edge_set(graph, [(2, 1, 30, missing)])
    assert sets(graph, one, "mass_matched", draws=1)[0].size == 0


def test_random_subgraphs_have_as_many_edges_in_every_layer(run: ag.Run, edges: EdgeSet) -> None:
    drawn = [one.edges for one in random_subgraphs(run.graph(), edges, draws=3, seed=0)]
    for one in drawn:
        assert Counter(one.layer.tolist()) == Counter(edges.layer.tolist())
        assert len(set(tuples(one))) == edges.size
    assert len({tuple(sorted(tuples(one))) for one in drawn}) == 3
