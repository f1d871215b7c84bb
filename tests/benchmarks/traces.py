"""How much of a chain of thought can be pruned? Reasoning traces, and the smallest budget that keeps two tokens.

Run: python tests/benchmarks/traces.py FOLDER --rows FILE.jsonl [--models …] [--block-sizes 16 8] [--least-tokens 4000]
         [--allocations uniform mass]

FOLDER holds one JSON file per trace, with its `prompt` and `solution` as text. Every trace with enough tokens is
captured with ``budget="auto"``: the smallest budget with which the two tokens after the trace are the dense model's.
With ``allocation="mass"`` the budget is a cap, and rows whose mass fewer blocks hold keep fewer. Rows are appended to
FILE as they are measured, and what it holds isn't measured again. Printed are one row per trace and setting (budget,
pruned share, how many first choices along the trace agree, divergence), then the median of the pruned shares, beside
the 97-99 % that Rosser et al. 2025 report for chains of thought.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from json_lines import append_rows, read_rows

import attngraph as ag
from attngraph.config import Allocation

MODELS = ("smollm2-135m", "gemma3-270m")
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "mass")
MARK = 0.975
NAMES = ("model", "trace", "first_layers", "allocation", "mass_threshold", "block_size")
"""What tells rows apart."""


def measure(lm: ag.LanguageModel, prompt: ag.Prompt, config: ag.StreamConfig) -> dict[str, Any]:
    """One trace, captured with the smallest budget that does."""
    with tempfile.TemporaryDirectory() as store:
        manifest = ag.capture(lm, prompt, config, store=store, progress=False).manifest
    fidelity = manifest.fidelity
    return {
        "tokens": len(prompt),
        "budget": manifest.budget,
        "pruned": manifest.cost.pruned.causal,
        "next_tokens_match": fidelity.next_tokens_match,
        "agreement": fidelity.completion_agreement,
        "kl": fidelity.kl,
        "tried": {probe.budget: probe.match for probe in manifest.found_budget.curve},
    }


def new_rows(given: argparse.Namespace, known: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for model in given.models:
        lm = ag.load_model(model)
        for path in sorted(given.folder.glob("*.json")):
            trace = json.loads(path.read_text(encoding="utf-8"))
            prompt = ag.Prompt.from_text(lm.tokenizer, trace["prompt"], completion=trace["solution"])
            for size, allocation in product(given.block_sizes, given.allocations):
                config = ag.StreamConfig(block_size=size, budget="auto", allocation=allocation)
                threshold = config.mass_threshold if allocation == "mass" else None
                case = (model, path.stem, config.first_layers, allocation, threshold, size)
                if len(prompt) >= given.least_tokens and case not in known:
                    yield dict(zip(NAMES, case, strict=True)) | measure(lm, prompt, config)


def medians(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The median pruned share by block size and allocation, over both models and by model."""
    for size, allocation in sorted({(row["block_size"], row["allocation"]) for row in rows}):
        same = [row for row in rows if (row["block_size"], row["allocation"]) == (size, allocation)]
        groups = {"all": same} | {
            model: [row for row in same if row["model"] == model] for model in sorted({r["model"] for r in same})
        }
        found = {name: median(row["pruned"] for row in group) for name, group in groups.items()}
        met = "met" if found["all"] >= MARK else "missed"
        kept = sum(row["next_tokens_match"] for row in same)
        yield (
            f"blocks of {size}, {allocation}: two tokens kept in {kept} of {len(same)}; "
            f"pruned at the median {', '.join(f'{name} {value:.2%}' for name, value in found.items())} "
            f"(mark {MARK:.1%}: {met})"
        )


COLUMNS = (*NAMES, "tokens", "budget", "pruned", "next_tokens_match", "agreement", "kl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines: read, and appended to")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--block-sizes", nargs="+", type=int, default=[16, 8])
    parser.add_argument("--allocations", nargs="+", choices=ALLOCATIONS, default=list(ALLOCATIONS))
    parser.add_argument("--least-tokens", type=int, default=4_000)
    given = parser.parse_args()
    rows = read_rows(given.rows)
    known = {tuple(row[name] for name in NAMES) for row in rows}
    for row in new_rows(given, known):
        rows.append(row)
        append_rows(given.rows, [row])
    if not rows:
        parser.error(f"{given.folder} has no trace of {given.least_tokens:,} tokens or more.")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for row in sorted(rows, key=lambda row: [str(row[name]) for name in NAMES]):
        cells = (f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
        print(f"| {' | '.join(cells)} |")
    print("\n" + "\n".join(medians(rows)))


if __name__ == "__main__":
    main()
