"""Engines without models: answers, deaths, timeouts, tasks put off, and what stays of workers whose parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attngraph.study import engines
from attngraph.study.engines import Died, SerialWorkers, Workers, carry_out
from attngraph.study.processes import ProcessWorkers
from tests.attngraph.study_workers import Square


def carried_out(workers: Workers, tasks: list, groups: list | None = None, retries: int = 1) -> dict:
    ended = carry_out(
        workers, tasks, groups or ["g"] * len(tasks), retries=retries, busy=lambda answer: answer == "busy"
    )
    return {number: (answer, attempts) for number, answer, attempts in ended}


def test_one_worker_in_this_process():
    answers = carried_out(SerialWorkers(Square()), [3, "pid", 4])
    assert answers == {0: (9, 1), 1: (os.getpid(), 1), 2: (16, 1)}


def test_a_task_that_another_process_works_on_is_put_off(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.01)
    tasks = ["busy twice", 2, 3]
    ended = list(
        carry_out(SerialWorkers(Square(str(tmp_path))), tasks, ["g"] * 3, retries=0, busy=lambda one: one == "busy")
    )
    assert sorted(ended) == [(0, "free", 1), (1, 4, 1), (2, 9, 1)]
    assert ended[-1].number == 0 or ended[0].number != 0  # the others didn't wait for it
    assert (tmp_path / "asked").read_text() == "xxx"


@pytest.mark.slow
def test_worker_processes_are_kept_and_have_their_threads():
    with ProcessWorkers(Square(), 1, threads=3) as workers:
        answers = carried_out(workers, ["pid", "pid", "threads", 5])
    assert answers[0] == answers[1]
    assert answers[0][0] != os.getpid()
    assert (answers[2], answers[3]) == (("3", 1), (25, 1))
    assert not alive(answers[0][0])
    assert os.environ.get("OMP_NUM_THREADS") != "3"


def test_a_killed_worker_costs_one_retry_and_no_other_task(tmp_path):
    tasks = [1, 2, "die once", *range(3, 9)]
    answers = carried_out(ProcessWorkers(Square(str(tmp_path)), 2, threads=1), tasks)
    assert answers.pop(2) == ("alive", 2)
    assert answers == {number: (task**2, 1) for number, task in enumerate(tasks) if task != "die once"}


@pytest.mark.slow
def test_a_task_that_always_kills_its_worker_is_given_up():
    answers = carried_out(ProcessWorkers(Square(), 1, threads=1), ["die", 2], retries=1)
    assert answers == {0: (Died("its worker process ended (SIGKILL)"), 2), 1: (4, 1)}


@pytest.mark.slow
def test_a_task_over_its_time_is_ended_with_its_process(tmp_path):
    answers = carried_out(ProcessWorkers(Square(str(tmp_path)), 1, threads=1, timeout=2.0), ["sleep", 2], retries=0)
    assert answers == {0: (Died("it took longer than the engine's timeout"), 1), 1: (4, 1)}
    assert not alive(int((tmp_path / "sleeper").read_text()))


@pytest.mark.parametrize(
    ("waiting", "at_hand", "elsewhere", "expected"),
    [
        ([0, 1, 2, 3], set(), set(), 0),  # nothing is known: the first
        ([0, 1, 2, 3], {"b"}, set(), 2),  # a free worker has b at hand
        ([0, 1, 2, 3], set(), {"a"}, 2),  # a busy one has a: b needs a worker of its own
        ([0, 1, 2, 3], {"c"}, {"a", "b"}, 0),  # nobody is prepared, somebody works on either
        ([3, 1], {"a"}, {"a"}, 1),
    ],
)
def test_which_task_is_next(waiting, at_hand, elsewhere, expected):
    assert engines._chosen(waiting, ["a", "a", "b", "b"], at_hand, elsewhere) == expected


@pytest.mark.slow
def test_leaving_ends_workers_that_are_busy(tmp_path):
    ended = carry_out(
        ProcessWorkers(Square(str(tmp_path)), 2, threads=1), [1, "sleep"], ["a", "b"], retries=0, busy=lambda _: False
    )
    assert next(ended) == (0, 1, 1)
    sleeper = tmp_path / "sleeper"
    assert until(lambda: sleeper.exists() and sleeper.read_text() != "")
    ended.close()
    assert not alive(int(sleeper.read_text()))


PARENT = """
import sys
from attngraph.study.engines import carry_out
from attngraph.study.processes import ProcessWorkers
from tests.attngraph.study_workers import Square

list(carry_out(ProcessWorkers(Square(sys.argv[1]), 1, threads=1), ["sleep"], ["g"], retries=0, busy=lambda _: False))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    sleeper = tmp_path / "sleeper"
    assert until(lambda: sleeper.exists() and sleeper.read_text() != "")
    parent.send_signal(number)
    _, stderr = parent.communicate()
    assert until(lambda: not alive(int(sleeper.read_text())))
    assert stderr.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the parent's own alone


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def until(happened) -> bool:
    """Wait until something has happened; False if it doesn't in a minute."""
    end = time.monotonic() + 60
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
