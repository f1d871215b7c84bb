"""A capture killed at any moment leaves complete runs and partials that the next capture removes, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attngraph.store import open_store, verify_run, verify_store

KILLS = 30

# Importing torch and transformers takes seconds, so one process does it once and forks a capturing child per kill.
PARENT = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import attngraph as ag
from tests.attngraph.tiny_models import random_prompt, tiny

store, kills = sys.argv[1], int(sys.argv[2])
lm, prompt = tiny("Llama"), random_prompt(300, spans=[("needle", 40, 60), ("question", 280, 300)])
config = ag.StreamConfig(block_size=8, budget=5, first_layers=0)
ag.capture(lm, prompt, config, store=store, progress=False)  # the first one is slower than all others
started = time.perf_counter()
ag.capture(lm, prompt, config, store=store, progress=False)
seconds = time.perf_counter() - started
moments = random.Random(0)
for _ in range(kills):
    child = os.fork()
    if not child:
        while True:
            ag.capture(lm, prompt, config, store=store, progress=False)
    time.sleep(moments.uniform(0, 2.5 * seconds))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    print("killed", flush=True)
    sys.stdin.readline()
ag.capture(lm, prompt, config, store=store, progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_captures_leave_only_complete_runs_and_removable_partials(tmp_path) -> None:
    partials, runs, verified = 0, 0, set()
    command = [sys.executable, "-c", PARENT, tmp_path, str(KILLS)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        for _ in range(KILLS):
            assert parent.stdout.readline() == "killed\n"
            partials += any(tmp_path.glob(".partial-*"))
            new = set(tmp_path.glob("run=*")) - verified
            assert all(verify_run(run).ok for run in new)
            verified |= new
            runs = len(verified)
            parent.stdin.write("\n")
            parent.stdin.flush()
    assert parent.returncode == 0
    assert partials >= 5  # else hardly a kill hit a run that was being written, and nothing was tested
    assert runs > 2
    assert not list(tmp_path.glob(".partial-*"))
    assert {path.name for path in tmp_path.iterdir()} == {run.path.name for run in open_store(tmp_path)}
    assert len(open_store(tmp_path)) == runs + 1
    assert all(verification.ok for verification in verify_store(tmp_path))
