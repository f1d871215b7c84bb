"""The option `--figure` of commands that can draw what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attngraph.cli.output import note
from attngraph.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
FigureOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the figure into FILE.png, .svg or .pdf (extra: plot).")
]


def check_figure(file: Path | None) -> None:
    """Refuse a file that can't be drawn into, before anything slow happens."""
    if file is not None and (file.suffix.lower() not in PICTURES or not file.absolute().parent.is_dir()):
        raise ConfigError(f"--figure {file} must end in {', '.join(PICTURES)} and lie in a folder that there is.")


def save(figure: Figure, file: Path) -> None:
    """Draw into the file, and say so."""
    figure.savefig(file, dpi=150)
    note(f"Drew {file}.")
