"""The engine `ray`: workers of a Ray cluster, started here or joined by its address.

1. Ask first: a request for more cores or GPUs than any node has would wait for ever, so it is refused.
2. No more tasks are handed over than the cluster can run at once, so that a task's time begins when it does.
3. Ray keeps processes alive between tasks, and each of them keeps its worker with the model.
4. Retries are counted here, as for every engine: Ray itself is told to try once (`max_retries=0`).
5. Results are small, and a cluster started here gets a small object store: by default Ray takes a third of the memory.

The store has to be on a file system that all nodes see, under the same path.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from attngraph.errors import MissingDependencyError, StudyError
from attngraph.study.engines import Assignment, Died, Work, Workers, cores
from attngraph.study.file import EngineSettings

_worker: tuple[str, Callable[[Any], Any]] | None = None
"""The worker of the process that Ray runs tasks in, and the study run that it belongs to."""


class RayWorkers(Workers):
    """Workers of a Ray cluster; one that was not there before is ended with them.

    Raises
    ------
    MissingDependencyError
        If Ray isn't installed.
    StudyError
        If there is no cluster at the address, or no node of it has what one task asks for.
    """

    def __init__(self, work: Work, settings: EngineSettings) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                'The engine ray needs ray, which is not installed. Install it with: pip install "attngraph[ray]"'
            ) from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, settings)
        try:
            fitting = _fitting(ray, settings)
        except StudyError:
            self._shut_down()
            raise
        self._count = min(fitting, settings.workers or fitting)
        self._timeout = float("inf") if settings.timeout is None else settings.timeout
        self._work, self._token = ray.put(work), uuid.uuid4().hex
        self._remote = ray.remote(max_retries=0, num_cpus=settings.cpus, num_gpus=settings.gpus)(_carry_out)
        self._running: dict[Any, tuple[int, float]] = {}

    @property
    def room(self) -> int:
        return self._count - len(self._running)

    def start(self, assignment: Assignment) -> None:
        reference = self._remote.remote(self._token, self._work, assignment.task)
        self._running[reference] = (assignment.number, time.monotonic() + self._timeout)

    def finished(self, seconds: float | None, /) -> list[tuple[int, Any]]:
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        while self._running:
            left = min([until, *(deadline for _, deadline in self._running.values())]) - time.monotonic()
            wait = None if left == float("inf") else max(0.0, left)
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=wait)
            late = [one for one, (_, deadline) in self._running.items() if time.monotonic() > deadline]
            if ready or late:
                return [self._answer(one, late=one not in ready) for one in dict.fromkeys([*ready, *late])]
            if time.monotonic() >= until:
                break
        return []

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._shut_down()

    def _answer(self, reference: Any, *, late: bool) -> tuple[int, Any]:
        number, _ = self._running.pop(reference)
        if late:
            self._ray.cancel(reference, force=True)
            return number, Died("it took longer than the engine's timeout")
        try:
            return number, self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return number, Died(f"its Ray worker ended ({type(error).__name__})")

    def _shut_down(self) -> None:
        if self._ours:
            self._ray.shutdown()


def _connect(ray: Any, settings: EngineSettings) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.address is None:
        # "local": a cluster of our own, whatever else runs on this machine.
        store = settings.object_store_bytes
        ray.init("local", num_cpus=cores(), object_store_memory=store, include_dashboard=False, **quiet)
        return
    try:
        ray.init(settings.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StudyError(f"engine.address: there is no Ray cluster at {settings.address!r}: {error}.") from error


def _fitting(ray: Any, settings: EngineSettings) -> int:
    """How many tasks the cluster can run at once."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {name: amount for name, amount in (("CPU", settings.cpus), ("GPU", settings.gpus)) if amount > 0}
    for name, amount in asked.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if most < amount:
            raise StudyError(
                f"engine.{name.lower()}s: a task asks for {amount:g} {name}, but the largest node of the Ray cluster "
                f"has {most:g}; ask for less, or join a cluster with address."
            )
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in asked.items())) for node in nodes)


def _carry_out(token: str, work: Work, task: Any) -> Any:
    """Runs in Ray's process: the worker of this study run, made the first time."""
    global _worker
    if _worker is None or _worker[0] != token:
        _worker = None  # an earlier study's model goes before this one's is loaded
        _worker = (token, work())
    return _worker[1](task)
