"""The questions that a study can ask: each gives the table of its own function, and says what no route means."""

from __future__ import annotations

import importlib
import itertools
import pickle

import polars as pl
import pytest

import attngraph as ag
from attngraph.graph import Policy
from attngraph.testing import write_random_run
from attngraph_analyses import registry
from attngraph_analyses.registry import ANALYSES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("store"), blocks=12, seed=5)


def test_every_entry_is_found_again_by_its_name():
    assert sorted(ANALYSES) == list(ANALYSES)
    for analysis in ANALYSES.values():
        assert pickle.loads(pickle.dumps(analysis.function)) is analysis.function  # noqa: S301
        assert getattr(importlib.import_module(analysis.function.__module__), analysis.function.__name__)
        assert analysis.of in ("run", "model", "store")
    assert ag.ANALYSES is ANALYSES


def test_tables_are_those_of_the_functions(run):
    policy = Policy(weight="mass", residual=0.5)
    graph = run.graph(weight="mass", residual=0.5)
    assert registry.influence_table(run, policy=policy).equals(ag.influence(graph).to_polars())
    assert registry.routes_table(run, k=4, policy=policy).equals(ag.routes(graph, "needle", k=4).to_polars())
    assert registry.throughput_table(run, top=7, policy=policy).equals(
        ag.throughput(graph, "needle", top=7).to_polars()
    )
    assert registry.bottlenecks_table(run, policy=policy).equals(ag.bottlenecks(graph, "needle").to_polars())
    assert registry.head_roles_table(run, threshold=0.3).equals(ag.head_roles(run, threshold=0.3).to_polars())
    stability = ag.head_stability([run, run], count=2)
    table = registry.head_stability_table([run, run], count=2)
    assert table.drop("overlap").equals(stability.heads)
    assert table["overlap"].unique().to_list() == [1.0]  # a run agrees with itself


def test_the_rank_of_a_span(run):
    table = registry.influence_rank(run, null="uniform")
    found = ag.influence(run.graph(), null="uniform")
    (row,) = table.to_dicts()
    assert row["rank"] == found.rank_of("needle", before="question")
    assert row["first"] == (row["rank"] == 0)
    blocks = [block for block, names in enumerate(found.spans) if "needle" in names]
    end = min(block for block, names in enumerate(found.spans) if "question" in names)
    assert row["candidates"] == end - 1
    assert row["influence"] == pytest.approx(found.influence[blocks].sum())
    # By counting: the best of `len(blocks)` places among all candidates, over every way to lie.
    ways = [min(places) for places in itertools.combinations(range(end - 1), len(blocks))]
    assert row["chance"] == pytest.approx(sum(ways) / len(ways))


def test_a_span_without_a_block_of_its_own_has_no_rank(run):
    (row,) = registry.influence_rank(run, span="question", null="uniform").to_dicts()
    assert (row["rank"], row["first"], row["chance"], row["excess"]) == (None, None, None, None)
    assert registry.influence_rank(run, null="uniform").schema == registry.influence_rank(run, span="question").schema
    with pytest.raises(ag.errors.UnknownNodeError, match="'nadel' is no span of this run"):
        registry.influence_rank(run, span="nadel", null="uniform")
    with pytest.raises(ag.errors.UnknownNodeError, match="'frage' is no span of this run"):
        registry.influence_rank(run, before="frage", null="uniform")


def test_no_route_is_no_rows(run):
    # Block 5 comes after what it should be reached from.
    ask = {"source": "block:5", "target": "block:2"}
    for table in (registry.routes_table, registry.throughput_table, registry.bottlenecks_table):
        assert len(table(run, **ask)) == 0
    assert registry.head_stability_table([], count=1).equals(pl.DataFrame())
