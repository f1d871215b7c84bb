"""`attngraph anchors`: which sentences of a chain of thought do the others come back to?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.options import Json, RunFolder
from attngraph.cli.questions import FileOption, FormatOption, Reply, check_delivery, deliver
from attngraph.errors import GraphError

SHOWN = 20
"""Sentences in the table for people; the JSON document has all of them."""


def anchors(
    run: RunFolder,
    proximity: Annotated[int, typer.Option(help="Count attention from sentences at least this many further on.")] = 4,
    depth_control: Annotated[
        bool, typer.Option("--depth-control", help="Rank the sentences that each one sees, so that all weigh the same.")
    ] = False,
    top: Annotated[int, typer.Option(help="Receiver heads.")] = 20,
    normalise: Annotated[
        Literal["recorded", "dense", "spread"],
        typer.Option(help="Dropped mass: left out (recorded), counted (dense), or spread over all a row sees."),
    ] = "recorded",
    reference: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of the same prompt, such as a dense one, to compare with.")
    ] = None,
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Score sentences (spans sentence:N) by what receiver heads attend to from afar (Bogdan et al. 2025).

    Example: attngraph anchors runs/run=01J9Z
    """
    check_delivery(json, format, file)

    def scored(path: Path) -> Any:
        settings: Any = {"proximity": proximity, "depth_control": depth_control, "top": top, "normalise": normalise}
        return ag.anchors(ag.open_run(path), **settings)

    found = scored(run)
    document = {
        "run": str(run),
        "settings": asdict(found.settings),
        "block_size": found.block_size,
        "dropped": None if found.dropped_source is None else float(found.dropped.mean()),
        "dropped_source": found.dropped_source,
        "receiver_heads": found.receiver_heads,
        "categories": _unless_missing(lambda: ag.category_profile(found).to_dicts()),
        "importance": _unless_missing(lambda: asdict(ag.importance_correlation(found))),
        "agreement": None if reference is None else ag.compare_anchors(found, scored(reference)).to_dict(),
        "sentences": found.to_polars().to_dicts(),
    }
    deliver(Reply(document, found.to_polars(), _table), json, format, file)


def _unless_missing(ask: Callable[[], Any]) -> Any:
    """An answer, or None where the prompt lacks what it is about."""
    try:
        return ask()
    except GraphError:
        return None


def _table(document: Mapping[str, Any]) -> Table:
    heads = ", ".join(f"{layer}.{head}" for layer, head in document["receiver_heads"][:5])
    lines = [f"{len(document['receiver_heads'])} receiver heads: {heads}, …"]
    dropped = document["dropped"]
    kept = "not audited" if dropped is None else f"{dropped:.1%} ({document['dropped_source']})"
    lines.append(f"dropped attention of sentences: {kept}")
    lines += [
        f"{each['category']}: {each['sentences']}, percentile {each['percentile']:.2f}, p {_number(each['p'])}"
        for each in document["categories"] or ()
    ]
    if document["importance"]:
        found = document["importance"]
        lines.append(
            f"importance: ρ {found['spearman']:.2f}, p {found['p']:.3g}, within {found['stretches']} stretches of the "
            f"text {found['p_within_stretches']:.3g}"
        )
    if document["agreement"]:
        found = document["agreement"]
        lines.append(
            f"with the reference: ρ {found['spearman']:.2f} (its random heads {found['spearman_random_heads']:.2f}), "
            f"receiver heads {found['overlap']:.0%} (chance {found['overlap_chance']:.0%})"
        )
    table = Table(title="anchors: sentences by the attention of receiver heads", caption="\n".join(lines))
    for name in ("rank", "sentence", "category", "tokens", "score", "lower", "upper", "all heads"):
        table.add_column(name, justify="left" if name == "category" else "right")
    scored = [each for each in document["sentences"] if each["rank"] is not None]
    for each in sorted(scored, key=lambda sentence: sentence["rank"])[:SHOWN]:
        numbers = (_number(each[name]) for name in ("score", "lower", "upper", "all_heads"))
        tokens = f"{each['token_start']}–{each['token_end'] - 1}"
        table.add_row(str(each["rank"]), str(each["sentence"]), each["category"] or "–", tokens, *numbers)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
