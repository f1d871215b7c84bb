"""Every check of a run's integrity can fail: runs are damaged in one way each, hashes made right."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attngraph.errors import RunNotFoundError, StoreError
from attngraph.store import TABLES, verify_run, verify_store
from attngraph.store.writer import sha256_of
from attngraph.testing import write_random_run

TARGETS = (40, 124)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("store"), layers=2, heads=2, blocks=8, budget=4, targets=TARGETS)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.path, tmp_path / run.path.name)


def edit_manifest(folder, edit):
    document = json.loads((folder / "run.json").read_bytes())
    edit(document)
    (folder / "run.json").write_text(json.dumps(document))


def rewrite(folder, name, rows, schema=None):
    """Write a table's row groups as attngraph does, and its hash and counts into the manifest."""
    table = TABLES[name]
    path = folder / table.file
    with pq.ParquetWriter(path, schema or table.arrow_schema(), **table.writer_options()) as writer:
        for group in rows:
            writer.write_table(group, row_group_size=max(group.num_rows, 1))

    def describe(document):
        count = sum(group.num_rows for group in rows)
        old = document["files"][table.file]
        document["cost"]["run_bytes"] += path.stat().st_size - old["bytes"]
        for key in ("edges", "target_edges"):
            document["cost"][key] += (count - old["rows"]) * (key == name)
        old.update(bytes=path.stat().st_size, rows=count, sha256=sha256_of(path))

    edit_manifest(folder, describe)


def row_groups(folder, name):
    with pq.ParquetFile(folder / TABLES[name].file) as file:
        return [file.read_row_group(group) for group in range(file.num_row_groups)]


def damage(folder, name, change, group=-1):
    """Apply `change` to the columns (lists) of one row group, the last by default."""
    groups = row_groups(folder, name)
    columns = groups[group].to_pydict()
    change(columns)
    groups[group] = pa.table(columns, schema=TABLES[name].arrow_schema())
    rewrite(folder, name, groups)


def put(column, row, value):
    def change(columns):
        columns[column][row] = value

    return change


def drop(row):
    def change(columns):
        for values in columns.values():
            del values[row]

    return change


def repeat(row):
    def change(columns):
        for values in columns.values():
            values.insert(row, values[row])

    return change


def swap(first, second):
    def change(columns):
        for values in columns.values():
            values[first], values[second] = values[second], values[first]

    return change


def test_a_run_as_written_is_in_order(run):
    verification = verify_run(run.path)
    assert (verification.ok, verification.problems, verification.run) == (True, (), run.id)
    assert set(verification.files) == {table.file for table in TABLES.values()}


def test_rewriting_alone_is_no_damage(copy):
    for name in TABLES:
        rewrite(copy, name, row_groups(copy, name))
    assert verify_run(copy).problems == ()


@pytest.mark.parametrize(
    ("table", "change", "problem"),
    [
        (
            "edges",
            swap(0, 5),
            r"edges\.parquet: layer 1: rows are not sorted by layer, query_block, head, key_block",
        ),
        ("edges", repeat(4), r"edges\.parquet: layer 1: rows are repeated"),
        ("edges", put("head", -1, 2), r"edges\.parquet: layer 1: head above 1 in 1 of"),
        ("edges", put("query_block", -1, 8), r"edges\.parquet: layer 1: query_block above 7"),
        ("edges", put("key_block", -1, 8), r"edges\.parquet: layer 1: key_block above 7"),
        (
            "edges",
            put("key_block", 0, 1),
            r"edges\.parquet: layer 1: key_block above query_block in 1 of .* row 0",
        ),
        (
            "edges",
            put("mass", 0, 0.99),
            r"edges\.parquet: layer 1: masses of 1 of 16 rows .* first 0\.99 for head 0 and query block 0",
        ),
        ("edges", put("mass", 0, -1.0), r"edges\.parquet: layer 1: mass negative or not finite in 1"),
        ("edges", put("mass", 0, float("nan")), r"edges\.parquet: layer 1: mass negative or not finite in 1"),
        (
            "edges",
            put("contribution", 3, float("inf")),
            r"layer 1: contribution negative or not finite .* row 3",
        ),
        ("edges", drop(0), r"rows\.parquet: layer 1: kept unlike the number of edges in 1 of 16"),
        ("target_edges", swap(0, 1), r"target_edges\.parquet: layer 1: rows are not sorted"),
        ("target_edges", repeat(0), r"target_edges\.parquet: layer 1: rows are repeated"),
        ("target_edges", put("head", -1, 9), r"target_edges\.parquet: layer 1: head above 1"),
        ("target_edges", put("target", -1, 125), r"target outside the manifest's targets \(40, 124\) in 1"),
        ("target_edges", put("key_block", 2, 3), r"key_block above the target's block in 1"),
        (
            "target_edges",
            put("mass", -1, 2.0),
            r"target_edges\.parquet: layer 1: masses of 1 of 4 rows .* head 1 and target 124",
        ),
        (
            "target_edges",
            put("contribution", 0, -2.0),
            r"target_edges\.parquet: layer 1: contribution negative",
        ),
        ("rows", put("kept", 3, 9), r"rows\.parquet: layer 1: kept unlike the number of edges in 1"),
        ("rows", put("kept", 3, 5), r"rows\.parquet: layer 1: kept above the budget of 4 in 1"),
        ("rows", put("kept_mass", -1, 1.5), r"rows\.parquet: layer 1: kept_mass outside 0 to 1 in 1"),
        (
            "rows",
            put("kept_mass_estimate", 0, -0.5),
            r"rows\.parquet: layer 1: kept_mass_estimate outside 0 to 1",
        ),
        ("rows", put("head", -1, 2), r"rows\.parquet: layer 1: head above 1"),
        (
            "rows",
            drop(2),
            r"rows\.parquet: layer 1: 15 rows instead of one for each of 2 heads and 8 query blocks",
        ),
        ("rows", swap(0, 1), r"rows\.parquet: layer 1: rows are not sorted by layer, query_block, head"),
        ("target_rows", put("kept", 1, 9), r"target_rows\.parquet: layer 1: kept unlike the number of edges in 1"),
        ("target_rows", put("kept_mass", 0, -0.5), r"target_rows\.parquet: layer 1: kept_mass outside 0 to 1"),
        (
            "target_rows",
            put("kept_mass", 0, None),
            r"target_rows\.parquet: layer 1: kept_mass null with audit='targets'",
        ),
        ("target_rows", put("head", -1, 2), r"target_rows\.parquet: layer 1: head above 1"),
        (
            "target_rows",
            put("target", -1, 125),
            r"target_rows\.parquet: layer 1: 4 rows instead of one for each of 2 heads and 2 targets",
        ),
        ("target_rows", swap(0, 1), r"target_rows\.parquet: layer 1: rows are not sorted by layer, target, head"),
        ("shares", put("residual", 0, 0.0), r"shares\.parquet: layer 1: residual \+ attention unlike 1 in 1"),
        ("shares", put("attention", 0, 1.5), r"shares\.parquet: layer 1: attention outside 0 to 1"),
        ("shares", put("mlp", 0, float("nan")), r"shares\.parquet: layer 1: mlp outside 0 to 1"),
        ("shares", put("position", 0, 124), r"shares\.parquet: layer 1: both or none of block and position"),
        ("shares", drop(3), r"shares\.parquet: layer 1: rows of 7 blocks instead of one for each of 8"),
        (
            "shares",
            drop(-1),
            r"shares\.parquet: layer 1: rows of 1 targets instead of one for each of \(40, 124\)",
        ),
        ("shares", swap(0, 1), r"shares\.parquet: layer 1: rows are not sorted"),
        ("span_edges", put("query_span", -1, 3), r"span_edges\.parquet: layer 1: query_span above 2"),
        ("span_edges", put("mass", 0, -1.0), r"span_edges\.parquet: layer 1: mass negative"),
        ("span_edges", repeat(0), r"span_edges\.parquet: layer 1: rows are repeated"),
        ("tokens", put("position", 0, 1), r"tokens\.parquet: positions are not 0 to 124"),
        ("tokens", put("block", 20, 0), r"tokens\.parquet: blocks are not position // 16"),
        (
            "blocks",
            put("token_end", -1, 128),
            r"blocks\.parquet: token_end doesn't cut 125 tokens into blocks of 16",
        ),
        ("blocks", put("block", 0, 3), r"blocks\.parquet: block doesn't cut"),
        ("spans", put("name", 0, "hay"), r"spans\.parquet: spans unlike the manifest's"),
        ("spans", put("token_end", 0, 999), r"spans\.parquet: span empty or outside the prompt's 125 tokens"),
        ("spans", put("token_end", 0, 0), r"spans\.parquet: span empty or outside"),
    ],
)
def test_wrong_values_are_found(copy, table, change, problem):
    damage(copy, table, change)
    verification = verify_run(copy)
    assert not verification.ok
    assert any(re.search(problem, found) for found in verification.problems), verification.problems


def change_all(folder, name, change):
    for group in range(2):
        damage(folder, name, change, group)


def scale_masses(factor):
    def change(columns):
        columns["mass"] = [factor * mass for mass in columns["mass"]]

    return change


def test_with_sinks_masses_sum_to_1_at_most(copy):
    edit_manifest(copy, lambda document: document["model"].update(sinks=True))
    for name in ("edges", "target_edges"):
        change_all(copy, name, scale_masses(0.6))
    assert verify_run(copy).problems == ()
    for name, row in (("edges", "query block 0"), ("target_edges", "target 40")):
        damage(copy, name, put("mass", 0, 1.5))
        assert any(f"{name}.parquet: layer 1: masses of 1 of" in problem for problem in verify_run(copy).problems)
        assert any(f"sum to more than 1, first 1.5 for head 0 and {row}" in p for p in verify_run(copy).problems) == (
            name == "edges"
        )


def test_beside_a_dense_pass_masses_sum_to_the_kept_mass(copy):
    edit_manifest(copy, lambda document: document["config"].update(forward="dense", audit="none"))
    assert any("kept_mass null" in problem for problem in verify_run(copy).problems)
    for name, rows in (("edges", "rows"), ("target_edges", "target_rows")):
        change_all(copy, name, scale_masses(0.6))
        change_all(copy, rows, lambda columns: columns.update(kept_mass=[0.6] * len(columns["kept"])))
    assert verify_run(copy).problems == ()
    for name in ("edges", "target_edges"):
        damage(copy, name, put("mass", 0, 0.9))
        assert any(
            re.search(rf"{name}.parquet: layer 1: masses of 1 of \d+ rows don't sum to their kept mass", problem)
            for problem in verify_run(copy).problems
        )


def missing(folder, name):
    (folder / name).unlink()


def truncated(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])


def flipped(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", [table.file for table in TABLES.values()])
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (missing, "is missing"),
        (truncated, "bytes instead of"),
        (flipped, "its bytes were altered, the SHA-256"),
    ],
)
def test_damaged_files_are_found(copy, name, harm, problem):
    harm(copy, name)
    (found,) = verify_run(copy).problems
    assert found.startswith(name)
    assert problem in found


def test_all_damaged_files_are_named(copy):
    missing(copy, "edges.parquet")
    truncated(copy, "rows.parquet")
    flipped(copy, "spans.parquet")
    problems = verify_run(copy).problems
    assert sorted(problem.split(".")[0] for problem in problems) == ["edges", "rows", "spans"]


def test_a_file_that_is_not_parquet_is_found(copy):
    (copy / "edges.parquet").write_bytes(b"not parquet at all")

    def describe(document):
        info = document["files"]["edges.parquet"]
        document["cost"]["run_bytes"] += 18 - info["bytes"]
        info.update(bytes=18, sha256=sha256_of(copy / "edges.parquet"))

    edit_manifest(copy, describe)
    (problem,) = verify_run(copy).problems
    assert "edges.parquet can't be read" in problem


def test_a_page_that_contradicts_its_checksum_is_found(copy):
    path = copy / "edges.parquet"
    chunk = pq.read_metadata(path).row_group(1).column(4)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 2] ^= 1
    path.write_bytes(content)
    edit_manifest(copy, lambda document: document["files"]["edges.parquet"].update(sha256=sha256_of(path)))
    (problem,) = verify_run(copy).problems
    assert "edges.parquet can't be read" in problem


def test_a_wrong_schema_is_found(copy):
    groups = row_groups(copy, "rows")
    schema = TABLES["rows"].arrow_schema()
    wide = schema.set(3, pa.field("kept", pa.uint32(), nullable=False))
    rewrite(copy, "rows", [group.cast(wide) for group in groups], schema=wide)
    assert any(
        "rows.parquet: its columns are layer uint16, head uint16, query_block uint32, kept uint32," in found
        for found in verify_run(copy).problems
    )
    rewrite(copy, "rows", groups, schema=schema.with_metadata(TABLES["edges"].arrow_schema().metadata))
    assert verify_run(copy).problems == ("rows.parquet: its metadata doesn't say that it is the table 'rows'",)
    rewrite(
        copy,
        "rows",
        [group.replace_schema_metadata(None) for group in groups],
        schema=schema.remove_metadata(),
    )
    assert verify_run(copy).problems == ("rows.parquet: its metadata doesn't say that it is the table 'rows'",)


@pytest.mark.parametrize(
    ("regroup", "problem"),
    [
        (lambda groups: groups[::-1], "row groups are not one per layer in ascending order"),
        (lambda groups: [pa.concat_tables(groups)], "row groups are not one per layer in ascending order"),
        (
            lambda groups: [groups[0], groups[1].slice(0, 3), groups[1].slice(3)],
            "row groups are not one per layer",
        ),
        (lambda groups: groups[:1], r"layers [1] are missing"),
        (
            lambda groups: [
                *groups,
                groups[0].set_column(0, groups[0].schema[0], pa.array(np.full(groups[0].num_rows, 2, np.uint16))),
            ],
            "layers [2] are not in the model's 2",
        ),
    ],
)
def test_row_groups_must_be_the_layers(copy, regroup, problem):
    rewrite(copy, "edges", regroup(row_groups(copy, "edges")))
    assert any(f"edges.parquet: {problem}" in found or problem in found for found in verify_run(copy).problems)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            lambda document: document["cost"].update(edges=1),
            "run.json: cost.edges is 1, but the files listed hold 104",
        ),
        (lambda document: document["cost"].update(target_edges=1), "run.json: cost.target_edges is 1"),
        (lambda document: document["cost"].update(run_bytes=1), "run.json: cost.run_bytes is 1"),
        (lambda document: document["prompt"].update(tokens=126), "run.json: prompt.tokens is 126"),
        (lambda document: document["prompt"].update(blocks=9), "run.json: prompt.blocks is 9"),
        (lambda document: document["prompt"].update(spans=[]), "run.json: prompt.spans is 0"),
        (lambda document: document["files"].pop("rows.parquet"), "rows.parquet is not in the manifest"),
        (
            lambda document: document["files"]["rows.parquet"].update(rows=7),
            "rows.parquet: it has 32 rows instead of 7",
        ),
        (
            lambda document: document["files"]["rows.parquet"].update(sha256="0"),
            "rows.parquet: its bytes were altered",
        ),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_found(copy, edit, problem):
    edit_manifest(copy, edit)
    assert any(problem in found for found in verify_run(copy).problems), verify_run(copy).problems


def test_a_renamed_run_is_found(copy):
    renamed = copy.rename(copy.parent / "run=01ARZ3NDEKTSV4RRFFQ69G5FAV")
    (problem,) = verify_run(renamed).problems
    assert "the folder is named run=01ARZ3NDEKTSV4RRFFQ69G5FAV, but it holds run" in problem


def test_there_must_be_a_run(tmp_path):
    with pytest.raises(RunNotFoundError, match="There is no run at"):
        verify_run(tmp_path / "nothing")
    with pytest.raises(StoreError, match="There is no store at"):
        verify_store(tmp_path / "nothing")


def test_a_store_is_verified_run_by_run(copy):
    whole = write_random_run(copy.parent)
    (copy / "run.json").unlink()
    damaged, fine = verify_store(copy.parent)
    assert fine.run == whole.id and fine.ok
    assert damaged.path == copy and "it has no run.json" in damaged.problems[0]
