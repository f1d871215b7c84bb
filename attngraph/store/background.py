"""Writing beside the computation: one job at a time, in a thread, in order; no error is lost.

A job begins as soon as it is given, and the next one can be given when it is done. So at most one job's data wait in
memory beside those that are being computed. What a job raises comes back from the next `submit`, or at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """Runs jobs in a thread of its own; a context manager that ends when all of them have.

    Examples
    --------
    >>> with Background() as background:                                            # doctest: +SKIP
    ...     for layer in range(layers):
    ...         columns = compute(layer)
    ...         background.submit(lambda: writer.append("edges", columns))
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def __enter__(self) -> Background:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="attngraph-writer")
        return self

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` once the one before it is done; raises what that one raised."""
        assert self._thread is not None, "jobs are taken inside of the with-block only"
        self._wait()
        self._running = self._thread.submit(job)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        assert thread is not None
        thread.shutdown()
        if error is None:
            self._wait()
        elif self._running is not None and (also := self._running.exception()) is not None:
            error.add_note(f"Writing in the background failed too: {type(also).__name__}: {also}")
        self._running = None

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()
