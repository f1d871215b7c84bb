"""`attngraph verify`: is a run, or every run of a store, what its manifest says?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import attngraph as ag
from attngraph.cli.options import Json
from attngraph.cli.output import print_json
from attngraph.errors import IntegrityError

if TYPE_CHECKING:
    from attngraph.store import Verification


def verify(
    path: Annotated[Path, typer.Argument(help="Folder of a run (run=…) or of a store.")],
    json: Json = False,
) -> None:
    """Check sizes, hashes, schema, counts, order and row sums of a run, or of every run of a store.

    Example: attngraph verify runs
    """
    is_store = path.is_dir() and not path.name.startswith("run=") and not (path / ag.store.MANIFEST_FILE).exists()
    found = ag.verify_store(path) if is_store else (ag.verify_run(path),)
    problems = [f"{_name(verification)}: {problem}" for verification in found for problem in verification.problems]
    if json:
        print_json(_document(path, found, problems))
    else:
        for verification in found:
            typer.echo(f"{_name(verification)}  {'ok' if verification.ok else 'DAMAGED'}")
            for problem in verification.problems:
                typer.echo(f"  {problem}")
        if not found:
            typer.echo(f"{path} holds no runs.")
    if problems:
        raise IntegrityError(
            f"{len(problems)} problem{'' if len(problems) == 1 else 's'} in {path}: {'; '.join(problems)}. "
            f"Remove the damaged runs and capture them again."
        )


def _name(verification: Verification) -> str:
    return verification.path.name


def _document(path: Path, found: Sequence[Verification], problems: list[str]) -> dict[str, Any]:
    return {
        "path": str(path),
        "ok": not problems,
        "problems": problems,
        "runs": [
            {
                "run": verification.run,
                "path": str(verification.path),
                "ok": verification.ok,
                "problems": verification.problems,
                "files": verification.files,
            }
            for verification in found
        ],
    }
