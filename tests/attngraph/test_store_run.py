"""Opening runs and stores, and reading them through polars, DuckDB and as layers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import duckdb
import msgspec
import numpy as np
import polars as pl
import pytest

from attngraph.config import StreamConfig
from attngraph.errors import ConfigError, IntegrityError, RunNotFoundError, StoreError
from attngraph.graph import completeness
from attngraph.store import TABLES, BudgetProbe, FoundBudget, RunWriter, open_run, open_store
from attngraph.store.manifest import decode_manifest, encode_manifest
from attngraph.store.store import CATALOGUE_SCHEMA
from attngraph.testing import write_random_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("store"), layers=4, heads=3, blocks=20, targets=(310, 40))


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(run.path, tmp_path / run.path.name)


@pytest.fixture
def two_runs(tmp_path):
    return [write_random_run(tmp_path / "two", seed=seed, budget=3 + seed, model=f"m{seed}") for seed in (0, 1)]


def edit_manifest(folder, **changes):
    document = json.loads((folder / "run.json").read_bytes())
    (folder / "run.json").write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize("verify", ["size", "none", "full"])
def test_a_committed_run_opens_unchanged(run, verify):
    assert open_run(str(run.path), verify=verify) == run


@pytest.mark.parametrize(("budget", "found", "blocks"), [("all", None, 20), (6, None, 6), ("auto", 5, 5)])
def test_the_manifest_knows_the_budget_in_blocks(tmp_path, run, budget, found, blocks):
    curve = tuple(BudgetProbe(budget=n, match=n > 4, kl=1 / n, margin=1.0, pruned=0.9) for n in (4, 8, 6, 5))
    manifest = msgspec.structs.replace(
        run.manifest,
        config=replace(run.manifest.config, budget=budget),
        found_budget=None if found is None else FoundBudget(blocks=found, curve=curve),
    )
    read = decode_manifest(encode_manifest(manifest), tmp_path)
    assert read == manifest
    assert read.budget == blocks


def test_a_manifest_from_before_budgets_were_searched_for_opens(copy, run):
    document = json.loads((copy / "run.json").read_bytes())
    del document["found_budget"]
    for name in ("allocation", "mass_threshold"):
        del document["config"][name]
    (copy / "run.json").write_text(json.dumps(document))
    opened = open_run(copy)
    assert opened.manifest == run.manifest
    assert opened.manifest.found_budget is None
    assert opened.manifest.budget == opened.manifest.config.budget == 4


def test_every_table_has_its_documented_columns(run):
    edge = {"layer": pl.UInt16, "head": pl.UInt16}
    weights = {"mass": pl.Float32, "contribution": pl.Float32}
    kept = {"kept": pl.UInt16, "kept_mass": pl.Float32}
    node = {"layer": pl.UInt16, "block": pl.UInt32, "position": pl.UInt32}
    expected = {
        "edges": {**edge, "query_block": pl.UInt32, "key_block": pl.UInt32, **weights},
        "target_edges": {**edge, "target": pl.UInt32, "key_block": pl.UInt32, **weights},
        "rows": {**edge, "query_block": pl.UInt32, **kept, "kept_mass_estimate": pl.Float32},
        "target_rows": {**edge, "target": pl.UInt32, **kept},
        "shares": {**node, "residual": pl.Float32, "attention": pl.Float32, "mlp": pl.Float32},
        "span_edges": {**edge, "query_span": pl.UInt32, "key_span": pl.UInt32, **weights},
        "tokens": {"position": pl.UInt32, "token_id": pl.UInt32, "block": pl.UInt32, "text": pl.String},
        "blocks": {"block": pl.UInt32, "token_start": pl.UInt32, "token_end": pl.UInt32, "text": pl.String},
        "spans": {"span": pl.UInt32, "name": pl.String, "token_start": pl.UInt32, "token_end": pl.UInt32},
    }
    assert set(expected) == set(TABLES)
    for table, schema in expected.items():
        frame = getattr(run, table)()
        assert isinstance(frame, pl.LazyFrame)
        assert frame.collect_schema() == pl.Schema(schema)


def test_row_counts_are_those_of_the_prompt(run):
    kept = sum(min(4, block + 1) for block in range(20))
    assert run.edges().collect().height == 4 * 3 * kept == run.cost.edges
    assert run.rows().collect().height == 4 * 3 * 20
    assert run.shares().collect().height == 4 * (20 + 2)
    assert run.tokens().collect().height == 317
    assert run.spans().collect()["name"].to_list() == ["sink", "needle", "question"]


def test_polars_reads_a_store_by_its_glob(two_runs):
    edges = pl.scan_parquet(two_runs[0].path.parent / "run=*" / "edges.parquet", hive_partitioning=True)
    counts = dict(edges.group_by("run").len().collect().iter_rows())
    assert counts == {run.id: run.cost.edges for run in two_runs}
    assert edges.filter(layer=1).collect().height == sum(run.cost.edges for run in two_runs) // 3
    empty_safe = pl.scan_parquet(two_runs[0].path.parent / "run=*" / "target_edges.parquet", hive_partitioning=True)
    assert empty_safe.collect().height == sum(run.cost.target_edges for run in two_runs)


def test_duckdb_reads_a_store_by_its_glob(two_runs):
    glob = two_runs[0].path.parent / "run=*" / "edges.parquet"
    found = duckdb.execute(
        f"SELECT run, layer, count(*), sum(mass) FROM read_parquet('{glob}') GROUP BY ALL"
    ).fetchall()
    assert {(id, layer): count for id, layer, count, _ in found} == {
        (run.id, layer): run.cost.edges // 3 for run in two_runs for layer in range(3)
    }
    assert [mass for *_, mass in found] == pytest.approx([2 * 8] * 6, rel=1e-3)  # heads × query blocks
    described = duckdb.execute(f"DESCRIBE SELECT * FROM read_parquet('{glob}')").fetchall()
    assert [(name, kind) for name, kind, *_ in described][:4] == [
        ("layer", "USMALLINT"),
        ("head", "USMALLINT"),
        ("query_block", "UINTEGER"),
        ("key_block", "UINTEGER"),
    ]


def test_a_layer_filter_touches_one_row_group(copy, run):
    """With every other row group's data destroyed, filtering the layer still gives it whole."""
    import pyarrow.parquet as pq

    path = copy / "edges.parquet"
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in (0, 1, 3):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(bytes(content))
    expected = run.edges().filter(pl.col("layer") == 2).collect()
    assert pl.scan_parquet(path).filter(pl.col("layer") == 2).collect().equals(expected)
    assert duckdb.execute(f"SELECT count(*) FROM read_parquet('{path}') WHERE layer = 2").fetchall() == [
        (expected.height,)
    ]
    damaged = open_run(copy).layer_source()
    assert np.array_equal(damaged.layer(2).mass, expected["mass"].to_numpy())
    with pytest.raises(IntegrityError, match=r"edges\.parquet can't be read: .*attngraph verify"):
        damaged.layer(1)


def test_layers_are_what_the_tables_hold(run):
    source = run.layer_source()
    assert (source.layers, source.heads, source.blocks, source.tokens, source.block_size) == (
        4,
        3,
        20,
        317,
        16,
    )
    assert source.targets == (310, 40)
    assert source.spans["needle"] == ((95, 107),)
    for layer in range(4):
        arrays = source.layer(layer)
        edges = run.edges().filter(pl.col("layer") == layer).collect()
        for name in ("head", "query_block", "key_block", "mass", "contribution"):
            assert np.array_equal(getattr(arrays, name), edges[name].to_numpy())
        targets = run.target_edges().filter(pl.col("layer") == layer).collect()
        assert np.array_equal(np.array([310, 40])[arrays.target], targets["target"].to_numpy())
        assert np.array_equal(arrays.target_mass, targets["mass"].to_numpy())
        shares = run.shares().filter(pl.col("layer") == layer).collect()
        assert np.array_equal(arrays.residual, shares.drop_nulls("block")["residual"].to_numpy())
        by_target = dict(shares.drop_nulls("position").select("position", "residual").iter_rows())
        assert arrays.target_residual.tolist() == [by_target[310], by_target[40]]


def test_spans_that_share_a_name_are_joined(tmp_path, run):
    import msgspec

    from attngraph.store import SpanInfo
    from attngraph.store.layers import RunLayers

    spans = tuple(SpanInfo(name="fact", start=start, end=start + 2) for start in (5, 1))
    prompt = msgspec.structs.replace(run.manifest.prompt, spans=spans)
    assert RunLayers(run.path, msgspec.structs.replace(run.manifest, prompt=prompt)).spans == {"fact": ((5, 7), (1, 3))}


def test_a_layer_outside_the_model_is_refused(run):
    with pytest.raises(StoreError, match="Layer 4 is outside the run's layers 0 to 3"):
        run.layer_source().layer(4)


def test_there_must_be_a_run(tmp_path, two_runs):
    with pytest.raises(RunNotFoundError, match="There is no run at"):
        open_run(tmp_path / "nothing")
    with pytest.raises(RunNotFoundError, match=r"it has no run\.json"):
        open_run(tmp_path)
    with pytest.raises(
        RunNotFoundError, match=rf"is a store, not a run; give one of its 2 runs, such as .*{two_runs[1].id}"
    ):
        open_run(two_runs[0].path.parent)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunNotFoundError, match=r"it has no run\.json"):
        open_run(tmp_path / "file")
    with RunWriter(tmp_path / "other") as writer, pytest.raises(RunNotFoundError, match="never finished"):
        open_run(tmp_path / "other" / f".partial-{writer.run}")


def test_files_must_be_there_whole(copy):
    path = copy / "shares.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=rf"shares\.parquet has {len(whole) - 1} bytes instead of {len(whole)}"):
        open_run(copy)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"shares\.parquet is missing"):
        open_run(copy)
    assert open_run(copy, verify="none").id == copy.name.removeprefix("run=")
    with pytest.raises(IntegrityError, match=r"shares\.parquet is missing"):
        open_run(copy, verify="none").layer_source().layer(0)


def test_altered_bytes_are_found_by_full_verification(copy):
    path = copy / "edges.parquet"
    whole = bytearray(path.read_bytes())
    whole[100] ^= 1
    path.write_bytes(whole)
    assert open_run(copy).id
    with pytest.raises(IntegrityError, match=r"edges\.parquet: its bytes were altered"):
        open_run(copy, verify="full")
    with pytest.raises(ConfigError, match="verify='half' is not one of size, none, full"):
        open_run(copy, verify="half")


def test_manifests_must_be_readable(copy):
    whole = (copy / "run.json").read_bytes()
    (copy / "run.json").write_bytes(whole[:-40])
    with pytest.raises(IntegrityError, match=r"run\.json isn't a manifest"):
        open_run(copy)
    (copy / "run.json").write_bytes(whole)
    edit_manifest(copy, cost=None)
    with pytest.raises(IntegrityError, match=r"isn't a manifest: .*\$\.cost"):
        open_run(copy)
    edit_manifest(copy, cost=json.loads(whole)["cost"], schema_version="one")
    with pytest.raises(IntegrityError, match=r"isn't a manifest: .*schema_version"):
        open_run(copy)
    (copy / "run.json").write_bytes(whole)
    edit_manifest(copy, format="other")
    with pytest.raises(StoreError, match="has the format 'other'; attngraph reads 'attngraph-run'"):
        open_run(copy)


def test_versions_are_compatible_within_a_major_one(copy, run):
    edit_manifest(copy, schema_version="1.9.0", something_new={"a": 1})
    assert open_run(copy, verify="full").manifest.cost == run.cost
    edit_manifest(copy, schema_version="2.0.0", format="attngraph-run")
    with pytest.raises(StoreError, match=r"schema version 2\.0\.0, this attngraph reads 1\.2\.0: update attngraph"):
        open_run(copy)


def test_runs_from_before_targets_were_audited_are_read_without_their_rows(copy, run):
    manifest = json.loads((copy / "run.json").read_bytes())
    (copy / "target_rows.parquet").unlink()
    gone = manifest["files"].pop("target_rows.parquet")
    cost = {**manifest["cost"], "run_bytes": manifest["cost"]["run_bytes"] - gone["bytes"]}
    edit_manifest(copy, schema_version="1.0.0", files=manifest["files"], cost=cost)
    old = open_run(copy, verify="full")
    assert old.target_rows().collect().schema == run.target_rows().collect().schema
    assert old.target_rows().collect().is_empty()
    assert completeness(old.graph()) == (None, None, ())
    np.testing.assert_array_equal(old.graph().transition(1).probability, run.graph().transition(1).probability)


def test_runs_from_before_first_layers_kept_more_kept_the_same_in_all(copy):
    config = json.loads((copy / "run.json").read_bytes())["config"]
    config = {name: value for name, value in config.items() if not name.startswith("first_")}
    edit_manifest(copy, config=config, schema_version="1.1.0")
    old = open_run(copy, verify="full").manifest
    assert (old.config.first_layers, old.most_kept) == (0, old.budget)
    edit_manifest(copy, config=config, schema_version="1.2.0")
    now = open_run(copy).manifest
    assert now.config.first_layers == StreamConfig().first_layers
    assert now.most_kept == now.prompt.blocks


def test_kept_masses_come_by_head_and_node(run):
    kept = run.layer_source().kept_mass(2)
    rows, targets = run.rows().filter(layer=2).collect(), run.target_rows().filter(layer=2).collect()
    for name, column in (("blocks", "kept_mass"), ("estimate", "kept_mass_estimate")):
        table = rows.pivot("query_block", index="head", values=column).sort("head").drop("head")
        np.testing.assert_array_equal(getattr(kept, name), table.select(map(str, range(20))).to_numpy())
    table = targets.pivot("target", index="head", values="kept_mass").sort("head")
    np.testing.assert_array_equal(kept.targets, table.select("310", "40").to_numpy())
    with pytest.raises(StoreError, match="Layer 4 is outside the run's layers 0 to 3"):
        run.layer_source().kept_mass(4)


def test_the_catalogue_is_made_of_the_manifests(two_runs):
    store = open_store(two_runs[0].path.parent)
    catalogue = store.runs()
    assert catalogue.schema == pl.Schema(CATALOGUE_SCHEMA)
    assert catalogue["run"].to_list() == [run.id for run in store] == sorted(run.id for run in two_runs)
    first = catalogue.row(by_predicate=pl.col("model") == "m1", named=True)
    assert (first["budget"], first["tokens"], first["edges"]) == (4, 125, two_runs[1].cost.edges)
    assert first["created"] == two_runs[1].created
    assert open_run(first["path"]) == two_runs[1]
    assert len(store) == 2


def test_an_empty_store_has_an_empty_catalogue(tmp_path):
    store = open_store(tmp_path)
    assert (len(store), list(store)) == (0, [])
    assert store.runs().schema == pl.Schema(CATALOGUE_SCHEMA)
    assert store.runs().height == 0


def test_runs_are_found_by_the_start_of_their_id(two_runs):
    store = open_store(two_runs[0].path.parent)
    assert store.run(two_runs[1].id) == two_runs[1]
    assert store.run(two_runs[1].id[:-1]) == two_runs[1]
    with pytest.raises(
        StoreError,
        match=rf"2 runs of .* start with '01', such as {store.run(min(r.id for r in two_runs)).id}",
    ):
        store.run("01")
    with pytest.raises(RunNotFoundError, match=r"No run of .* starts with 'X'; it holds 2 runs"):
        store.run("X")


def test_a_store_must_be_a_folder_of_runs(tmp_path, run):
    with pytest.raises(StoreError, match=r"There is no store at .*; a capture into it makes one"):
        open_store(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file, not a store"):
        open_store(tmp_path / "file")
    with pytest.raises(StoreError, match="is a run, not a store; its store is"):
        open_store(run.path)


def test_the_store_works_without_torch_and_scipy():
    heavy = "{'torch', 'scipy', 'transformers'}"
    code = f"import sys, attngraph.store; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_is_a_graph(run):
    graph = run.graph(weight="mass", residual="half")
    assert (graph.layers, graph.blocks, graph.targets) == (4, 20, (310, 40))
    assert np.allclose(graph.to_scipy(2).sum(axis=1), 1)
