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
from multiprocessing.context import SpawnProcess
from typing import Any

from attngraph.study.engines import Assignment, Died, Work, Workers

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
"""What libraries read when they are loaded; torch's own number is set by the worker."""

ENDING_SECONDS = 5.0
"""How long a worker has to end when it is asked to."""


class _Slot:
    """A place for a worker: its process once it was needed, and the task that it carries out."""

    def __init__(self) -> None:
        self.process: SpawnProcess | None = None
        self.connection: Connection | None = None
        self.group: str | None = None
        self.number: int | None = None
        self.deadline = float("inf")

    @property
    def running(self) -> bool:
        return self.number is not None

    def send(self, task: Any) -> None:
        """Hand over a task; a worker that is gone is noticed when its answer is waited for."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.send(task)

    def answer(self) -> Any:
        """The task's answer, `Died`, or None while it runs."""
        assert self.process is not None and self.connection is not None
        alive = self.process.is_alive()  # asked before the pipe: what was sent before the end is still there
        try:
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

    def end(self, *, at_once: bool = False) -> None:
        """End the process: at once, or by asking it to."""
        if self.process is None or self.connection is None:
            return
        self.connection.close()
        if at_once:
            self.process.kill()
        elif self.running:
            self.process.terminate()
        self.process.join(ENDING_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process, self.connection, self.group, self.number = None, None, None, None


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
        self._threads = threads
        self._timeout = float("inf") if timeout is None else timeout
        self._slots = [_Slot() for _ in range(count)]

    @property
    def room(self) -> int:
        return sum(not slot.running for slot in self._slots)

    def at_hand(self) -> tuple[set[str | None], set[str | None]]:
        free = {slot.group for slot in self._slots if not slot.running}
        return free, {slot.group for slot in self._slots if slot.running}

    def start(self, assignment: Assignment) -> None:
        number, task, group = assignment
        free = [slot for slot in self._slots if not slot.running]
        slot = min(free, key=lambda slot: (slot.group != group, slot.process is not None))
        if slot.process is None:
            self._spawn(slot)
        slot.number, slot.group, slot.deadline = number, group, time.monotonic() + self._timeout
        slot.send(task)

    def finished(self, seconds: float | None, /) -> list[tuple[int, Any]]:
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        while True:
            found = []
            for slot in self._slots:
                if slot.number is None or (answer := slot.answer()) is None:
                    continue
                found.append((slot.number, answer))
                slot.number = None
                if isinstance(answer, Died):
                    slot.end(at_once=True)
            running = [slot for slot in self._slots if slot.running]
            left = min([until, *(slot.deadline for slot in running)]) - time.monotonic()
            if found or not running or time.monotonic() >= until:
                return found
            signs: list[Any] = []
            for slot in running:
                assert slot.process is not None and slot.connection is not None
                signs += [slot.connection, slot.process.sentinel]
            wait(signs, None if left == float("inf") else max(0.0, left))

    def close(self) -> None:
        for slot in self._slots:
            if slot.running and slot.process is not None:
                slot.process.terminate()  # all of them first, so that they end at the same time
        for slot in self._slots:
            slot.end()

    def _spawn(self, slot: _Slot) -> None:
        context = multiprocessing.get_context("spawn")
        slot.connection, other = context.Pipe()
        slot.process = context.Process(target=_serve, args=(other, self._work), daemon=True)
        with _environment(dict.fromkeys(THREADS, str(self._threads))), _interrupts_held_back():
            slot.process.start()
        other.close()


def _serve(connection: Connection, work: Work) -> None:
    """A worker process: answer tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = work()
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
