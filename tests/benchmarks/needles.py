"""Does the pruned model still answer, and does the graph find the needle? Bundled models, both haystacks, many seeds.

Run: python tests/benchmarks/needles.py [--length 4096] [--seeds 5] [--budget 8|auto] [--n-match 2|answer] [--json]
One row per prompt, with the default settings but for these: budget (the one found, for auto), pruned share, whether the
next tokens are the dense model's, the answer's tokens that are still the first choice (and the dense model's own),
divergence, the needle's rank by excess influence (over other targets of the run, and over uniform weights), and the
head of the strongest edge from the needle into the target.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any

import attngraph as ag
from attngraph.cli.demo import demo_document
from attngraph.cli.options import config_of

MODELS = ("smollm2-135m", "gemma3-270m")
HAYSTACKS = ("noise", "varied")


def measure(
    lm: ag.LanguageModel, config: ag.StreamConfig, length: int, haystack: str, seed: int, store: str
) -> dict[str, Any]:
    """One prompt, captured and asked."""
    prompt = ag.tasks.needle(lm.tokenizer, length=length, haystack=haystack, seed=seed)
    run = ag.capture(lm, prompt, config, store=store, progress=False)
    found = demo_document(run, 1)
    edge = found["needle"]["strongest_edge"] or {}
    return {
        "model": lm.id,
        "haystack": haystack,
        "seed": seed,
        "tokens": found["tokens"],
        "budget": found["budget"],
        "pruned": found["pruned"]["causal"],
        "next_tokens_match": found["next_tokens_match"],
        "answer_kept": found["answer"]["tokens_kept"],
        "answer_dense": run.manifest.fidelity.dense_answer_tokens_kept,
        "kl": found["kl"],
        "dense_margin": run.manifest.fidelity.dense_margin,
        "rank": found["needle"]["rank"],
        "rank_uniform": found["needle"]["rank_uniform"],
        "head": f"{edge.get('layer')}.{edge.get('head')}",
        "seconds": found["seconds"]["capture"],
        "dense_seconds": found["seconds"]["dense_forward"],
    }


def all_rows(config: ag.StreamConfig, length: int, seeds: int) -> Iterator[dict[str, Any]]:
    for model in MODELS:
        lm = ag.load_model(model)
        for haystack in HAYSTACKS:
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as store:
                    yield measure(lm, config, length, haystack, seed, store)


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line per model and haystack."""
    for model in MODELS:
        heads = Counter(row["head"] for row in rows if row["model"] == model)
        yield f"{model}: strongest edge from the needle into the target, layer.head: {dict(heads.most_common())}"
        for haystack in HAYSTACKS:
            group = [row for row in rows if (row["model"], row["haystack"]) == (model, haystack)]
            kept = sum(row["next_tokens_match"] and row["answer_kept"] == 7 for row in group)
            near, near_uniform = (
                sum(row[name] is not None and row[name] <= 1 for row in group) for name in ("rank", "rank_uniform")
            )
            least, middle = min(row["pruned"] for row in group), median(row["pruned"] for row in group)
            yield (
                f"  {haystack}: next tokens and whole answer kept in {kept} of {len(group)}, "
                f"needle first or second in {near} (in {near_uniform} under the uniform null), "
                f"pruned at least {least:.1%}, at the median {middle:.1%}"
            )


COLUMNS = {
    "model": "model",
    "haystack": "haystack",
    "seed": "seed",
    "budget": "budget",
    "pruned": "pruned",
    "next_tokens_match": "next same",
    "answer_kept": "answer kept",
    "answer_dense": "dense answer",
    "dense_margin": "dense margin",
    "kl": "KL",
    "rank": "needle rank",
    "rank_uniform": "uniform null",
    "head": "head",
    "seconds": "capture s",
    "dense_seconds": "dense s",
}
"""Fields of a row, and what they are called in the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4_096)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", default="8")
    parser.add_argument("--n-match", default="2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    config = config_of(16, arguments.budget, arguments.n_match)
    rows = []
    if not arguments.json:
        print(f"| {' | '.join(COLUMNS.values())} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for row in all_rows(config, arguments.length, arguments.seeds):
        rows.append(row)
        if not arguments.json:
            cells = (f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
            print(f"| {' | '.join(cells)} |", flush=True)
    print(json.dumps(rows) if arguments.json else "\n" + "\n".join(summary(rows)))


if __name__ == "__main__":
    main()
