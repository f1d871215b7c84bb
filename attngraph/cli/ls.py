"""`attngraph ls`: the catalogue of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.options import Json
from attngraph.cli.output import print_json, print_screen, size


def ls(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs of a store, the oldest first.

    blocks: tokens per block × key blocks kept; pruned: share of causal token pairs left out; next, answer:
    whether the pruned model's next tokens are the same, and how many of the answer's tokens it keeps.

    Example: attngraph ls runs
    """
    runs = ag.open_store(store).runs().to_dicts()
    if json:
        print_json({"store": str(store), "runs": runs})
    else:
        print_screen(_table(store, runs))


def _table(store: Path, runs: list[dict[str, Any]]) -> Table:
    title = f"{store}: {len(runs)} run{'' if len(runs) == 1 else 's'}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    table.add_column("model", overflow="fold")
    for name in ("tokens", "blocks", "pruned", "next", "answer", "size", "sec"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(*_cells(run))
    return table


def _cells(run: dict[str, Any]) -> tuple[str, ...]:
    kept, answer = run["answer_tokens_kept"], run["answer_tokens"]
    return (
        run["run"],
        run["model"],
        str(run["tokens"]),
        f"{run['block_size']}×{run['budget']}",
        f"{run['pruned_causal']:.1%}",
        {True: "same", False: "differ", None: "–"}[run["next_tokens_match"]],
        "–" if kept is None else f"{kept}/{answer}",
        size(run["bytes"]),
        f"{run['capture_seconds']:.1f}",
    )
