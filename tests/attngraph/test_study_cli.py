"""`attngraph study` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import attngraph as ag
from tests.attngraph.study_helpers import study_file
from tests.attngraph.without_torch import WITHOUT_TORCH

MAIN = "from attngraph.cli import main; main()"


def test_run_status_and_summary(command, tiny_folder, tmp_path):
    file = study_file(tmp_path, tiny_folder)
    output = str(tmp_path / "runs" / "studies" / "tiny")
    before = json.loads(command("study", "status", file, "--json").stdout)
    assert (before["tasks"], before["done"], before["failed"], before["left"]) == (4, 0, 0, 4)
    assert before["groups"][0]["labels"] == {"model": str(tiny_folder), "task": "needle", "config": "budget=4"}

    result = command("study", "run", file, "--json")
    assert result.code == 0, result.stderr
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document == {
        "study": "tiny", "store": str(tmp_path / "runs"), "output": output, "tasks": 4,
        "done": 4, "failed": 0, "left": 0, "captured": 4, "retries": 0, "failed_tables": [],
    }  # fmt: skip
    shown = command("study", "run", file)
    assert shown.code == 0
    assert "tiny: 4 of 4 done, 0 failed, 0 left (0 captured now, 0 retries)" in shown.stdout

    status = command("study", "status", file)
    assert "4 of 4 done, 0 failed, 0 left" in status.stdout
    summary = json.loads(command("study", "summary", file, "--json").stdout)
    assert summary["output"] == output
    assert [one["table"] for one in summary["tables"]] == ["folders", "influence_rank", "runs"]
    printed = command("study", "summary", file).stdout
    assert "influence_rank" in printed and "budget=6" in printed
    assert f"{output}/tables/runs.parquet: 4 rows" in printed
    rows = json.loads(command("study", "summary", file, "--table", "runs", "--rows", 3, "--json").stdout)["rows"]
    assert [(row["seed"], row["config"]) for row in rows] == [(0, "budget=4"), (0, "budget=6"), (1, "budget=4")]
    assert command("study", "summary", file, "--table", "runs").code == 0


def test_failures_exit_with_1_and_say_where(command, tiny_folder, tmp_path, caplog):
    file = study_file(tmp_path, tiny_folder, analyses='[[analyses]]\nname = "routes"\nsource = "nadel"\n')
    result = command("study", "run", file, "--json")
    assert result.code == 1
    assert json.loads(result.stdout)["failed"] == 4
    assert caplog.text.count("failed at routes: UnknownNodeError: 'nadel' names nothing") == 4
    assert f"What failed is in {tmp_path / 'runs/studies/tiny/failures.jsonl'}" in result.stderr
    assert json.loads(command("study", "run", file, "--no-retry", "--json").stdout)["failed"] == 4


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("./gone", ("run", "study.toml"), "models, './gone': There is no folder"),
        ("./gone", ("status", "none.toml"), "none.toml can't be read"),
        ("./gone", ("summary", "study.toml"), "run the study first"),
        ("./gone", ("summary", "study.toml", "--rows", "0"), "Usage"),
        ("./gone", ("run", "study.toml", "--engine", "slurm"), "Usage"),
    ],
)
def test_refusals_exit_with_2(command, tmp_path, monkeypatch, model, arguments, message):
    monkeypatch.chdir(tmp_path)
    study_file(tmp_path, model)
    result = command("study", *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.slow
def test_status_and_summary_load_no_torch(tmp_path):
    file = study_file(tmp_path, "smollm2-135m")
    code = f"{WITHOUT_TORCH}\n{MAIN}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    status = subprocess.run(
        [sys.executable, "-c", code, "study", "status", str(file), "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (status.returncode, status.stderr) == (0, "")
    assert json.loads(status.stdout)["left"] == 4


@pytest.mark.slow
def test_an_interrupted_study_ends_with_130_and_goes_on(command, tiny_folder, tmp_path):
    tasks = '[[tasks]]\nname = "needle"\nlength = 700\nseed = { first = 0, last = 9 }\n'
    file = study_file(tmp_path, tiny_folder, tasks=tasks)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "study", "run", str(file), "--engine", "processes", "--workers", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    store = tmp_path / "runs"
    while process.poll() is None and len(list(store.glob("run=*"))) < 2:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert not list(store.glob(".partial-*"))
    runs = len(ag.open_store(store))
    assert 2 <= runs < 20
    report = json.loads(command("study", "run", file, "--json").stdout)
    assert (report["done"], report["captured"]) == (20, 20 - runs)
