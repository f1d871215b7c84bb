"""Do the edges that the graph points at carry the answer? Needle prompts without them, and with nothing else.

Run: python tests/benchmarks/knockout.py --rows knockout.jsonl [--models smollm2-135m gemma3-270m] [--lengths 2048 4096]
         [--seeds 0:20] [--first-layers 1] [--edges 30] [--draws 3] [--forward sparse] [--share 0.98]
         [--stop-after SECONDS]

Every prompt (varied haystack, depth 0.5) that the rows don't have yet is captured and its row added to the file, seed
by seed, so that an interrupted run goes on where it was; with --stop-after no further prompt is begun after so many
seconds. Of the prompts that succeed are printed: what the log-probability of the answer's first token loses without the
edges of greatest needle → output throughput and without the controls', at the median over prompts (of a control: of the
median over its draws), and how often the answer's first token stays the first choice with nothing but the sub-graph
that carries the share and the forced blocks, with as many random edges, and with the forced blocks alone.

Marks: at least 1 nat at the median without the edges, at most 0.2 without mass-matched ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from json_lines import append_rows, read_rows

import attngraph as ag

LOST, LOST_BY_CONTROL = 1.0, 0.2
KEY = ("model", "length", "seed", "first_layers", "edges", "draws", "forward", "share")
CONTROLS = ("mass_matched", "random", "distance_matched")


def measured(lm: ag.LanguageModel, case: dict[str, Any]) -> dict[str, Any]:
    """One prompt, captured and asked."""
    prompt = ag.tasks.needle(lm.tokenizer, length=case["length"], seed=case["seed"], haystack="varied")
    with tempfile.TemporaryDirectory() as store:
        config = ag.StreamConfig(first_layers=case["first_layers"])
        run = ag.capture(lm, prompt, config, store=store, progress=False)
        if not run.manifest.outcome.success:
            return {**case, "success": False}
        started = time.perf_counter()
        asked = {"forward": case["forward"], "progress": False}
        found = ag.knockout(lm, run, case["edges"], draws=case["draws"], controls=CONTROLS, **asked)
        kept = ag.sufficiency(lm, run, (case["share"],), **asked)
    forced, subgraph = kept.points
    return {
        **case,
        "success": True,
        "base": found.base,
        "knocked_out": found.knocked_out,
        "survives": found.survives,
        "controls": {name: control.median for name, control in found.controls.items()},
        "drift": found.drift,
        "kept_edges": subgraph.edges,
        "kept_carry": subgraph.carried,
        "kept": subgraph.log_probability,
        "kept_survives": subgraph.margin > 0,
        "random_kept": subgraph.control.median,
        "random_survives": bool((subgraph.control.margin > 0).all()),
        "forced": forced.log_probability,
        "forced_survives": forced.margin > 0,
        "passes": 1 + 1 + sum(len(control.edges) for control in found.controls.values()),
        "forwards": found.forwards,
        "seconds": time.perf_counter() - started,
        "recorded_edges": run.cost.edges,
    }


def rows_of(cases: list[dict[str, Any]], file: Path, stop_after: float) -> Iterator[dict[str, Any]]:
    """Every case's row, measured where the file lacks it."""
    known = {tuple(row[name] for name in KEY): row for row in read_rows(file)}
    loaded: dict[str, ag.LanguageModel] = {}
    started = time.perf_counter()
    for case in cases:
        key = tuple(case[name] for name in KEY)
        if key not in known:
            if time.perf_counter() - started > stop_after:
                continue
            if case["model"] not in loaded:
                loaded[case["model"]] = ag.load_model(case["model"])
            known[key] = measured(loaded[case["model"]], case)
            append_rows(file, [known[key]])
        yield known[key]


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table with a line per model and length, and one for all."""
    yield (
        f"| model | tokens | prompts that succeed | loses, median nats | least | {' | '.join(CONTROLS)} | marks "
        "| first choice without the edges | with the sub-graph alone | with random edges | with forced blocks alone |"
    )
    yield "|---" * (10 + len(CONTROLS)) + "|"
    groups = sorted({(row["model"], row["length"]) for row in rows})
    for model, length in [*groups, ("all", "all")]:
        group = [row for row in rows if model == "all" or (row["model"], row["length"]) == (model, length)]
        done = [row for row in group if row["success"]]
        if not done:
            continue
        lost = [row["base"] - row["knocked_out"] for row in done]
        by_control = [median(row["base"] - row["controls"][name] for row in done) for name in CONTROLS]
        met = median(lost) >= LOST and by_control[0] <= LOST_BY_CONTROL
        survived = (
            f"{sum(row[name] for row in done)} of {len(done)}"
            for name in ("survives", "kept_survives", "random_survives", "forced_survives")
        )
        numbers = " | ".join(f"{value:.2f}" for value in (median(lost), min(lost), *by_control))
        yield (
            f"| {model} | {length} | {len(done)} of {len(group)} | {numbers} | {'met' if met else 'missed'} "
            f"| {' | '.join(survived)} |"
        )
    done = [row for row in rows if row["success"]]
    if done:
        share = median(row["kept_edges"] / row["recorded_edges"] for row in done)
        saved = 1 - sum(row["forwards"] for row in done) / sum(row["passes"] for row in done)
        yield (
            f"\nThe sub-graph has {share:.2%} of the recorded edges at the median. To begin at the first changed layer "
            f"saved {saved:.0%} of the passes' layers; {median(row['seconds'] for row in done):.0f} s per prompt."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("knockout.jsonl"))
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--seeds", default="0:20", help="FIRST:LAST, the last one not included")
    parser.add_argument("--first-layers", type=int, default=ag.StreamConfig().first_layers)
    parser.add_argument("--edges", type=int, default=30)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--forward", choices=("sparse", "dense"), default="sparse")
    parser.add_argument("--share", type=float, default=0.98)
    parser.add_argument("--stop-after", type=float, default=float("inf"))
    given = parser.parse_args()
    first, last = map(int, given.seeds.split(":"))
    settings = {name: getattr(given, name) for name in ("first_layers", "edges", "draws", "forward", "share")}
    cases = [
        {"model": model, "length": length, "seed": seed, **settings}
        for length, seed, model in product(given.lengths, range(first, last), given.models)
    ]
    rows = list(rows_of(cases, given.rows, given.stop_after))
    print(f"{len(rows)} of {len(cases)} prompts measured.\n")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
