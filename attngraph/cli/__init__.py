"""The command line: `attngraph COMMAND`, a thin mirror of the Python API.

One module per command group. Commands reach the library through `import attngraph as ag`, whose names load when used,
so that `attngraph --help` answers at once. Results go to stdout, progress and errors to stderr; what attngraph refuses
ends with exit code 2.
"""

from __future__ import annotations

import sys

import typer

from attngraph.cli.anchors import anchors
from attngraph.cli.bottlenecks import bottlenecks
from attngraph.cli.capture import capture
from attngraph.cli.chain import chain, chain_test
from attngraph.cli.compare import compare
from attngraph.cli.cuts import cuts
from attngraph.cli.demo import demo
from attngraph.cli.diff import diff
from attngraph.cli.estimate import estimate
from attngraph.cli.heads import heads
from attngraph.cli.influence import influence
from attngraph.cli.knockout import knockout
from attngraph.cli.ls import ls
from attngraph.cli.output import keep_quiet, note
from attngraph.cli.routes import routes
from attngraph.cli.study import study
from attngraph.cli.throughput import throughput
from attngraph.cli.verify import verify
from attngraph.errors import AttngraphError
from attngraph.version import __version__

app = typer.Typer(
    name="attngraph",
    help="Turn a long-context run of a language model into a graph of attention blocks, and ask it questions.\n\n"
    "Example: attngraph demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    demo,
    estimate,
    capture,
    routes,
    influence,
    throughput,
    bottlenecks,
    cuts,
    chain,
    heads,
    diff,
    anchors,
    chain_test,
    compare,
    knockout,
    ls,
    verify,
):
    app.command()(command)
app.add_typer(study)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None: ...


def main() -> None:
    """Run the command line; the console script's entry point."""
    keep_quiet()
    try:
        app(prog_name="attngraph")
    except AttngraphError as error:
        # Libraries' messages that errors quote may have lines of their own.
        note(f"attngraph: {' '.join(str(error).split())}")
        sys.exit(2)
