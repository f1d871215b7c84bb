"""Rows that a long benchmark keeps in a file of JSON lines, so that it goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """The rows of a file; none where there is no file yet."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def append_rows(file: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, at once."""
    with file.open("a", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(row)}\n" for row in rows)
