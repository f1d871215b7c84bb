"""A writer killed at any moment leaves complete runs and removable partials, nothing else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from attngraph.store import open_store, verify_store
from attngraph.testing import write_random_run

KILLS = 12

WRITER = """
import sys
from attngraph.testing import write_random_run
for seed in range(10_000):
    print("next", flush=True)
    write_random_run(sys.argv[1], layers=6, heads=2, blocks=24, seed=seed)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_writers_leave_only_complete_runs_and_partials_that_the_next_one_removes(tmp_path):
    moments = random.Random(0)
    partials = 0
    for _ in range(KILLS):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
        with writer:
            for _ in range(moments.randint(1, 3)):  # up to two runs are complete by then
                assert writer.stdout.readline() == "next\n"
            time.sleep(moments.uniform(0.0, 0.04))
            writer.send_signal(signal.SIGKILL)
        partials += any(tmp_path.glob(".partial-*"))
        assert all(verification.ok for verification in verify_store(tmp_path))
    assert partials > 0  # else no kill hit a run that was being written, and nothing was tested
    before = len(open_store(tmp_path))
    assert before > 0
    run = write_random_run(tmp_path)
    assert not list(tmp_path.glob(".partial-*"))
    assert len(open_store(tmp_path)) == before + 1
    assert {path.name for path in tmp_path.iterdir()} == {found.path.name for found in open_store(tmp_path)}
    assert open_store(tmp_path).run(run.id) == run
