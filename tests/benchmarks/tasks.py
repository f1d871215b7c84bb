"""How often do the bundled models solve the tasks? Dense forward passes alone, teacher-forced.

Run: python tests/benchmarks/tasks.py [--models smollm2-135m gemma3-270m] [--settings SETTING ...] [--seeds 20] [--json]
A setting is a task with what it takes, such as "multikey length=1024 haystack=varied distractors=3". Every token of the
answer is the first choice after the expected ones before it. *Solved* is the share of seeds with a score of 1, *score*
the mean share of expected values that were said, *first* the share of answers whose first token was right.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import attngraph as ag
from attngraph.capture.fidelity import logits_after
from attngraph.cli.options import task_options

MODELS = ("smollm2-135m", "gemma3-270m")
SETTINGS = (
    "needle length=1024 haystack=varied",
    "multikey length=1024 haystack=varied distractors=3",
    "multikey length=1024 haystack=varied distractors=12",
    "multikey length=1024 haystack=needles distractors=4",
    "multivalue length=1024",
    "multiquery length=1024",
    "variable_tracking length=1024 hops=1",
    "variable_tracking length=1024 hops=2",
    "variable_tracking length=1024 hops=2 ask=variables",
    "common_words length=1024 common=5",
    "frequent_words length=1024",
)


def measure(lm: ag.LanguageModel, setting: str, seeds: int) -> dict[str, Any]:
    """One row: a model's answers to `seeds` prompts of a setting."""
    task, *options = setting.split()
    started, scores, first, said = time.perf_counter(), [], 0, []
    for seed in range(seeds):
        prompt = ag.tasks.make(task, lm.tokenizer, seed=seed, **task_options(options))
        answer = prompt.answer_token_ids(lm.tokenizer)
        choices = logits_after(lm.model, prompt.token_ids, answer[:-1]).argmax(dim=-1).tolist()
        said.append({"expected": prompt.answer, "said": lm.tokenizer.decode(choices)})
        scores.append(ag.tasks.score(task, prompt.answer, said[-1]["said"]))
        first += choices[0] == answer[0]
    return {
        "model": lm.id,
        "setting": setting,
        "seeds": seeds,
        "solved": sum(score == 1 for score in scores) / seeds,
        "score": sum(scores) / seeds,
        "first": first / seeds,
        "seconds": time.perf_counter() - started,
        "answers": said,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="One line of JSON per row, with every answer.")
    given = parser.parse_args()
    if not given.json:
        print("| model | setting | seeds | solved | score | first | s |\n|---|---|---|---|---|---|---|")
    for model in given.models:
        lm = ag.load_model(model)
        for setting in given.settings:
            row = measure(lm, setting, given.seeds)
            if given.json:
                print(json.dumps(row), flush=True)
            else:
                shares = " | ".join(f"{row[name]:.2f}" for name in ("solved", "score", "first"))
                print(f"| {model} | {setting} | {row['seeds']} | {shares} | {row['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
