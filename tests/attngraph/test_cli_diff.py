"""`attngraph diff` on a store of random runs."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from attngraph.testing import write_random_run
from attngraph_analyses.run_features import KEYS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for seed in range(8):
        write_random_run(folder, blocks=12, success=seed % 2 == 0, metadata={"half": seed // 4}, seed=seed)
    return folder


def test_one_json_document(command, store: Path):
    done = command("diff", store, "--by", "outcome", "--json", "--top", 5, "-k", 2)
    assert done.code == 0
    document = json.loads(done.stdout)
    assert document["store"] == str(store)
    assert document["groups"] == ["success", "failure"]
    assert document["runs"] == [{"stratum": "needle, random, 256, 16×4 stream sparse", "first": 4, "second": 4}]
    assert document["exact"] is True
    assert document["permutations"] == 69
    assert len(document["features"]) == 5
    assert set(KEYS) < set(document["features"][0])
    assert document["tested"] > 100
    assert document["significant"]["p_family"] <= document["tested"]
    assert document["not_covered"]
    assert 0 < document["completeness"] <= 1
    assert document["completeness_source"] == "estimated"
    assert len(document["completeness_by_group"]) == 2
    assert {"components", "routes", "network", "policy", "strata"} <= set(document)


def test_the_table_for_people_and_for_programs(command, store: Path, tmp_path: Path):
    done = command("diff", store, "--permutations", 19, "-k", 1)
    assert done.code == 0
    assert "outcome: 4 runs 'success' and 4 runs 'failure' in 1 strata" in done.stdout
    assert "Components of contribution:" in done.stdout
    assert "takes a knockout" in " ".join(done.stdout.split())
    file = tmp_path / "diff.parquet"
    assert command("diff", store, "--by", "half", "--group", 1, "--group", 0, "-k", 1, "-o", file).code == 0
    table = pl.read_parquet(file)
    assert len(table) > 100
    assert table["p_family"].is_sorted()


def test_refusals_end_with_code_2(command, store: Path, tmp_path: Path):
    for arguments, message in (
        ((store, "--group", "success"), "--group was given 1 times"),
        ((store, "--by", "colour"), "have no field 'colour'"),
        ((store, "--model", "gpt"), "There are no runs to compare"),
        ((store, "--task", "multikey"), "There are no runs to compare"),
        ((tmp_path / "nowhere",), "There is no store at"),
    ):
        done = command("diff", *arguments)
        assert done.code == 2
        assert message in done.stderr
