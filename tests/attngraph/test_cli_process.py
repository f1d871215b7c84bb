"""The installed command in a process of its own: exit codes, streams, signals, and what it imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attngraph.testing import write_random_run
from tests.attngraph.without_torch import WITHOUT_TORCH

MAIN = "from attngraph.cli import main; main()"


def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """`attngraph` with these arguments; `before` is Python that runs first."""
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{MAIN}", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


def test_results_go_to_stdout_and_refusals_to_stderr(tmp_path):
    path = write_random_run(tmp_path).path
    good = run("routes", path, "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["routes"]
    bad = run("routes", path, "--source", "nadel", "--json")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("attngraph: 'nadel' names nothing in this graph.")
    assert run("routes").returncode == 2


@pytest.mark.slow
def test_a_demo_keeps_libraries_out_of_both_streams(tiny_folder, tmp_path):
    result = run("demo", "--model", tiny_folder, "--length", 1300, "--out", tmp_path, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"Loading {tiny_folder} …\n"
    assert json.loads(result.stdout)["run"] == str(next(tmp_path.iterdir()))


@pytest.mark.parametrize("name", ["demo", "capture"])
def test_without_torch_the_command_that_installs_it_is_told(tmp_path, name):
    flags = ("--out", tmp_path / "s") if name == "demo" else ("--task", "needle", "--store", tmp_path / "s")
    result = run(name, "--model", "smollm2-135m", *flags, before="import sys; sys.modules['torch'] = None")
    assert (result.returncode, result.stdout) == (2, "")
    assert 'pip install "attngraph[capture]"' in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_questions_need_no_torch(tmp_path):
    path = write_random_run(tmp_path).path
    for arguments in (
        ("routes", path),
        ("influence", path),
        ("throughput", path),
        ("bottlenecks", path),
        ("cuts", path),
        ("heads", tmp_path),
        ("ls", tmp_path),
        ("verify", path),
    ):
        result = run(*arguments, before=WITHOUT_TORCH)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_an_interrupted_capture_leaves_nothing(tiny_folder: Path, tmp_path: Path):
    store = tmp_path / "store"
    arguments = ["capture", "--task", "needle", "--model", str(tiny_folder), "--length", "30000", "--n-match", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments, "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )

    def capturing() -> bool:
        return any(path.suffix == ".parquet" for path in store.glob(".partial-*/*"))

    while process.poll() is None and not capturing():
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert not store.exists()
