"""The forward passes of a capture: a progress bar over their layers, and how long each took."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn


class Passes:
    """Measure forward passes through `layers`, with a bar on stderr; a context manager.

    `seconds` holds the wall seconds of every pass, by name, in order. With `show` None the bar is drawn where stderr
    is a terminal.
    """

    def __init__(self, layers: Sequence[nn.Module], show: bool | None) -> None:
        self.layers = layers
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._progress = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if show is None else show),
        )

    def __enter__(self) -> Passes:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def measured(self, name: str, label: str | None = None) -> Iterator[None]:
        """Time what runs inside the block, and advance a bar (of this label, else name) with each layer that ends."""
        task = self._progress.add_task(label or name, total=len(self.layers))

        def advance(*_: Any) -> None:
            self._progress.advance(task)

        with ExitStack() as stack:
            for layer in self.layers:
                stack.callback(layer.register_forward_hook(advance).remove)
            started = time.perf_counter()
            yield
            self.seconds[name].append(time.perf_counter() - started)
