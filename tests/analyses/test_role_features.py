"""Roles by hand, and features of random runs against plain loops over their tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from attngraph.errors import GraphError, UnknownNodeError
from attngraph.graph import ArraySource, AttentionGraph
from attngraph.graph.testing import layer_arrays
from attngraph.store import Run, open_store
from attngraph.testing import write_random_run
from attngraph_analyses import bottlenecks, role_features, routes, throughput
from attngraph_analyses.role_features import RoleFeatures
from attngraph_analyses.roles import roles_of
from attngraph_analyses.run_features import FEATURES


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs of different length, the second with a target in the middle."""
    store = tmp_path_factory.mktemp("features")
    first = write_random_run(store, layers=3, heads=2, blocks=30, budget=6)
    return [first, write_random_run(store, layers=3, heads=2, blocks=40, budget=6, targets=[100, 636], seed=1)]


@pytest.fixture(scope="module")
def found(runs: list[Run]) -> RoleFeatures:
    return role_features(reversed(runs), k=4)


def graph_of(spans: dict[str, tuple[tuple[int, int], ...]], targets: tuple[int, ...] = (31,)) -> AttentionGraph:
    layer = layer_arrays([], residual=np.ones(8), target_residual=np.ones(len(targets)))
    return AttentionGraph(ArraySource(arrays=[layer], heads=1, tokens=32, block_size=4, targets=targets, spans=spans))


def test_roles_of_blocks_by_hand():
    graph = graph_of(
        {
            "sink": ((0, 1),),
            "needle": ((7, 9),),  # blocks 1 and 2
            "value": ((8, 9),),
            "distractor": ((11, 13), (20, 21)),  # blocks 2 (the needle's), 3 and 5
            "question": ((22, 26),),  # blocks 5 (the distractor's) and 6
            "answer_prefix": ((26, 32),),  # blocks 6 (the question's) and 7
        },
        targets=(5, 31),
    )
    roles = roles_of(graph)
    names = [roles.names[role] for role in roles.block]
    assert names == ["sink", "needle", "needle", "distractor", "haystack", "distractor", "question", "answer"]
    assert [roles.names[role] for role in roles.query[:8]] == names
    assert roles.query[8] == -1  # another target than the one that is asked for
    assert roles.names[roles.query[9]] == "output"
    assert [roles.names[role] for role in roles.row_role(np.array([8, 9]))] == ["needle", "output"]
    read = [(2, 2), (5, 5), (6, 5), (6, 6), (7, 6), (7, 4), (9, 6), (9, 7), (4, 3), (4, 4), (1, 0), (9, 1)]
    query, key = np.array(read).T
    assert [roles.names[role] for role in roles.key(query, key)] == [
        "needle",
        "distractor",
        "distractor",
        "local",  # the question reads itself
        "local",
        "haystack",
        "local",
        "local",
        "distractor",
        "local",
        "sink",
        "needle",
    ]


def test_rows_that_could_read_a_role():
    roles = roles_of(graph_of({"needle": ((12, 16),), "question": ((24, 28),)}))  # block 3, and block 6
    rows = roles.rows()
    count = {
        (query, key): int(rows[roles.names.index(query), roles.names.index(key)])
        for query in ("sink", "haystack", "needle", "question", "output")
        for key in ("sink", "haystack", "needle", "local", "question")
    }
    assert count["sink", "sink"] == 1
    assert count["sink", "local"] == count["sink", "haystack"] == 0  # the first block is the sink, also to itself
    assert count["haystack", "needle"] == 3  # 4, 5, 7
    assert count["haystack", "haystack"] == 3  # 4, 5 and 7: two blocks back; 3 is the needle's and reads block 1
    assert count["needle", "haystack"] == 1
    assert count["needle", "local"] == 1  # block 2, the haystack before it
    assert count["question", "question"] == 0
    assert count["output", "question"] == 0  # the block before the target's own is local
    assert count["output", "local"] == count["output", "needle"] == 1


def test_other_spans_are_roles_of_their_own():
    roles = roles_of(graph_of({"hop:0": ((4, 8),), "hop:1": ((12, 16),), "sentence:3": ((4, 20),)}))
    names = [roles.names[role] for role in roles.block]
    assert names == ["sink", "hop", "sentence", "hop", "sentence", "haystack", "haystack", "haystack"]
    with pytest.raises(UnknownNodeError, match="'answer' names nothing"):
        roles_of(graph_of({}), "answer")


def test_masses_are_means_over_rows(runs: list[Run], found: RoleFeatures):
    for run in runs:
        table = found.to_polars().filter(pl.col("run") == run.id)
        graph = run.graph()
        roles = roles_of(graph)
        rows = roles.rows()
        output, edges = run.manifest.prompt.targets[-1], run.edges().collect()
        for feature in ("mass", "contribution"):
            sums: dict[tuple[int, int, str, str], float] = {}
            columns = ("layer", "head", "query_block", "key_block", feature)
            for layer, head, query, key, value in edges.select(columns).rows():
                names = (roles.names[roles.block[query]], roles.names[roles.key(np.array([query]), np.array([key]))[0]])
                place = (layer, head, *names)
                sums[place] = sums.get(place, 0.0) + value
            node = graph.blocks + len(graph.targets) - 1
            columns = ("layer", "head", "key_block", feature)
            target_edges = run.target_edges().filter(pl.col("target") == output).collect()
            for layer, head, key, value in target_edges.select(columns).rows():
                place = (layer, head, "output", roles.names[roles.key(np.array([node]), np.array([key]))[0]])
                sums[place] = sums.get(place, 0.0) + value
            mine = table.filter(pl.col("feature") == feature)
            assert set(sums) <= set(mine.select("layer", "head", "query_role", "key_role").rows())
            for layer, head, query, key, value in mine.select(
                "layer", "head", "query_role", "key_role", "value"
            ).rows():
                count = rows[roles.names.index(query), roles.names.index(key)]
                assert value == pytest.approx(sums.get((layer, head, query, key), 0.0) / count, rel=1e-5)


def test_the_outputs_masses_sum_to_one(found: RoleFeatures):
    output = found.to_polars().filter((pl.col("feature") == "mass") & (pl.col("query_role") == "output"))
    sums = output.group_by("run", "layer", "head").agg(pl.col("value").sum())["value"]
    assert len(sums) == 2 * 3 * 2
    np.testing.assert_allclose(sums, 1.0, rtol=1e-3)


def test_throughput_and_stays_share_out_every_layer(runs: list[Run], found: RoleFeatures):
    table = found.to_polars()
    passing = table.filter(pl.col("feature").is_in(["throughput", "stay"]))
    np.testing.assert_allclose(passing.group_by("run", "layer").agg(pl.col("value").sum())["value"], 1.0, rtol=1e-5)
    for run in runs:
        own = table.filter(pl.col("run") == run.id)
        flow = throughput(run.graph(), "needle", heads=True)
        heads = own.filter(pl.col("feature") == "throughput").group_by("layer", "head").agg(pl.col("value").sum())
        for layer, head, value in heads.rows():
            assert value == pytest.approx(flow.by_head[layer, head], rel=1e-4, abs=1e-7)
        assert own.filter(pl.col("feature") == "reading")["value"].to_list() == pytest.approx([flow.total])
        widths = own.filter(pl.col("feature") == "width").sort("layer")
        np.testing.assert_allclose(widths["value"], bottlenecks(run.graph(), "needle").width, rtol=1e-5)
        assert widths["head"].null_count() == len(widths) == 4


def test_spans_are_taken_at_token_grain(runs: list[Run], found: RoleFeatures):
    names = dict(runs[0].spans().select("span", "name").collect().rows())
    table = found.to_polars().filter(pl.col("run") == runs[0].id)
    mine = table.filter(pl.col("feature") == "span_mass")
    values = {tuple(row[:4]): row[4] for row in mine.select("layer", "head", "query_role", "key_role", "value").rows()}
    edges = runs[0].span_edges().collect()
    assert len(values) == len(edges)
    for layer, head, query, key, mass, _ in edges.rows():
        assert values[layer, head, names[query], names[key]] == pytest.approx(mass, rel=1e-5)


def test_hops_are_those_of_the_best_routes(runs: list[Run], found: RoleFeatures):
    for run in runs:
        best = routes(run.graph(), "needle", k=4).to_polars()
        mine = found.hops.filter(pl.col("run") == run.id)
        assert (
            mine.select("route", "hop", "layer", "head").rows() == best.select("route", "hop", "layer", "head").rows()
        )
        assert mine["weight"].to_list() == pytest.approx(best["route_weight"].to_list())
        last = mine.group_by("route", maintain_order=True).last()
        assert set(last["query_role"]) <= {"output"} | set(found.keys["query_role"].drop_nulls())
        assert (mine.filter(hop=0)["key_role"] == "needle").all()


def test_runs_come_once_and_in_the_order_of_their_ids(runs: list[Run], found: RoleFeatures):
    assert [manifest.run for manifest in found.manifests] == [run.id for run in runs]
    again = role_features([*runs, runs[0]], k=4)
    assert again.keys.equals(found.keys)
    np.testing.assert_array_equal(again.values, found.values)
    assert set(found.keys["feature"]) == set(FEATURES)
    assert found.completeness.shape == (2,)
    assert not found.keys.is_duplicated().any()


def test_a_run_without_the_source_lacks_walks(runs: list[Run]):
    bare = role_features(runs[:1], "sentence:9")
    assert bare.without_walks == (runs[0].id,)
    assert set(bare.keys["feature"]) == {"mass", "contribution", "span_mass", "span_contribution"}
    assert len(bare.hops) == 0


def test_features_that_one_run_lacks_are_nan(tmp_path: Path, runs: list[Run]):
    other = write_random_run(tmp_path, layers=3, heads=2, blocks=5, budget=4)
    both = role_features([runs[0], other])
    lacking = np.isnan(both.values).any(0)
    assert lacking.any()
    assert not lacking.all()
    assert len(both.to_polars()) == np.count_nonzero(~np.isnan(both.values))


def test_bad_input(tmp_path: Path, runs: list[Run]):
    with pytest.raises(GraphError, match="There are no runs to read features of"):
        role_features(open_store(tmp_path))
    with pytest.raises(UnknownNodeError, match="'answer' names nothing"):
        role_features(runs, target="answer")
