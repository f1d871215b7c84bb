"""The engine `processes`: worker processes on this machine, each with a model of its own.

1. A worker is a spawned process with a pipe of its own, so that its death concerns no other: the pipe's end and the
   process's exit say at once which task was lost, and the next task starts a fresh process. (One death makes a
   `concurrent.futures.ProcessPoolExecutor` useless as a whole.)
2. A free worker prefers tasks of its model, then those of a model that no other worker has.
3. A task over its time is ended by killing its process.
4. Ctrl-C reaches this process alone, which ends its workers; a worker whose parent has gone, however it went, ends by
   itself. Runs that were being written are removed by whoever writes to the store next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from attngraph.study.engines import Assignment, Died, Work, Workers

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
"""What libraries read when they are loaded; torch's own number is set by the worker."""

ENDING_SECONDS = 5.0
"""How long a worker has to end when it is asked to."""

_READY = "ready"
"""What a worker says before its first answer: a task's time doesn't begin before."""


class _Worker:
    """A worker process, its pipe, and the task that it carries out."""

    def __init__(self, work: Work, threads: int, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, work), daemon=True)
        with _environment(dict.fromkeys(THREADS, str(threads))), _interrupts_held_back():
            self.process.start()
        other.close()
        self.number: int | None = None
        self.group: str | None = None
        self.deadline = float("inf")
        self._timeout = timeout
        self._ready = False

    def send(self, assignment: Assignment) -> None:
        """Hand over a task; a worker that is gone is noticed when its answer is waited for."""
        self.number, self.group = assignment.number, assignment.group
        self._start_clock()
        with contextlib.suppress(OSError):
            self.connection.send(assignment.task)

    def answer(self) -> Any:
        """The task's answer, `Died`, or None while it runs."""
        alive = self.process.is_alive()  # asked before the pipe: what was sent before the end is still there
        try:
            if not self._ready and self.connection.poll():
                self._ready = self.connection.recv() == _READY
                self._start_clock()
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(ENDING_SECONDS)
            alive = False
        if not alive:
            return Died(f"its worker process ended ({_exit(self.process.exitcode)})")
        if time.monotonic() > self.deadline:
            return Died("it took longer than the engine's timeout")
        return None

    def end(self) -> None:
        """Wait for the process to end, and then kill it; an idle one ends when its pipe closes."""
        self.connection.close()
        self.process.join(ENDING_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _start_clock(self) -> None:
        self.deadline = time.monotonic() + self._timeout if self._ready else float("inf")


class ProcessWorkers(Workers):
    """Worker processes.

    Parameters
    ----------
    work
        Makes a worker, in its process.
    count
        How many at most; a process starts when there is a task for it.
    threads
        Of each worker.
    timeout
        Seconds that a task may take, the loading of its model included; None for any.
    """

    def __init__(self, work: Work, count: int, *, threads: int, timeout: float | None = None) -> None:
        self._work = work
        self._count = count
        self._threads = threads
        self._timeout = float("inf") if timeout is None else timeout
        self._workers: list[_Worker] = []

    @property
    def room(self) -> int:
        return self._count - len(self._busy())

    def at_hand(self) -> tuple[set[str | None], set[str | None]]:
        return {worker.group for worker in self._free()}, {worker.group for worker in self._busy()}

    def start(self, assignment: Assignment) -> None:
        prepared = [worker for worker in self._free() if worker.group == assignment.group]
        if not prepared and len(self._workers) < self._count:
            prepared = [_Worker(self._work, self._threads, self._timeout)]
            self._workers += prepared
        (prepared or self._free())[0].send(assignment)

    def finished(self, seconds: float | None, /) -> list[tuple[int, Any]]:
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        while True:
            found = []
            for worker in self._busy():
                if worker.number is None or (answer := worker.answer()) is None:
                    continue
                found.append((worker.number, answer))
                if isinstance(answer, Died):
                    self._workers.remove(worker)
                    worker.process.kill()
                    worker.end()
                worker.number = None
            busy = self._busy()
            if found or not busy or time.monotonic() >= until:
                return found
            left = min([until, *(worker.deadline for worker in busy)]) - time.monotonic()
            signs = [sign for worker in busy for sign in (worker.connection, worker.process.sentinel)]
            wait(signs, None if left == float("inf") else max(0.0, left))

    def close(self) -> None:
        for worker in self._busy():
            worker.process.terminate()  # all of them first, so that they end at the same time
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _free(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.number is None]

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.number is not None]


def _serve(connection: Connection, work: Work) -> None:
    """A worker process: answer tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = work()
    connection.send(_READY)
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        answer = worker(task)
        try:
            connection.send(answer)
        except OSError:  # nobody is there to hear it
            return


def _leave(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)  # an exception, so that a run that is being written is removed


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The environment that a process starts with, for a moment this process's own."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C is held back here for a moment, and from the process that starts meanwhile for good."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
