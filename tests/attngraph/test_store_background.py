"""Jobs beside the computation: in order, one at a time, none of their errors lost."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from attngraph.store import Background


def fail(message: str) -> None:
    raise OSError(message)


def test_jobs_run_in_order_in_another_thread():
    done: list[tuple[int, str]] = []
    with Background() as background:
        for number in range(50):
            background.submit(lambda number=number: done.append((number, threading.current_thread().name)))
    assert [number for number, _ in done] == list(range(50))
    assert {name.rpartition("_")[0] for _, name in done} == {"attngraph-writer"}


def test_an_error_comes_back_from_the_next_job():
    ran = []
    with Background() as background:
        background.submit(lambda: fail("disk full"))
        with pytest.raises(OSError, match="disk full"):
            background.submit(lambda: ran.append(1))
        background.submit(lambda: ran.append(2))
    assert ran == [2]


def test_an_error_of_the_last_job_comes_back_at_the_end():
    with pytest.raises(OSError, match="disk full"), Background() as background:
        background.submit(lambda: fail("disk full"))


def test_an_error_beside_another_one_is_noted():
    with pytest.raises(ValueError, match="model") as raised, Background() as background:
        background.submit(lambda: fail("disk full"))
        raise ValueError("model")
    assert raised.value.__notes__ == ["Writing in the background failed too: OSError: disk full"]


def test_at_most_one_job_waits_beside_what_is_computed():
    """Each job holds an array; when the next one may begin, the one before it is gone."""
    alive: list[weakref.ref] = []
    most = 0
    with Background() as background:
        for _ in range(20):
            data = np.zeros(1000)
            alive.append(weakref.ref(data))
            background.submit(lambda data=data: data.sum())
            del data
            most = max(most, sum(array() is not None for array in alive))
    assert most <= 2


def test_computation_goes_on_while_a_job_runs():
    computed = threading.Event()
    with Background() as background:
        background.submit(lambda: computed.wait(60) or fail("the computation waited for its own writing"))
        computed.set()
