"""`attngraph knockout`: its document, its table, its files, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

import attngraph as ag
from tests.attngraph.conftest import save_tiny_model


@pytest.fixture(scope="module")
def run_of_saved_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ag.Run, Any]:
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    lm = ag.load_model(str(folder))
    text = "the grass is green. the number is 4711. " * 8 + "the number is"
    prompt = ag.Prompt.from_text(lm.tokenizer, text, {"needle": (20, 40)}, answer=" 4711")
    return ag.capture(
        lm, prompt, ag.StreamConfig(block_size=16), store=tmp_path_factory.mktemp("store"), progress=False
    ), folder


def test_the_command_prints_one_document(command: Any, run_of_saved_model: Any) -> None:
    run, folder = run_of_saved_model
    flags = ("--edges", 4, "--draws", 2, "--model", folder)
    document = json.loads(command("knockout", run.path, *flags, "--curves", "--json").stdout)
    assert document["run"] == str(run.path)
    assert set(document["controls"]) == {"mass_matched", "random", "distance_matched"}
    found = ag.knockout(ag.load_model(str(folder)), run, 4, draws=2, progress=False)
    assert document["base"] == found.base
    assert document["knocked_out"] == found.knocked_out
    assert document["controls"]["random"] == found.controls["random"].median
    assert document["edges"] == found.edges.to_dicts()
    assert document["policy"]["residual"] == "measured"
    assert [point["edges"] for point in document["curves"]["necessity"]["points"]][:3] == [1, 2, 5]
    assert document["curves"]["sufficiency"]["points"][0]["edges"] == 0


def test_the_commands_table_and_files(command: Any, run_of_saved_model: Any, tmp_path: Any) -> None:
    run, folder = run_of_saved_model
    flags = ("--edges", 4, "--draws", 2, "--model", folder, "--control", "random", "--forward", "dense")
    shown = command("knockout", run.path, *flags).stdout
    assert "4 edges out of the dense pass" in shown
    assert "nothing" in shown
    assert "random" in shown
    assert "mass matched" not in shown
    command("knockout", run.path, *flags, "-o", tmp_path / "passes.parquet")
    assert pl.read_parquet(tmp_path / "passes.parquet")["removed"].to_list() == ["base", "edges", "random", "random"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--edges", 0), "edges=0 must be at least 1"),
        (("--source", "nadel"), "'nadel' names nothing in this graph"),
        (("--control", "mass"), "The control 'mass' is not one of"),
        (("-o", "passes.txt"), "'.txt' is not .parquet or .csv"),
    ],
)
def test_the_command_refuses_by_name(command: Any, run_of_saved_model: Any, flags: Any, message: str) -> None:
    run, folder = run_of_saved_model
    result = command("knockout", run.path, "--model", folder, *flags, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr


def test_the_command_refuses_another_model(command: Any, run_of_saved_model: Any, tmp_path: Any) -> None:
    run, _ = run_of_saved_model
    other = save_tiny_model(tmp_path / "other", vocabulary=300)
    result = command("knockout", run.path, "--model", other)
    assert result.code == 2
    assert "the run's edges mean nothing there" in result.stderr
