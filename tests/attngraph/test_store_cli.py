"""`attngraph ls` and `attngraph verify`: the table for people, the document for programs."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from attngraph.cli.ls import ls
from attngraph.cli.verify import verify
from attngraph.errors import IntegrityError, RunNotFoundError, StoreError
from attngraph.testing import write_random_run


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(ls)
    app.command()(verify)
    return app


@pytest.fixture
def store(tmp_path):
    for seed in (0, 1):
        write_random_run(tmp_path / "runs", seed=seed)
    return tmp_path / "runs"


def invoke(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_ls_lists_the_runs(app, store):
    result = invoke(app, "ls", store)
    assert result.exit_code == 0
    assert "2 runs" in result.output
    assert all(path.name.removeprefix("run=") in result.output for path in store.iterdir())
    document = json.loads(invoke(app, "ls", store, "--json").stdout)
    assert document["store"] == str(store)
    assert [run["path"] for run in document["runs"]] == sorted(map(str, store.iterdir()))
    assert document["runs"][0]["next_tokens_match"] is True


def test_ls_of_an_empty_store_and_of_none(app, tmp_path):
    assert json.loads(invoke(app, "ls", tmp_path, "--json").stdout)["runs"] == []
    assert isinstance(invoke(app, "ls", tmp_path / "none").exception, StoreError)


def test_verify_of_a_run_and_of_a_store(app, store):
    run = min(store.iterdir())
    assert json.loads(invoke(app, "verify", run, "--json").stdout)["ok"] is True
    document = json.loads(invoke(app, "verify", store, "--json").stdout)
    assert (document["ok"], document["problems"], len(document["runs"])) == (True, [], 2)
    assert invoke(app, "verify", store).output.count("  ok") == 2


def test_verify_prints_the_problems_and_then_fails(app, store):
    run = min(store.iterdir())
    (run / "rows.parquet").unlink()
    for path in (run, store):
        result = invoke(app, "verify", path, "--json")
        document = json.loads(result.stdout)
        assert document["ok"] is False
        assert document["problems"] == [f"{run.name}: rows.parquet is missing"]
        assert isinstance(result.exception, IntegrityError)
        assert "1 problem in" in str(result.exception) and "rows.parquet is missing" in str(result.exception)
    assert "DAMAGED\n  rows.parquet is missing" in invoke(app, "verify", run).output


def test_verify_of_nothing(app, tmp_path):
    assert isinstance(invoke(app, "verify", tmp_path / "none").exception, RunNotFoundError)
    assert "holds no runs" in invoke(app, "verify", tmp_path).output


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_help_has_an_example(app, command):
    assert f"attngraph {command} runs" in invoke(app, command, "--help").output
