"""A study killed at any moment, again and again, ends with the tables of one that ran through."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attngraph as ag
from attngraph.store import verify_store
from tests.attngraph.study_helpers import ANALYSES, same_tables, study_file, tables

# Importing torch and transformers takes seconds, so one process does it once and forks a child per start of the study.
PARENT = """
import os, random, signal, sys, time
from pathlib import Path
import torch, transformers
torch.set_num_threads(1)
import attngraph as ag
from tests.attngraph.study_helpers import ANALYSES

file, store, through = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
moments = random.Random(0)

def start(store):
    child = os.fork()
    if not child:
        try:
            report = ag.study.run(ag.study.load(file, ANALYSES, store=store), progress=False)
            os._exit(0 if report.ok else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(2)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert ended(start(through)) == 0
for runs in (6, 12, 18):
    child = start(store)
    while len(list(store.glob("run=*"))) < runs:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    print(len(list(store.glob("run=*"))), len(list(store.glob(".partial-*"))), flush=True)
assert ended(start(store)) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_study_of_24_runs_killed_three_times_has_the_tables_of_one_that_ran_through(tiny_folder, tmp_path):
    tasks = '[[tasks]]\nname = "needle"\nlength = 600\nseed = { first = 0, last = 11 }\n'
    analyses = '[[analyses]]\nname = "influence_rank"\nnull = "uniform"\n[[analyses]]\nname = "count"\n'
    file = study_file(tmp_path, tiny_folder, tasks=tasks, analyses=analyses)
    command = [sys.executable, "-c", PARENT, file, tmp_path / "killed", tmp_path / "through"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    killed, through = (ag.study.load(file, ANALYSES, store=tmp_path / name) for name in ("killed", "through"))
    counts = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(counts) == 3
    assert all(
        least <= count < 24 for least, count in zip((6, 12, 18), counts, strict=True)
    )  # in the middle, each time
    assert len(tables(through)["runs"]) == 24
    assert same_tables(killed, through)
    # Nothing was made twice, and nothing half.
    assert len(ag.open_store(killed.store)) == 24
    assert all(verification.ok for verification in verify_store(killed.store))
    assert {path.name for path in killed.store.iterdir() if not path.name.startswith("run=")} == {"studies"}
