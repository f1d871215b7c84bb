"""Head roles of random runs against their tables, induction by hand, stability over a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from attngraph.errors import ConfigError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph, blocks_of
from attngraph.graph.testing import layer_arrays
from attngraph.store import Run, open_store
from attngraph.testing import write_random_run
from attngraph_analyses import head_roles, head_stability
from attngraph_analyses.heads import induction_candidates
from attngraph_analyses.stability import overlap


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_random_run(tmp_path_factory.mktemp("heads"), layers=3, heads=2, blocks=30, budget=6, block_size=16)


def test_retrieval_is_the_targets_mass_on_the_source(run: Run):
    found = head_roles(run)
    blocks = blocks_of(run.graph(), "needle").tolist()
    edges = (
        run.target_edges().filter(pl.col("key_block").is_in(blocks)).group_by("layer", "head").agg(pl.col("mass").sum())
    )
    expected = np.zeros((3, 2))
    for layer, head, mass in edges.collect().rows():
        expected[layer, head] = mass
    np.testing.assert_allclose(found.retrieval, expected, atol=1e-3)
    table = found.to_polars()
    excess = (table["retrieval"] - table["retrieval_null"]).to_list()
    assert excess == sorted(excess, reverse=True)
    assert found.best(2) == [tuple(row) for row in table.select("layer", "head").head(2).rows()]


def test_zones_share_a_heads_mass(run: Run):
    found = head_roles(run, reach=4)
    np.testing.assert_allclose(found.sink + found.own + found.previous + found.near + found.far, 1.0, rtol=1e-6)
    edges = run.edges().filter(pl.col("query_block") > 4)
    for name, chosen in {
        "sink": pl.col("key_block") == 0,
        "own": pl.col("key_block") == pl.col("query_block"),
        "far": (pl.col("key_block") > 0) & (pl.col("key_block") + 4 < pl.col("query_block")),
    }.items():
        sums = edges.filter(chosen).group_by("layer", "head").agg(pl.col("mass").sum()).collect()
        for layer, head, mass in sums.rows():
            assert getattr(found, name)[layer, head] == pytest.approx(mass / 25, rel=1e-3)


def test_a_short_run_has_no_zones(tmp_path: Path):
    found = head_roles(write_random_run(tmp_path, blocks=8), null="uniform")
    assert np.isnan(found.far).all()
    assert found.to_polars()["far"].null_count() == found.far.size


def test_induction_candidates_by_hand():
    """Token 7 comes at positions 2 and 16: its first successor is in block 1, of block size 3."""
    layer = layer_arrays([], residual=np.ones(6), target_residual=np.ones(0))
    graph = AttentionGraph(ArraySource(arrays=[layer], heads=1, tokens=18, block_size=3))
    tokens = [100, 101, 7, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 7, 116]
    assert induction_candidates(tokens, graph, rare=2).tolist() == [[5, 1]]
    assert len(induction_candidates([7] * 18, graph, rare=2)) == 0
    assert induction_candidates(list(range(18)), graph, rare=2).shape == (0, 2)


def test_an_induction_head_is_found(tmp_path: Path):
    """Of a random run the edges are put where its tokens repeat, for one head."""
    run = write_random_run(tmp_path, layers=1, heads=2, blocks=30, budget=6, seed=3)
    tokens = run.tokens().sort("position").collect()["token_id"].to_list()
    candidates = induction_candidates(tokens, run.graph(), rare=8)
    found = head_roles(run)
    edges = run.edges().collect()
    wanted = {tuple(pair) for pair in candidates.tolist()}
    rows = {query for query, _ in wanted}
    for head in range(2):
        mass = sum(
            mass
            for layer, query, key, mass in edges.filter(head=head)
            .select("layer", "query_block", "key_block", "mass")
            .rows()
            if (query, key) in wanted
        )
        assert (
            found.induction[0, head] == pytest.approx(mass / max(len(rows), 1), rel=1e-3)
            if rows
            else np.isnan(found.induction[0, head])
        )


def test_roles_follow_the_scores(run: Run):
    found = head_roles(run, threshold=1e-6)
    assert set(found.roles.ravel()) <= {"retrieval", "induction", "sink", "local", "long-range"}
    excess = np.nan_to_num(found.retrieval_excess), np.nan_to_num(found.induction - found.induction_null)
    special = (found.roles == "retrieval") | (found.roles == "induction")
    np.testing.assert_array_equal(special, np.maximum(*excess) >= 1e-6)
    assert not np.isin(head_roles(run, threshold=1.0).roles, ["retrieval", "induction"]).any()


def test_stability_of_equal_runs_is_full(tmp_path: Path):
    for _ in range(3):
        write_random_run(tmp_path, blocks=30, budget=6, seed=1, model="one")
    write_random_run(tmp_path, blocks=30, budget=6, seed=2, model="other")
    found = head_stability(open_store(tmp_path), count=2)
    assert found.overlap == {"one": 1.0, "other": None}
    assert len(found.runs) == 4
    one = found.heads.filter(model="one")
    assert one["runs"].to_list() == [3] * len(one)
    np.testing.assert_allclose(one["retrieval_deviation"], 0.0, atol=1e-12)
    assert one["among_best"].to_list()[:3] == [1.0, 1.0, 0.0]


def test_runs_without_an_end_are_null(tmp_path: Path):
    write_random_run(tmp_path, blocks=30, budget=6)
    found = head_stability(open_store(tmp_path), source="sentence:3")
    assert found.runs["best"].to_list() == [None]
    assert found.overlap == {}
    assert len(found.heads) == 0


def test_overlap_by_hand():
    assert overlap([{(0, 0), (0, 1)}, {(0, 0), (1, 1)}, {(0, 0), (0, 1)}]) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert overlap([{(0, 0)}]) is None


def test_bad_input(run: Run, tmp_path: Path):
    with pytest.raises(UnknownNodeError, match="'answer' names nothing"):
        head_roles(run, "answer")
    for options, message in (({"reach": 1}, "reach=1"), ({"rare": 1}, "rare=1"), ({"threshold": 0}, "threshold=0")):
        with pytest.raises(ConfigError, match=message):
            head_roles(run, **options)
    with pytest.raises(ConfigError, match="count=0"):
        head_stability([run], count=0)
