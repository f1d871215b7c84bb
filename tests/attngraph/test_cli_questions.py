"""`attngraph influence` and `attngraph throughput`, and what every question refuses."""

from __future__ import annotations

import json
import re

import pytest

import attngraph as ag
from attngraph.testing import write_random_run


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


@pytest.mark.parametrize("question", ["influence", "throughput"])
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
    ],
)
def test_questions_without_an_answer_are_refused(command, run, arguments, message):
    question, *flags = arguments
    result = command(question, run.path, *flags, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("question", ["routes", "influence", "throughput", "verify"])
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


@pytest.mark.parametrize("name", ["demo", "capture", "routes", "influence", "throughput", "ls", "verify"])
def test_every_command_has_help_with_an_example_and_json(command, name):
    result = command(name, "--help")
    assert result.code == 0
    assert f"Example: attngraph {name}" in result.stdout
    assert "--json" in result.stdout
