"""Engines: who carries out a study's tasks, and what happens when a worker dies.

An engine supplies workers (`Workers`); everything else is the same for all of them (`carry_out`):

1. Start tasks while there is room, first those whose model a free worker has at hand, where an engine knows that.
2. A task that another process works on is put off, and asked for again a little later.
3. A task whose worker died or ran out of time is tried again, `retries` times, by a fresh worker. What a task raises is
   not: it is an answer, since the same would be raised again.

Tasks know nothing of each other, and what they leave is named by what they are: the order in which they end changes
nothing.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

Work = Callable[[], Callable[[Any], Any]]
"""Makes a worker, where it works: a function of a task. Both have to be picklable."""

BUSY_SECONDS = 1.0
"""How long a task that another process works on is put off."""


class Died(NamedTuple):
    """In place of an answer: the worker died, or was ended because it took too long."""

    reason: str


class Assignment(NamedTuple):
    """A task for a worker: its number, what it is, and the group of tasks that need the same at hand."""

    number: int
    task: Any
    group: str


class Finished(NamedTuple):
    """The number of a task among those given, its answer (or its last death), and how often it was tried."""

    number: int
    answer: Any
    attempts: int


class Workers(ABC):
    """The workers of an engine; a context manager, which ends them on leaving."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def room(self) -> int:
        """How many more tasks can be started now."""

    def at_hand(self) -> tuple[set[str | None], set[str | None]]:
        """The groups that free workers are prepared for, and those of busy ones; unknown unless an engine says so."""
        return set(), set()

    @abstractmethod
    def start(self, assignment: Assignment) -> None:
        """Start a task; there is room."""

    @abstractmethod
    def finished(self, seconds: float | None, /) -> list[tuple[int, Any]]:
        """Wait until a task ends, at most these seconds: numbers and answers (or `Died`) of those that have."""

    @abstractmethod
    def close(self) -> None:
        """End all workers; tasks that still run are lost."""


class SerialWorkers(Workers):
    """One worker, in this process: a task is done when it is asked for."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._worker: Callable[[Any], Any] | None = None
        self._next: Assignment | None = None

    @property
    def room(self) -> int:
        return int(self._next is None)

    def start(self, assignment: Assignment) -> None:
        self._next = assignment

    def finished(self, _seconds: float | None, /) -> list[tuple[int, Any]]:
        if self._next is None:
            return []
        self._worker = self._worker or self._work()
        (number, task, _), self._next = self._next, None
        return [(number, self._worker(task))]

    def close(self) -> None:
        self._worker = None


def carry_out(
    workers: Workers,
    tasks: Sequence[Any],
    groups: Sequence[str],
    *,
    retries: int,
    busy: Callable[[Any], bool],
) -> Generator[Finished, None, None]:
    """Carry out the tasks and yield them as they end.

    Parameters
    ----------
    workers
        Of some engine; closed in the end, also where the caller stops early.
    tasks
        Picklable.
    groups
        What the tasks need at hand, such as a model: as many as tasks.
    retries
        How often a task is tried again whose worker died.
    busy
        Says of an answer that another process works on the task.
    """
    waiting = deque(range(len(tasks)))
    put_off: deque[tuple[float, int]] = deque()
    attempts: Counter[int] = Counter()
    running = 0
    with workers:
        while waiting or put_off or running:
            while put_off and put_off[0][0] <= time.monotonic():
                waiting.append(put_off.popleft()[1])
            while waiting and workers.room:
                number = _chosen(waiting, groups, *workers.at_hand())
                waiting.remove(number)
                attempts[number] += 1
                workers.start(Assignment(number, tasks[number], groups[number]))
                running += 1
            pause = max(0.0, put_off[0][0] - time.monotonic()) if put_off else None
            if not running:
                time.sleep(pause or 0.0)
                continue
            for number, answer in workers.finished(pause):
                running -= 1
                if isinstance(answer, Died):
                    if attempts[number] <= retries:
                        waiting.appendleft(number)
                        continue
                elif busy(answer):
                    attempts[number] -= 1
                    put_off.append((time.monotonic() + BUSY_SECONDS, number))
                    continue
                yield Finished(number, answer, attempts[number])


def _chosen(waiting: Iterable[int], groups: Sequence[str], at_hand: set[str | None], elsewhere: set[str | None]) -> int:
    """The next task: one that a free worker is prepared for, else of a group that nobody works on, else the first."""
    return min(waiting, key=lambda number: (groups[number] not in at_hand, groups[number] in elsewhere))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
