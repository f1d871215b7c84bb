"""`attngraph diff`: how do two groups of a store's runs differ, such as successes and failures?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

import attngraph as ag
from attngraph.cli.options import Json, Source, Target
from attngraph.cli.questions import FileOption, FormatOption, Reply, check_delivery, deliver
from attngraph.errors import ConfigError

SHOWN = 20
"""Features in the table for people."""
LEVEL = 0.05
"""Greatest p that is counted as found there."""


def diff(
    path: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a store.", show_default=False)],
    by: Annotated[
        str, typer.Option(help="What tells groups apart: outcome, a metadata key, config.budget …")
    ] = "outcome",
    group: Annotated[
        list[str] | None, typer.Option(help="One of the two groups, where there are more; give it twice.")
    ] = None,
    strata: Annotated[
        str, typer.Option(help="What runs must share to be compared, separated by commas.")
    ] = "task,model,length,config",
    model: Annotated[str | None, typer.Option(help="Compare only the runs of this model.")] = None,
    task: Annotated[str | None, typer.Option(help="Compare only the runs of this task.")] = None,
    source: Source = "needle",
    target: Target = "output",
    k: Annotated[int, typer.Option("-k", help="Best routes of every run that are compared.", min=1)] = 10,
    statistic: Annotated[Literal["rank", "t"], typer.Option(help="Of ranks within strata, or of the values.")] = "rank",
    permutations: Annotated[int, typer.Option(help="Placings of the labels that are tried.", min=19)] = 9_999,
    seed: Annotated[int, typer.Option(help="Seed of the placings.")] = 0,
    threshold: Annotated[float, typer.Option(help="Least |t| of a hop that joins a component.")] = 3.0,
    top: Annotated[int, typer.Option(help="Features and routes in the JSON document.", min=1)] = 100,
    json: Json = False,
    format: FormatOption = None,
    file: FileOption = None,
) -> None:
    """Show where two groups of runs differ, by layer, head and role, with permutation tests and corrections.

    Example: attngraph diff runs --by outcome
    """
    check_delivery(json, format, file)
    if group and len(group) != 2:
        raise ConfigError(f"--group was given {len(group)} times; name the two groups, one each.")
    runs = [
        run
        for run in ag.open_store(path)
        if model in (None, run.manifest.model.id) and task in (None, run.manifest.prompt.task)
    ]
    found = ag.diff(
        runs,
        by,
        groups=(group[0], group[1]) if group else None,
        strata=[name.strip() for name in strata.split(",") if name.strip()],
        source=source,
        target=target,
        k=k,
        statistic=statistic,
        permutations=permutations,
        seed=seed,
        threshold=threshold,
        top=top,
    )
    deliver(Reply({"store": str(path), **found.to_dict(top)}, found.to_polars(), _table), json, format, file)


def _table(document: Mapping[str, Any]) -> Table:
    runs = [sum(stratum[group] for stratum in document["runs"]) for group in ("first", "second")]
    sizes = " and ".join(f"{count} runs {name!r}" for count, name in zip(runs, document["groups"], strict=True))
    table = Table(
        title=f"{document['by']}: {sizes} in {len(document['runs'])} strata",
        caption="\n".join(_foot(document)),
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for name in ("feature", "head", "reads"):
        table.add_column(name, no_wrap=True)
    for name in (*document["groups"], "effect", "t", "p"):
        table.add_column(name, justify="right")
    for row in document["features"][:SHOWN]:
        place = [str(row[name]) for name in ("layer", "head") if row[name] is not None]
        reads = "" if row["key_role"] is None else f"{row['query_role']} ← {row['key_role']}"
        numbers = [f"{row[name]:.3g}" for name in ("mean_first", "mean_second")]
        numbers += [f"{row['rank_biserial']:+.2f}", f"{row['t']:+.1f}", f"{row['p_family']:.2g}"]
        table.add_row(row["feature"], ".".join(place), reads, *numbers)
    return table


def _foot(document: Mapping[str, Any]) -> list[str]:
    """What else was found, and what it doesn't say."""
    count, network = document["significant"], document["network"]["feature"]
    share = document["completeness"]
    source = document["completeness_source"]
    audited = "dropped attention not audited" if share is None else f"median completeness {share:.3f} ({source})"
    components = {hop["component"]: f"{hop['size']} hops (p {hop['p']:.2g})" for hop in document["components"]}
    routes = [
        f"{route['route']} ({route['share_first']:.0%}, {route['share_second']:.0%})"
        for route in document["routes"]
        if route["p_family"] <= LEVEL
    ]
    return [
        f"effect: rank-biserial; p: family-wise over {document['tested']:,} features, {document['permutations']:,} "
        f"permutations. At most {LEVEL}: {count['p_family']} features, q: {count['q']}; {audited}.",
        f"Components of {network}: {', '.join(list(components.values())[:3]) or 'none'}.",
        f"Routes that one group has more often: {'; '.join(routes[:SHOWN]) or 'none'}.",
        *document["not_covered"],
    ]
