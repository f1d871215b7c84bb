"""The commands that question a graph: their documents and tables, where these go, and what is refused."""

from __future__ import annotations

import io
import json
import re

import polars as pl
import pytest

import attngraph as ag
from attngraph.testing import write_random_run

QUESTIONS = ("routes", "influence", "throughput", "bottlenecks", "cuts")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("store"), layers=3, heads=2, blocks=8, block_size=16)


def test_influence_json_has_every_block(command, run):
    document = json.loads(command("influence", run.path, "--target", "output", "--json").stdout)
    found = ag.influence(run.graph(), "output")
    assert (document["completeness"], document["completeness_source"]) == (found.completeness, "estimated")
    assert [block["block"] for block in document["blocks"]] == list(range(8))
    assert set(document["blocks"][0]) == {"block", "influence", "null", "excess", "spans", "rank"}
    for name in ("influence", "null", "excess", "rank"):
        assert [block[name] for block in document["blocks"]] == getattr(found, name).tolist()
    assert document["blocks"][0]["spans"] == ["sink"]


def test_influence_shows_the_best_block_first(command, run):
    lines = command("influence", run.path).stdout.splitlines()
    best = int(ag.influence(run.graph()).rank.argmin())
    first = next(line for line in lines if re.match(r"│\s+0 │", line))
    assert re.match(rf"│\s+0 │\s+{best} │", first)


def test_throughput_json_is_the_best_edges(command, run):
    document = json.loads(command("throughput", run.path, "--source", "needle", "--top", 5, "--json").stdout)
    found = ag.throughput(run.graph(), "needle", "output")
    assert document["total"] == found.total
    assert (document["completeness"], document["completeness_source"]) == (found.completeness, "estimated")
    assert document["edges"] == found.to_polars().head(5).to_dicts()
    assert set(document["edges"][0]) == {"layer", "head", "key_block", "query_block", "target", "throughput"}
    assert "needle → output" in command("throughput", run.path).stdout


@pytest.mark.parametrize("question", ["influence", "throughput", "bottlenecks", "cuts"])
def test_policies_reach_the_graph(command, run, question):
    flags = ("--weight", "mass", "--residual", "0.3", "--heads", "max", "--sink", "exclude")
    document = json.loads(command(question, run.path, *flags, "--json").stdout)
    assert document["policy"] == {"weight": "mass", "residual": 0.3, "heads": "max", "sink": "exclude"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("routes", "--source", "nadel"), "'nadel' names nothing in this graph. Spans: needle, question, sink"),
        (("throughput", "--source", "block:8"), "give a number from 0 to 7"),
        (("influence", "--target", "nadel"), "Spans: needle, question, sink"),
        (("influence", "--target", "token:3"), "Targets: token:124"),
        (("routes", "--source", "output", "--target", "block:1"), "No path of positive weight leads from 'output'"),
        (("throughput", "--source", "output", "--target", "block:1"), "No path of positive weight"),
        (("throughput", "--top", "0"), "top=0 must be at least 1"),
        (("influence", "--residual", "third"), "residual='third'"),
        (("bottlenecks", "--source", "nadel"), "Spans: needle, question, sink"),
        (("bottlenecks", "--order", "3"), "order=3 is not 1"),
        (("bottlenecks", "--source", "output", "--target", "block:1"), "No path of positive weight"),
        (("cuts", "--threshold", "1"), "threshold=1 of the walks"),
        (("cuts", "--threshold", "2"), "threshold=2.0 is a share"),
        (("cuts", "--stream", "cut"), "Residual steps have no mass"),
        (
            ("throughput", "--source", "block:1", "--target", "block:1", "--null", "targets"),
            "only the sink lies before it",
        ),
        (("heads", "--source", "nadel"), "Spans: needle, question, sink"),
    ],
)
def test_questions_without_an_answer_are_refused(command, run, arguments, message):
    question, *flags = arguments
    result = command(question, run.path, *flags, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("question", [*QUESTIONS, "heads", "verify"])
def test_damaged_runs_are_refused(command, tmp_path, question):
    missing, short, altered = (write_random_run(tmp_path, seed=seed).path for seed in range(3))
    (missing / "shares.parquet").unlink()
    content = (short / "edges.parquet").read_bytes()
    (short / "edges.parquet").write_bytes(content[:-10])
    changed = bytearray((altered / "edges.parquet").read_bytes())
    changed[100] ^= 1
    (altered / "edges.parquet").write_bytes(bytes(changed))
    for run, message in (
        (tmp_path / "run=none", "no"),
        (missing, "shares.parquet is missing"),
        (short, f"edges.parquet has {len(content) - 10} bytes instead of {len(content)}"),
    ):
        result = command(question, run)
        assert result.code == 2
        assert message in result.stderr
    result = command("verify", altered)
    assert result.code == 2
    assert "edges.parquet" in result.stderr


@pytest.mark.parametrize("name", ["demo", "capture", *QUESTIONS, "heads", "anchors", "compare", "ls", "verify"])
def test_every_command_has_help_with_an_example_and_json(command, name):
    result = command(name, "--help")
    assert result.code == 0
    assert f"Example: attngraph {name}" in result.stdout
    assert "--json" in result.stdout


def test_influence_is_ranked_against_the_null_that_was_asked_for(command, run):
    document = json.loads(command("influence", run.path, "--null", "targets", "--json").stdout)
    found = ag.influence(run.graph(), null="targets")
    assert document["null"] == "targets"
    assert [block["rank"] for block in document["blocks"]] == found.rank.tolist()


def test_bottlenecks_json_is_the_librarys(command, run):
    document = json.loads(command("bottlenecks", run.path, "--null", "uniform", "--json").stdout)
    assert document == {"run": str(run.path), **ag.bottlenecks(run.graph(), "needle", null="uniform").to_dict()}
    assert [level["level"] for level in document["levels"]] == [0, 1, 2, 3]
    assert document["bottleneck"]["width"] == min(level["width"] for level in document["levels"][1:-1])
    assert document["null"]["ratio"] > 0
    assert "narrowest at level" in command("bottlenecks", run.path).stdout


@pytest.mark.parametrize("of", ["edges", "nodes", "blocks"])
def test_cuts_json_is_the_librarys(command, run, of):
    document = json.loads(command("cuts", run.path, "--of", of, "--capacity", "unit", "--json").stdout)
    found = ag.minimum_cut(run.graph(), "needle", of=of, capacity="unit")
    dominators = ag.dominators(run.graph(), "needle", threshold=found.threshold)
    assert document.pop("dominators") == {
        "blocks": dominators.block.tolist(), "nodes": dominators.to_polars().to_dicts()
    }  # fmt: skip
    assert document == {"run": str(run.path), **found.to_dict()}
    assert f"{len(found)} {of}" in command("cuts", run.path, "--of", of, "--capacity", "unit").stdout


@pytest.mark.parametrize("of", ["edges", "heads", "nodes"])
def test_throughput_lists_what_was_asked_for(command, run, of):
    found = ag.throughput(run.graph(), "needle", top=5, heads=True)
    frame = {"edges": found.to_polars, "heads": found.heads, "nodes": found.nodes}[of]()
    written = command("throughput", run.path, "--top", 5, "--of", of, "--format", "csv").stdout
    assert pl.read_csv(io.StringIO(written)).columns == frame.columns
    assert len(written.splitlines()) == len(frame) + 1
    assert f"{frame['throughput'][0]:.3g}" in command("throughput", run.path, "--top", 5, "--of", of).stdout


def test_heads_of_a_run_and_of_a_store(command, run):
    document = json.loads(command("heads", run.path, "--null", "uniform", "--json").stdout)
    found = ag.head_roles(run, null="uniform")
    assert document["heads"] == found.to_polars().to_dicts()
    assert (document["completeness"], document["completeness_source"]) == (found.completeness, "audited")
    assert {"layer", "head", "role", "retrieval"} <= set(document["heads"][0])
    shown = command("heads", run.path, "--null", "uniform").stdout
    assert "retrieval of needle at output" in shown
    assert f"of the target's rows: completeness {found.completeness:.3f} (audited)" in " ".join(shown.split())
    document = json.loads(command("heads", run.path.parent, "--null", "uniform", "--json").stdout)
    assert document["overlap"] == {"random": None}
    assert len(document["runs"]) == 1
    assert "mean overlap of the best 5: random –" in command("heads", run.path.parent, "--null", "uniform").stdout


@pytest.mark.parametrize("question", [*QUESTIONS, "heads"])
def test_tables_for_programs(command, run, tmp_path, question):
    null = ("--null", "uniform") if question == "heads" else ()
    parquet, csv = tmp_path / "answer.parquet", tmp_path / "answer.txt"
    result = command(question, run.path, *null, "-o", parquet)
    assert (result.code, result.stdout) == (0, "")
    assert result.stderr.startswith("Wrote ")
    result = command(question, run.path, *null, "--output", csv, "--format", "csv", "--json")
    assert json.loads(result.stdout)
    frame = pl.read_parquet(parquet)
    assert pl.read_csv(csv).columns == frame.columns
    assert csv.read_text() == command(question, run.path, *null, "--format", "csv").stdout
    assert len(csv.read_text().splitlines()) == len(frame) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "answer.xlsx"), "the ending '.xlsx' is not .parquet or .csv"),
        (("-o", "nowhere/answer.csv"), "there is no folder"),
        (("--format", "parquet"), "name a file with -o FILE"),
        (("--format", "csv", "--json"), "both go to stdout"),
    ],
)
def test_answers_that_cannot_be_delivered_are_refused(command, run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for question in ("influence", "heads"):
        result = command(question, run.path, *arguments)
        assert (result.code, result.stdout) == (2, "")
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
