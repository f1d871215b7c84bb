"""Where a command's words go: its result to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import msgspec
import typer
from rich.console import Console, RenderableType


def print_json(document: Any) -> None:
    """Print the one JSON document of a command; NaN and infinities become null."""
    typer.echo(msgspec.json.encode(document).decode())


def print_screen(*parts: RenderableType) -> None:
    """Print tables and lines for people; brackets in names are text, not markup, and paths in lines aren't folded."""
    console = Console(markup=False, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def size(count: int) -> str:
    """A number of bytes for people, in the decimal unit that leaves one to three digits before the point."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.95 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def note(message: str) -> None:
    """Tell a waiting user what is going on."""
    typer.echo(message, err=True)


def keep_quiet() -> None:
    """Let attngraph's own log through to stderr, and keep other libraries' advice and progress bars out of it.

    Called before any of them is imported: they read their environment then. What the user has set stays.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("attngraph").setLevel(logging.INFO)
