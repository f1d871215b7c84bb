"""The layout that is written, and that a run is written whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from attngraph.errors import AttngraphError, StoreError
from attngraph.store import SCHEMA_VERSION, TABLES, RunWriter, open_store, verify_run
from attngraph.store.partial import claim, remove_abandoned
from attngraph.testing import write_random_run

EDGES = {"head": [0], "query_block": [0], "key_block": [0], "mass": [1.0], "contribution": [0.5]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("store"), layers=4, heads=3, blocks=20, budget=6)


@pytest.fixture(scope="module")
def manifest(run):
    return run.manifest


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_layer_is_one_row_group_that_its_statistics_name(run):
    for table in (table for table in TABLES.values() if table.by_layer):
        metadata = pq.read_metadata(run.path / table.file)
        layers = [metadata.row_group(group).column(0).statistics for group in range(metadata.num_row_groups)]
        assert [(found.min, found.max) for found in layers] == [(layer, layer) for layer in range(4)]


def test_columns_are_encoded_as_documented(run):
    group = pq.read_metadata(run.path / "edges.parquet").row_group(2)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name in ("layer", "query_block", "key_block"):
        assert "DELTA_BINARY_PACKED" in columns[name].encodings
    for name in ("mass", "contribution"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings
    with_statistics = {name for name, column in columns.items() if column.is_stats_set}
    assert with_statistics == {"layer", "head", "query_block", "key_block"}
    assert all(
        column.has_column_index and column.has_offset_index
        for name, column in columns.items()
        if name != "mass" and name != "contribution"
    )
    assert [(sorting.column_index, sorting.nulls_first) for sorting in group.sorting_columns] == [
        (0, False),
        (2, False),
        (1, False),
        (3, False),
    ]


def test_files_describe_themselves(run):
    for table in TABLES.values():
        document = json.loads(pq.read_schema(run.path / table.file).metadata[b"attngraph"])
        assert document["version"] == SCHEMA_VERSION
        assert document["table"] == table.name
        assert set(document["columns"]) == {column.name for column in table.columns}
    assert json.loads(pl.read_parquet_metadata(run.path / "edges.parquet")["attngraph"])["table"] == "edges"


def test_pages_carry_checksums(run, tmp_path):
    whole = (run.path / "edges.parquet").read_bytes()
    chunk = pq.read_metadata(run.path / "edges.parquet").row_group(1).column(4)
    at = chunk.data_page_offset + chunk.total_compressed_size - 3
    (tmp_path / "edges.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(tmp_path / "edges.parquet", page_checksum_verification=True)


def test_the_greatest_integers_survive_in_every_reader(tmp_path, manifest):
    blocks, heads = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1]), np.array([0, 255, 32_768, 40_000, 65_535])
    one_layer = msgspec.structs.replace(
        manifest,
        model=msgspec.structs.replace(manifest.model, layers=1),
        prompt=msgspec.structs.replace(manifest.prompt, tokens=0, blocks=0, spans=(), targets=()),
    )
    with RunWriter(tmp_path) as writer:
        columns = {
            "head": heads,
            "query_block": blocks,
            "key_block": blocks,
            "mass": 1.0,
            "contribution": 1.0,
        }
        writer.append("edges", {"layer": 0, **columns})
        writer.append("rows", {"layer": 0, "head": [0], "query_block": [0], "kept": [65_535]})
        writer.append("shares", {"layer": 0, "block": [0], "residual": [0.5], "attention": [0.5], "mlp": [0.5]})
        path = writer.commit(one_layer).path / "edges.parquet"
    from_polars = pl.read_parquet(path, hive_partitioning=False)
    assert from_polars["key_block"].to_list() == blocks.tolist()
    assert from_polars["head"].to_list() == heads.tolist()
    assert pl.scan_parquet(path).filter(pl.col("key_block") == 2**32 - 1).collect().height == 1
    found = duckdb.execute(f"SELECT head, key_block FROM read_parquet('{path}') ORDER BY key_block").fetchall()
    assert found == list(zip(heads.tolist(), blocks.tolist(), strict=True))
    assert pq.read_table(path, partitioning=None)["query_block"].to_pylist() == blocks.tolist()


def test_an_edge_takes_at_most_six_and_a_half_bytes(tmp_path):
    run = write_random_run(tmp_path, layers=3, heads=9, blocks=512, budget=8)
    assert run.cost.edges == 3 * 9 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 * 505)
    assert run.manifest.files["edges.parquet"].bytes / run.cost.edges <= 6.5


def test_weights_are_rounded_and_nothing_else(run):
    edges = run.edges().collect()
    for name in ("mass", "contribution"):
        assert not np.any(edges[name].to_numpy().view(np.uint32) & 0x7FF)
    assert np.any(run.shares().collect()["residual"].to_numpy().view(np.uint32) & 0x7FF)


def test_commit_fills_in_what_only_the_writer_knows(run):
    on_disk = json.loads((run.path / "run.json").read_bytes())
    assert on_disk["format"] == "attngraph-run"
    assert on_disk["run"] == run.id == run.path.name.removeprefix("run=")
    assert on_disk["cost"]["edges"] == run.edges().collect().height == on_disk["files"]["edges.parquet"]["rows"]
    assert on_disk["cost"]["run_bytes"] == sum(path.stat().st_size for path in run.path.glob("*.parquet"))
    assert run.created.utcoffset().total_seconds() == 0
    assert names_in(run.path) == sorted([*(table.file for table in TABLES.values()), "run.json"])
    assert names_in(run.path.parent) == [run.path.name]


def test_tables_that_nothing_was_appended_to_are_there_and_empty(tmp_path, manifest):
    run = write_random_run(tmp_path, targets=())
    assert run.target_edges().collect().shape == (0, 6)
    assert verify_run(run.path).ok


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, StoreError])
def test_leaving_without_commit_leaves_nothing_behind(tmp_path, failure):
    store = tmp_path / "deep" / "store"
    with pytest.raises(failure), RunWriter(store) as writer:
        writer.append("edges", {"layer": 0, **EDGES})
        assert len(names_in(store)) == 2
        raise failure
    assert names_in(tmp_path) == []


def test_a_store_that_was_there_stays(tmp_path, run):
    with RunWriter(tmp_path) as writer:
        writer.append("edges", {"layer": 0, **EDGES})
    assert tmp_path.exists()
    assert names_in(tmp_path) == []


def test_an_incomplete_run_is_refused(tmp_path, manifest):
    with (
        pytest.raises(StoreError, match="edges holds 1 of the model's 4 layers"),
        RunWriter(tmp_path) as writer,
    ):
        writer.append("edges", {"layer": 0, **EDGES})
        writer.commit(manifest)
    assert names_in(tmp_path) == []


def test_a_manifest_that_json_cannot_hold_is_refused(tmp_path, run):
    not_a_number = msgspec.structs.replace(run.fidelity, kl=float("nan"))
    with pytest.raises(StoreError, match=r"can't be written as JSON: .*kl"):
        recommit(run, tmp_path, msgspec.structs.replace(run.manifest, fidelity=not_a_number))
    metadata = msgspec.structs.replace(run.manifest.prompt, metadata={"model": object()})
    with pytest.raises(StoreError, match=r"can't be written as JSON: .*object"):
        recommit(run, tmp_path, msgspec.structs.replace(run.manifest, prompt=metadata))
    assert names_in(tmp_path) == []


def recommit(run, store, manifest):
    """Write the run's tables again, with another manifest."""
    with RunWriter(store) as writer:
        append_all(writer, run)
        return writer.commit(manifest)


def append_all(writer, run):
    for table in TABLES.values():
        frame = pl.read_parquet(run.path / table.file, hive_partitioning=False)
        for part in frame.partition_by("layer") if table.by_layer else [frame]:
            writer.append(table.name, {name: part[name].to_list() for name in part.columns})


def test_appending_again_gives_the_same_bytes(tmp_path, run):
    again = recommit(run, tmp_path, run.manifest)
    assert again.manifest.files == run.manifest.files
    assert again.id != run.id


def test_a_restarted_writer_commits_what_came_after_alone(tmp_path, run):
    with RunWriter(tmp_path) as writer:
        id = writer.run
        for layer in (0, 1):
            writer.append("edges", {"layer": layer, **EDGES})
        writer.restart()
        append_all(writer, run)
        again = writer.commit(run.manifest)
    assert again.id == id
    assert again.manifest.files == run.manifest.files
    assert names_in(again.path) == names_in(run.path)


def test_layers_come_once_each_and_in_order(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.append("edges", {"layer": 1, **EDGES})
        for layer in (1, 0):
            with pytest.raises(StoreError, match=f"edges: layer {layer} comes after layer 1"):
                writer.append("edges", {"layer": layer, **EDGES})
        columns = {name: values * 2 for name, values in EDGES.items()}
        with pytest.raises(StoreError, match="one call holds layers 2 to 3; append one layer at a time"):
            writer.append("edges", {"layer": [2, 3], **columns})
        with pytest.raises(StoreError, match="There is no table 'edge'; a run has edges, target_edges"):
            writer.append("edge", {})


def test_a_writer_writes_once(tmp_path, run):
    writer = RunWriter(tmp_path)
    with pytest.raises(StoreError, match="isn't open: use it as `with RunWriter"):
        writer.append("edges", {"layer": 0, **EDGES})
    with writer, pytest.raises(StoreError, match="already open"):
        writer.__enter__()
    with writer, pytest.raises(StoreError, match="There is no table"):
        writer.append("nothing", {})


@pytest.mark.parametrize("below", ["", "store", "deep/store"])
def test_a_store_that_cannot_be_written_is_a_store_error(tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    store = tmp_path / "file" / below if below else tmp_path / "file"
    with (
        pytest.raises(StoreError, match=r"Opening the store .*file.* failed: .*Check that the folder is writable"),
        RunWriter(store),
    ):
        pass
    assert (tmp_path / "file").read_text() == "in the way"
    assert issubclass(StoreError, AttngraphError)


def test_the_final_rename_failing_is_a_store_error_and_leaves_nothing(tmp_path, run):
    with pytest.raises(StoreError, match=r"Committing .* failed"), RunWriter(tmp_path) as writer:
        in_the_way = tmp_path / f"run={writer.run}"
        in_the_way.write_text("a file")
        for table in TABLES.values():
            frame = pl.read_parquet(run.path / table.file, hive_partitioning=False)
            for part in frame.partition_by("layer") if table.by_layer else [frame]:
                writer.append(table.name, {name: part[name].to_list() for name in part.columns})
        writer.commit(run.manifest)
    assert names_in(tmp_path) == [in_the_way.name]


def test_a_living_partial_is_spared_and_a_dead_one_removed(tmp_path):
    with RunWriter(tmp_path) as living:
        living.append("edges", {"layer": 0, **EDGES})
        dead = tmp_path / ".partial-01ARZ3NDEKTSV4RRFFQ69G5FAV"
        dead.mkdir()
        (dead / "edges.parquet").write_bytes(b"PAR1")
        (tmp_path / ".partial-01BX5ZZKBKACTAV9WEVGEMMVRZ.lock").touch()
        run = write_random_run(tmp_path)
        assert names_in(tmp_path) == [f".partial-{living.run}", f".partial-{living.run}.lock", run.path.name]
        assert remove_abandoned(tmp_path) == ()
    assert names_in(tmp_path) == [run.path.name]


def test_two_claims_never_share_an_id(tmp_path):
    claims = [claim(tmp_path) for _ in range(20)]
    assert len({partial.folder for partial in claims}) == 20
    for partial in claims:
        partial.discard()
    assert names_in(tmp_path) == []


OWNER = """
import os, signal, sys
from attngraph.store import RunWriter
with RunWriter(sys.argv[1]) as writer:
    columns = {"head": [0], "query_block": [0], "key_block": [0], "mass": [1.0], "contribution": [1.0]}
    writer.append("edges", {"layer": 0, **columns})
    print(writer.run, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_partial_of_another_process_lives_as_long_as_its_owner(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdin=-1, stdout=-1, text=True)
    with owner:
        run = owner.stdout.readline().strip()
        assert remove_abandoned(tmp_path) == ()
        assert (tmp_path / f".partial-{run}" / "edges.parquet").exists()
        owner.communicate("die\n")
    assert owner.returncode < 0
    assert remove_abandoned(tmp_path) == (run,)
    assert names_in(tmp_path) == []


def test_the_first_run_of_a_store_makes_it(tmp_path):
    run = write_random_run(tmp_path / "a" / "b")
    assert open_store(tmp_path / "a" / "b").run(run.id).manifest == run.manifest
