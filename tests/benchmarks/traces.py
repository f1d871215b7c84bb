"""How much of a chain of thought can be pruned? Reasoning traces, and the smallest budget that keeps two tokens.

Run: python tests/benchmarks/traces.py FOLDER [--models …] [--block-sizes 16 8] [--least-tokens 4000] [--json]

FOLDER holds one JSON file per trace, with its `prompt` and `solution` as text. Every trace with enough tokens is
captured with ``budget="auto"``: the smallest budget with which the two tokens after the trace are the dense model's.
Printed are one row per trace and block size (budget, pruned share, how many first choices along the trace agree,
divergence), then the median of the pruned shares, beside the 97-99 % that Rosser et al. 2025 report for chains of
thought.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import attngraph as ag

MODELS = ("smollm2-135m", "gemma3-270m")
MARK = 0.975


def measure(lm: ag.LanguageModel, path: Path, prompt: ag.Prompt, block_size: int) -> dict[str, Any]:
    """One trace, captured with the smallest budget that does."""
    with tempfile.TemporaryDirectory() as store:
        run = ag.capture(lm, prompt, ag.StreamConfig(block_size=block_size, budget="auto"), store=store, progress=False)
        manifest = run.manifest
    fidelity = manifest.fidelity
    return {
        "model": lm.id,
        "trace": path.stem,
        "tokens": len(prompt),
        "block_size": block_size,
        "budget": manifest.budget,
        "pruned": manifest.cost.pruned.causal,
        "next_tokens_match": fidelity.next_tokens_match,
        "agreement": fidelity.completion_agreement,
        "kl": fidelity.kl,
        "tried": {probe.budget: probe.match for probe in manifest.found_budget.curve},
        "seconds": manifest.cost.capture_seconds,
        "dense_seconds": manifest.cost.dense_forward_seconds,
    }


def all_rows(folder: Path, models: list[str], block_sizes: list[int], least: int) -> Iterator[dict[str, Any]]:
    for model in models:
        lm = ag.load_model(model)
        for path in sorted(folder.glob("*.json")):
            trace = json.loads(path.read_text(encoding="utf-8"))
            prompt = ag.Prompt.from_text(lm.tokenizer, trace["prompt"], completion=trace["solution"])
            if len(prompt) >= least:
                yield from (measure(lm, path, prompt, block_size) for block_size in block_sizes)


def medians(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The median pruned share by block size, over both models and by model."""
    for size in sorted({row["block_size"] for row in rows}, reverse=True):
        of_size = [row for row in rows if row["block_size"] == size]
        groups = {"all": of_size} | {
            model: [row for row in of_size if row["model"] == model] for model in sorted({r["model"] for r in of_size})
        }
        found = {name: median(row["pruned"] for row in group) for name, group in groups.items()}
        met = "met" if found["all"] >= MARK else "missed"
        kept = sum(row["next_tokens_match"] for row in of_size)
        yield (
            f"blocks of {size}: two tokens kept in {kept} of {len(of_size)}; "
            f"pruned at the median {', '.join(f'{name} {value:.2%}' for name, value in found.items())} "
            f"(mark {MARK:.1%}: {met})"
        )


COLUMNS = ("model", "trace", "tokens", "block_size", "budget", "pruned", "next_tokens_match", "agreement", "kl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--block-sizes", nargs="+", type=int, default=[16, 8])
    parser.add_argument("--least-tokens", type=int, default=4_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    if not given.json:
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for row in all_rows(given.folder, given.models, given.block_sizes, given.least_tokens):
        rows.append(row)
        if not given.json:
            cells = (f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
            print(f"| {' | '.join(cells)} |", flush=True)
    if not rows:
        parser.error(f"{given.folder} has no trace of {given.least_tokens:,} tokens or more.")
    print(json.dumps(rows) if given.json else "\n" + "\n".join(medians(rows)))


if __name__ == "__main__":
    main()
