"""`attngraph anchors` and `attngraph compare`: their documents, tables and refusals."""

from __future__ import annotations

import io
import json

import polars as pl
import pytest

import attngraph as ag
from attngraph.testing import write_random_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    metadata = {"categories": ["plan", "check"] * 10, "importance": [float(index % 7) for index in range(20)]}
    return write_random_run(
        tmp_path_factory.mktemp("anchors"), blocks=20, sentences=20, receivers=[(1, 1)], metadata=metadata
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        write_random_run(folder, blocks=12, budget=5, model="plain", seed=seed)
        write_random_run(folder, blocks=12, budget=5, model="sharp", seed=seed + 5, sharpness=4)
    return folder


def test_anchors_json_is_the_librarys(command, run):
    document = json.loads(command("anchors", run.path, "--top", 2, "--json").stdout)
    found = ag.anchors(run, top=2)
    assert document["receiver_heads"] == [list(head) for head in found.receiver_heads]
    assert document["sentences"] == found.to_polars().to_dicts()
    assert {"sentence", "score", "category"} <= set(document["sentences"][0])
    assert document["settings"] == {"proximity": 4, "depth_control": False, "top": 2, "normalise": "recorded"}
    assert document["categories"] == ag.category_profile(found).to_dicts()
    assert document["importance"]["spearman"] == ag.importance_correlation(found).spearman
    assert (document["agreement"], document["dropped_source"]) == (None, "estimated")


def test_anchors_against_a_reference_and_as_tables(command, run, tmp_path):
    result = command("anchors", run.path, "--reference", run.path, "--depth-control", "--normalise", "dense", "--json")
    assert json.loads(result.stdout)["agreement"]["overlap"] == 1.0
    shown = command("anchors", run.path, "--top", 1, "--reference", run.path).stdout
    assert "1 receiver heads: 1.1" in shown
    assert "importance: ρ" in shown
    assert "with the reference: ρ 1.00" in shown
    table = pl.read_csv(io.StringIO(command("anchors", run.path, "--format", "csv").stdout))
    assert len(table) == 20
    command("anchors", run.path, "-o", tmp_path / "anchors.parquet")
    assert pl.read_parquet(tmp_path / "anchors.parquet").columns == table.columns


def test_sentences_without_labels_are_scored(command, tmp_path):
    run = write_random_run(tmp_path, sentences=10)
    document = json.loads(command("anchors", run.path, "--json").stdout)
    assert (document["categories"], document["importance"]) == (None, None)
    assert document["sentences"][0]["category"] is None
    assert "no spans sentence:N" in command("anchors", write_random_run(tmp_path).path).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top", "0"), "top=0 must be at least 1"),
        (("--proximity", "18"), "20 sentences, of which 2 are followed by others"),
        (("--reference", "nowhere"), "There is no run at nowhere"),
        (("-o", "table.txt"), "is not .parquet or .csv"),
    ],
)
def test_anchors_that_are_refused(command, run, arguments, message):
    result = command("anchors", run.path, *arguments, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr


def test_compare_json_is_the_librarys(command, store):
    flags = ("--by", "model", "--bins", 3, "--permutations", 99)
    document = json.loads(command("compare", store, *flags, "--json").stdout)
    found = ag.compare(ag.open_store(store), bins=3, permutations=99)
    assert document == {"store": str(store), **json.loads(json.dumps(found.to_dict()))}
    assert "plain and sharp: distance" in command("compare", store, *flags).stdout
    written = command("compare", store, *flags, "--of", "profiles", "--format", "csv").stdout
    assert pl.read_csv(io.StringIO(written)).columns == found.profiles.columns


def test_compare_draws_its_figure(command, store, tmp_path):
    pytest.importorskip("matplotlib")
    flags = ("--bins", 2, "--permutations", 19, "--source", "none")
    result = command("compare", store, *flags, "--figure", tmp_path / "models.png", "--json")
    assert json.loads(result.stdout)["bins"] == 2
    assert "retrieval" not in json.loads(result.stdout)["scores"]
    assert (tmp_path / "models.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "bins=5 of depth for 3 layers"),
        (("--bins", "3", "--permutations", "9"), "permutations=9"),
        (("--figure", "models.doc"), "models.doc must end in .png, .svg, .pdf"),
        (("--by", "task", "--bins", "3"), "All 6 runs are of one task (needle)"),
        (("--bins", "3", "--source", "nadel"), "Spans: needle, question, sink"),
    ],
)
def test_comparisons_that_are_refused(command, store, arguments, message):
    result = command("compare", store, *arguments, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
