"""Uniform budgets against budgets by mass: what each prunes, and what it costs. Bundled models, varied haystack.

Run: python tests/benchmarks/allocation.py [--length 4096] [--seeds 3] [--models smollm2-135m,gemma3-270m] [--json]
One pruned pass per prompt and setting, over the prompt and its answer (nothing is recorded): causal pairs pruned,
divergence from the dense model at the prompt's last token, whether the next two tokens are the dense model's, and the
answer's tokens that are still the first choice. Rows are means over a model's prompts, sorted by what they prune.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import attngraph as ag
from attngraph.capture.attention import replaced_attention
from attngraph.capture.cost import Tally
from attngraph.capture.fidelity import dense_reference, divergence, logits_after
from attngraph.capture.sparse import SparseAttention
from attngraph.models.structure import text_config

BUDGETS = (4, 6, 8, 12)
THRESHOLDS = {8: (0.9, 0.95), 16: (0.8, 0.9, 0.95, 0.98)}
"""Budgets of the uniform settings; thresholds by mass, for each budget that caps them."""

SETTINGS = {
    **{f"uniform {budget}": ag.StreamConfig(budget=budget) for budget in BUDGETS},
    **{
        f"mass {threshold} up to {cap}": ag.StreamConfig(budget=cap, allocation="mass", mass_threshold=threshold)
        for cap, thresholds in THRESHOLDS.items()
        for threshold in thresholds
    },
}


def measured(lm: ag.LanguageModel, length: int, seed: int) -> Iterator[dict[str, Any]]:
    """One prompt under every setting."""
    prompt = ag.tasks.needle(lm.tokenizer, length=length, haystack="varied", seed=seed)
    answer = prompt.answer_token_ids(lm.tokenizer)
    ids, target = prompt.token_ids, len(prompt) - 1
    reference = dense_reference(lambda following: logits_after(lm.model, ids, following), 2, answer)
    for name, config in SETTINGS.items():
        tally = Tally()
        attention = SparseAttention(config, range(target, target + len(answer)), record=tally.attended)
        with replaced_attention(lm.model, attention):
            logits = logits_after(lm.model, ids, answer[:-1])
        choices = logits.argmax(dim=-1).tolist()
        yield {
            "model": lm.id,
            "seed": seed,
            "setting": name,
            "pruned": tally.pruned(text_config(lm.model).num_attention_heads).causal,
            "kl": divergence(reference.target, logits[0]),
            "next_tokens_match": tuple(choices[:2]) == reference.greedy,
            "answer_kept": sum(a == b for a, b in zip(choices, answer, strict=True)),
            "answer_tokens": len(answer),
        }


def means(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per model and setting."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["model"], row["setting"]].append(row)
    for (model, setting), group in groups.items():
        yield {
            "model": model,
            "setting": setting,
            "pruned": sum(row["pruned"] for row in group) / len(group),
            "KL": sum(row["kl"] for row in group) / len(group),
            "worst KL": max(row["kl"] for row in group),
            "next 2 same": f"{sum(row['next_tokens_match'] for row in group)} of {len(group)}",
            "answer tokens kept": f"{sum(r['answer_kept'] for r in group)} of {sum(r['answer_tokens'] for r in group)}",
        }


COLUMNS = {
    "model": "{}",
    "setting": "{}",
    "pruned": "{:.2%}",
    "KL": "{:.3f}",
    "worst KL": "{:.3f}",
    "next 2 same": "{}",
    "answer tokens kept": "{}",
}
"""Columns of the table, and how their values are written."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4_096)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", default="smollm2-135m,gemma3-270m")
    parser.add_argument("--json", action="store_true", help="One document per prompt and setting, one per line.")
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models.split(","):
        lm = ag.load_model(model)
        for seed in range(arguments.seeds):
            for row in measured(lm, arguments.length, seed):
                rows.append(row)
                if arguments.json:
                    print(json.dumps(row), flush=True)
    if not arguments.json:
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        for row in sorted(means(rows), key=lambda row: (row["model"], row["pruned"])):
            print(f"| {' | '.join(text.format(row[name]) for name, text in COLUMNS.items())} |")


if __name__ == "__main__":
    main()
