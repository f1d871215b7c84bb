"""A worker that needs nothing but Python, for tests of engines."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


class Square:
    """A worker without a model: squares numbers, and does as it is told by words."""

    def __init__(self, folder: str = "") -> None:
        self.folder = folder

    def __call__(self) -> Any:
        return self.answer

    def answer(self, task: Any) -> Any:
        match task:
            case int():
                return task**2
            case "pid":
                return os.getpid()
            case "threads":
                return os.environ.get("OMP_NUM_THREADS")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die once":
                flag = Path(self.folder) / "died"
                if not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return "alive"
            case "sleep":
                (Path(self.folder) / "sleeper").write_text(str(os.getpid()))
                time.sleep(3600)
            case "busy twice":
                file = Path(self.folder) / "asked"
                times = len(file.read_text()) if file.exists() else 0
                file.write_text("x" * (times + 1))
                return "busy" if times < 2 else "free"
        return None
