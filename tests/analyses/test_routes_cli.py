"""`attngraph routes` on a run on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import attngraph as ag
from attngraph.cli.options import residual_of
from attngraph.cli.routes import routes
from attngraph.errors import AttngraphError, ConfigError, UnknownNodeError
from attngraph.store import Run
from attngraph.testing import write_random_run

APP = typer.Typer()
APP.command()(routes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_random_run(tmp_path_factory.mktemp("store"), layers=3, heads=2, blocks=8, block_size=16)


def output(*arguments: str | Path) -> str:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_json_is_the_routes_of_the_library(run: Run):
    document = json.loads(output(run.path, "--source", "needle", "--target", "output", "-k", "4", "--json"))
    assert document == {"run": str(run.path), **ag.routes(run.graph(), "needle", "output", 4).to_dict()}
    assert len(document["routes"]) == 4
    assert {"layer", "head", "key_block", "query_block", "target", "weight"} == set(document["routes"][0]["hops"][0])
    assert 0 < document["completeness"] < 1
    assert document["completeness_source"] == "estimated"


def test_policies_reach_the_graph(run: Run):
    flags = ("--weight", "mass", "--residual", "0.3", "--heads", "max", "--sink", "exclude")
    document = json.loads(output(run.path, *flags, "--json"))
    assert document["policy"] == {"weight": "mass", "residual": 0.3, "heads": "max", "sink": "exclude"}
    graph = run.graph(weight="mass", residual=0.3, heads="max", sink="exclude")
    assert document["routes"] == ag.routes(graph, "needle").to_dict()["routes"]


def test_other_kinds_of_routes(run: Run):
    document = json.loads(output(run.path, "--kind", "widest", "--distinct", "nodes", "--reuse", "0.5", "--json"))
    found = ag.routes(run.graph(), "needle", kind="widest", distinct="nodes", reuse=0.5)
    assert document["routes"] == found.to_dict()["routes"]
    assert document["routes"] != ag.routes(run.graph(), "needle").to_dict()["routes"]
    for flag, value in (("--kind", "longest"), ("--distinct", "heads"), ("--reuse", "2")):
        with pytest.raises(ConfigError, match=value):
            output(run.path, flag, value)


def test_the_table_shows_every_route(run: Run):
    text = output(run.path, "-k", "3")
    found = ag.routes(run.graph(), "needle", k=3)
    assert "needle → output" in text
    for route in found.routes:
        assert f"{route.weight:.3g}" in text
        assert f"—{route.hops[0].layer}.{route.hops[0].head}→" in text
    assert f"token {run.manifest.prompt.targets[-1]}" in text
    assert f"completeness {found.completeness:.3f} (estimated)" in text


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--source", "nadel"), UnknownNodeError, r"'nadel' names nothing in this graph\. Spans: needle"),
        (("--residual", "third"), ConfigError, r"residual='third' is not 'measured', 'half' or a number"),
        (("--weight", "logits"), ConfigError, r"weight='logits' is not one of contribution, mass, uniform"),
        (("-k", "0"), ConfigError, r"k=0 routes were asked for"),
    ],
)
def test_bad_input_raises_attngraphs_errors(
    run: Run, flags: tuple[str, ...], error: type[AttngraphError], message: str
):
    with pytest.raises(error, match=message):
        output(run.path, *flags)


def test_help_has_an_example():
    assert "attngraph routes runs/run=" in output("--help")


@pytest.mark.parametrize(("text", "residual"), [("half", "half"), ("0.3", 0.3), ("1", 1.0), ("measured", "measured")])
def test_residual_of(text: str, residual: str | float):
    assert residual_of(text) == residual
