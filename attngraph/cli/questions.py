"""How a question about a graph becomes a command: one way for all of them.

A question is a function of a graph and of the options that are its own; `question` adds the run, the policies and
where the answer goes. What it returns is shown as a table for people, printed as one JSON document, or written as a
table for programs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.table import Table

from attngraph.cli.options import (
    HeadsPolicy,
    Json,
    ResidualPolicy,
    RunFolder,
    SinkPolicy,
    WeightPolicy,
    graph_of,
)
from attngraph.cli.output import note, print_json, print_screen
from attngraph.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Format = Literal["parquet", "csv"]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Kind of table, by default by FILE's ending; csv needs no FILE.")
]
FileOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write the answer's table to FILE.parquet or .csv."),
]


class Reply(NamedTuple):
    """An answer in three forms: the JSON document, the table for programs, and what makes a table for people."""

    document: Mapping[str, Any]
    frame: pl.DataFrame
    table: Callable[[Mapping[str, Any]], Table]


def question(ask: Callable[..., Reply]) -> Callable[..., None]:
    """A command of a question: its parameters after the graph, between the run and what all commands take.

    Parameters
    ----------
    ask
        Takes the graph first, then its options by name; its name and docstring become the command's.
    """
    # The graph's type is a name only: to import it would slow `attngraph --help` down.
    own = list(inspect.signature(ask, eval_str=True, locals={"AttentionGraph": object}).parameters.values())[1:]
    shared = list(inspect.signature(_shared, eval_str=True).parameters.values())

    def command(**options: Any) -> None:
        delivery = {name: options.pop(name) for name in ("json", "format", "file")}
        check_delivery(**delivery)
        run = options.pop("run")
        policies = {name: options.pop(name) for name in ("weight", "residual", "heads", "sink")}
        reply = ask(graph_of(run, **policies), **options)
        deliver(reply._replace(document={"run": str(run), **reply.document}), **delivery)

    parameters = [shared[0], *own, *shared[1:]]
    command.__name__, command.__doc__ = ask.__name__, ask.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    return command


def _shared(
    run: RunFolder,
    weight: WeightPolicy = "contribution",
    residual: ResidualPolicy = "measured",
    heads: HeadsPolicy = "sum",
    sink: SinkPolicy = "keep",
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """The options of every question, in the order of its help: the run first, the others after its own."""


def check_delivery(json: bool, format: Format | None, file: Path | None) -> None:
    """Refuse, before anything is computed, what an answer can't be delivered as.

    Raises
    ------
    ConfigError
        For a file of unknown kind, Parquet without a file, or JSON and CSV both on stdout.
    """
    if file is None:
        if format == "parquet":
            raise ConfigError("--format parquet is not for the screen; name a file with -o FILE.")
        if format == "csv" and json:
            raise ConfigError("--json and --format csv both go to stdout; name a file for the table with -o FILE.")
        return
    _kind(format, file)
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"-o {file}: there is no folder {file.absolute().parent}; make it first.")


def deliver(reply: Reply, json: bool, format: Format | None, file: Path | None) -> None:
    """Show an answer, print it as one JSON document, or write its table."""
    if file is not None:
        _write(reply.frame, _kind(format, file), file)
        note(f"Wrote {len(reply.frame):,} rows to {file}.")
    if json:
        print_json(reply.document)
    elif format == "csv" and file is None:
        typer.echo(_flat(reply.frame).write_csv(), nl=False)
    elif file is None:
        print_screen(reply.table(reply.document))


def _kind(format: Format | None, file: Path) -> Format:
    ending = file.suffix.removeprefix(".").lower()
    if format is not None:
        return format
    if ending == "parquet":
        return "parquet"
    if ending == "csv":
        return "csv"
    raise ConfigError(f"-o {file}: the ending {file.suffix!r} is not .parquet or .csv; name one, or give --format.")


def _write(frame: pl.DataFrame, kind: Format, file: Path) -> None:
    try:
        if kind == "parquet":
            frame.write_parquet(file)
        else:
            _flat(frame).write_csv(file)
    except OSError as error:
        raise ConfigError(f"-o {file} can't be written: {error}.") from error


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """A table without lists, which CSV doesn't have: their entries are joined by semicolons."""
    import polars as pl

    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    return frame.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join(";")) if lists else frame
