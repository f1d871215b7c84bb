"""Does the graph point at the needle, and do its retrieval heads agree? Over models, lengths, haystacks and seeds.

Run: python tests/benchmarks/questions.py [--store questions] [--models smollm2-135m gemma3-270m]
         [--lengths 2048 4096 8192] [--haystacks noise varied] [--seeds 0:10] [--depth 0.5] [--json]

1. Every prompt that the store doesn't hold yet is captured into it, without the fidelity check, so that an
   interrupted run goes on where it was.
2. Blocks are ranked by excess influence on the output, in the graph with and without the sink's edges, against every
   null: how many blocks that are neither the sink nor in or after the question come before the needle's best one.
3. The five best retrieval heads of every run are compared between the seeds of one model, length and haystack.

Printed are one row per null, with the shares ranked first and first or second over all prompts and by model and which
prompts fail, then the overlap of retrieval heads. Marks: first in 85 %, first or second in 95 %, overlap 0.8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import attngraph as ag
from attngraph.errors import GraphError
from attngraph_analyses.stability import overlap

NULLS = ("uniform", "targets", "distance", "edges")
SINKS = ("keep", "exclude")
FIRST, SECOND, OVERLAP = 0.85, 0.95, 0.8
TOP = 5


class Case(NamedTuple):
    """One prompt for one model."""

    model: str
    length: int
    haystack: str
    seed: int
    depth: float

    def __str__(self) -> str:
        return f"{self.model} {self.length} {self.haystack} {self.seed}"


def captured(store: Path) -> dict[Case, ag.Run]:
    """The needle runs of a store, by their prompts."""
    if not store.exists():
        return {}
    found = {}
    for run in ag.open_store(store):
        made = run.manifest.prompt.metadata
        if run.manifest.prompt.task == "needle":
            case = Case(run.manifest.model.id, made["length"], made["haystack"], made["seed"], made["depth"])
            found[case] = run
    return found


def runs_of(cases: list[Case], store: Path) -> Iterator[tuple[Case, ag.Run]]:
    """Every case's run, captured where the store lacks it; a model is loaded only if it is needed."""
    known, loaded = captured(store), {}
    for case in cases:
        if case not in known:
            if case.model not in loaded:
                loaded = {case.model: ag.load_model(case.model)}
            lm = loaded[case.model]
            prompt = ag.tasks.needle(
                lm.tokenizer, length=case.length, depth=case.depth, seed=case.seed, haystack=case.haystack
            )
            known[case] = ag.capture(lm, prompt, ag.StreamConfig(n_match=0), store=store, progress=False)
        yield case, known[case]


def measured(case: Case, run: ag.Run, nulls: list[str]) -> dict[str, Any]:
    """One run's ranks by null and sink, and its best retrieval heads."""
    ranks = {f"{null}, sink {sink}": rank(run.graph(sink=sink), null) for null in nulls for sink in SINKS}
    heads = ag.head_roles(run, "needle", "output").best(TOP)
    return {**case._asdict(), "ranks": ranks, "heads": heads}


def rank(graph: ag.AttentionGraph, null: str) -> int | None:
    """The needle's rank; None where it shares its blocks with the sink or the question."""
    try:
        found: int = ag.influence(graph, null=null).rank_of("needle", before="question")
    except GraphError:
        return None
    return found


def ranking_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For every null and sink: shares ranked first, and first or second, in all and by model, and what fails."""
    for null in rows[0]["ranks"]:
        ranks = {Case(*(row[name] for name in Case._fields)): row["ranks"][null] for row in rows}
        ranked = {case: value for case, value in ranks.items() if value is not None}
        models = sorted({case.model for case in ranked})
        yield {
            "null": null,
            "prompts": len(ranked),
            "first": share(list(ranked.values()), 0),
            "second": share(list(ranked.values()), 1),
            "by_model": {
                model: [
                    share([value for case, value in ranked.items() if case.model == model], most) for most in (0, 1)
                ]
                for model in models
            },
            "fails": {str(case): value for case, value in ranked.items() if value > 1},
        }


def share(ranks: list[int], most: int) -> float:
    return float(np.mean([value <= most for value in ranks]))


def overlaps(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean overlap of the best heads between the seeds of every model, length and haystack that has two."""
    groups: dict[str, list[set[tuple[int, int]]]] = {}
    for row in rows:
        key = f"{row['model']} {row['length']} {row['haystack']}"
        groups.setdefault(key, []).append({tuple(head) for head in row["heads"]})
    shared = {key: overlap(best) for key, best in groups.items()}
    return {key: value for key, value in shared.items() if value is not None}


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    ranking = sorted(ranking_rows(rows), key=lambda row: (-row["first"], -row["second"]))
    models = list(ranking[0]["by_model"])
    yield f"| null | first | first or second | {' | '.join(models)} | marks | third or later |"
    yield "|---" * (5 + len(models)) + "|"
    for row in ranking:
        met = "met" if row["first"] >= FIRST and row["second"] >= SECOND else "missed"
        parts = " | ".join(" / ".join(f"{value:.0%}" for value in row["by_model"][model]) for model in models)
        fails = ", ".join(f"{case}: place {value + 1}" for case, value in list(row["fails"].items())[:8])
        more = f" and {len(row['fails']) - 8} more" if len(row["fails"]) > 8 else ""
        yield f"| {row['null']} | {row['first']:.1%} | {row['second']:.1%} | {parts} | {met} | {fails}{more} |"
    yield ""
    shared = overlaps(rows)
    yield f"| seeds of | overlap of the {TOP} best retrieval heads |\n|---|---|"
    yield from (f"| {group} | {value:.2f} |" for group, value in shared.items())
    if shared:
        mean = float(np.mean(list(shared.values())))
        yield f"| mean | {mean:.2f} ({'met' if mean >= OVERLAP else 'missed'}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("questions"))
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--haystacks", nargs="+", default=["noise", "varied"])
    parser.add_argument("--seeds", default="0:10", help="FIRST:LAST, the last one not included")
    parser.add_argument("--depth", type=float, default=0.5)
    parser.add_argument("--nulls", nargs="+", default=list(NULLS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    first, last = map(int, given.seeds.split(":"))
    cases = [
        Case(model, length, haystack, seed, given.depth)
        for model in given.models
        for length in given.lengths
        for haystack in given.haystacks
        for seed in range(first, last)
    ]
    rows = [measured(case, run, given.nulls) for case, run in runs_of(cases, given.store)]
    print(
        json.dumps({"rows": rows, "ranking": list(ranking_rows(rows)), "overlap": overlaps(rows)})
        if given.json
        else "\n".join(report(rows))
    )


if __name__ == "__main__":
    main()
