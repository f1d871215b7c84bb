"""Successes against failures on multi-key prompts: what do heads read where the model answers, and is it so again?

1. Capture prompts of one difficulty: one needle among three of other keys, at one depth, 1,024 tokens.
2. `ag.diff` by outcome on the first seeds names features with a family-wise p ≤ .05 over all features.
3. The same features alone are tested on fresh seeds: one is confirmed if it differs in the same direction, family-wise
   p ≤ .05 over those named.
4. Control: the outcomes of the first seeds are shuffled, and step 2 is done again and again.

Runs that the store holds already are not captured again, so a study that was stopped goes on.

    python analyses/studies/success_failure.py --store runs/success_failure
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

import attngraph as ag
from attngraph_analyses import Diff, RoleFeatures
from attngraph_analyses.run_features import KEYS

TASK = "multikey"
SHOWN = 15


def main(arguments: Sequence[str] | None = None) -> None:
    """Capture, compare, confirm, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, default=Path("runs/success_failure"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--distractors", type=int, default=3)
    parser.add_argument("--found", type=int, default=80, help="runs of seeds 0, 1, … that differences are found in")
    parser.add_argument("--fresh", type=int, default=80, help="runs of seeds 1000, 1001, … that they are confirmed in")
    parser.add_argument("--shuffles", type=int, default=40, help="shuffles of the outcomes")
    options = parser.parse_args(arguments)

    seeds = {"found": range(options.found), "fresh": range(1000, 1000 + options.fresh)}
    capture(options, [seed for part in seeds.values() for seed in part])
    runs = {run.manifest.prompt.metadata["seed"]: run for run in matching(options)}
    features = ag.role_features(runs[seed] for seed in seeds["found"])

    found = ag.diff(features)
    named = found.significant()
    print(
        f"\n{heading(found)}: {len(named)} of {len(found.table)} features with family-wise p ≤ .05, "
        f"{len(found.significant(correction='q'))} with q ≤ .05"
    )
    show(named.head(SHOWN))
    print("by kind, layer and head:")
    show(named.group_by("feature", "query_role", "key_role").len().sort("len", descending=True))
    print("components:", found.components.group_by("component", "size", "p").len().sort("component").rows()[:3])
    print("routes:")
    show(found.routes.filter(pl.col("p_family") <= 0.05).head(SHOWN))

    alarms = shuffled(features, options.shuffles)
    print(f"shuffled outcomes: {alarms} of {options.shuffles} with any family-wise p ≤ .05")

    if len(named) and options.fresh:
        confirm(ag.role_features(runs[seed] for seed in seeds["fresh"]), named, options.store)
    named.write_parquet(options.store / "named.parquet")
    for line in found.not_covered:
        print("-", line)


def matching(options: argparse.Namespace) -> list[ag.Run]:
    """The store's runs of this study's prompts."""
    wanted = {"length": options.length, "distractors": options.distractors}
    return [
        run
        for run in (ag.open_store(options.store) if options.store.exists() else ())
        if run.manifest.prompt.task == TASK
        and run.manifest.model.id == options.model
        and all(count(run.manifest.prompt.metadata.get(name)) == value for name, value in wanted.items())
    ]


def count(value: object) -> object:
    """How many, where a list is told."""
    return len(value) if isinstance(value, list | tuple | dict) else value


def capture(options: argparse.Namespace, seeds: Sequence[int]) -> None:
    """Capture the seeds that the store lacks."""
    done = {run.manifest.prompt.metadata["seed"] for run in matching(options)}
    missing = [seed for seed in seeds if seed not in done]
    if not missing:
        return
    lm = ag.load_model(options.model)
    for number, seed in enumerate(missing, 1):
        prompt = ag.tasks.make(
            TASK, lm.tokenizer, length=options.length, seed=seed, distractors=options.distractors, haystack="varied"
        )
        run = ag.capture(lm, prompt, store=options.store)
        print(f"{number} of {len(missing)}: seed {seed}, {outcome(run)}", flush=True)


def outcome(run: ag.Run) -> str:
    """A run's outcome in a word."""
    told = run.manifest.outcome
    return "no outcome" if told is None else "success" if told.success else "failure"


def shuffled(features: RoleFeatures, shuffles: int) -> int:
    """How often shuffled outcomes make any family-wise p ≤ .05."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(shuffles):
        order = random.permutation(len(features.manifests))
        manifests = tuple(
            msgspec.structs.replace(manifest, outcome=features.manifests[place].outcome)
            for manifest, place in zip(features.manifests, order, strict=True)
        )
        found = ag.diff(replace(features, manifests=manifests), permutations=499, top=1, resamples=1)
        alarms += bool(len(found.significant()))
    return alarms


def confirm(features: RoleFeatures, named: pl.DataFrame, folder: Path) -> None:
    """Test what was named on fresh runs, and print what holds."""
    fresh = ag.diff(features, only=named, top=len(named))
    both = fresh.table.join(named, on=KEYS, nulls_equal=True, suffix="_before")
    same = both.filter(pl.col("t").sign() == pl.col("t_before").sign())
    held = same.filter(pl.col("p_family") <= 0.05)
    print(
        f"\n{heading(fresh)}: {len(both)} named features vary, {len(same)} differ in the same direction, "
        f"{len(held)} with family-wise p ≤ .05"
    )
    show(held.head(SHOWN))
    held.write_parquet(folder / "confirmed.parquet")


def heading(found: Diff) -> str:
    """The groups and their sizes."""
    sizes = zip(found.groups, found.runs.select("first", "second").sum().row(0), strict=True)
    return ", ".join(f"{size} {name}" for name, size in sizes)


def show(table: pl.DataFrame) -> None:
    """A table as lines."""
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=160,
        float_precision=4,
        tbl_formatting="ASCII_MARKDOWN",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        fmt_str_lengths=60,
    ):
        columns = [
            "feature",
            "layer",
            "head",
            "query_role",
            "key_role",
            "mean_first",
            "mean_second",
            "rank_biserial",
            "rank_biserial_low",
            "rank_biserial_high",
            "p_family",
        ]
        print(table.select(columns) if "rank_biserial" in table.columns else table)


if __name__ == "__main__":
    main()
