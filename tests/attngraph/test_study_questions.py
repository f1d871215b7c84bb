"""The project's questions in a study of a tiny model: runs made by hand are reused, the summary tells each table."""

from __future__ import annotations

import json
from pathlib import Path

import attngraph as ag
from tests.attngraph.study_helpers import study_file

ROOT = Path(__file__).parents[2]
QUESTIONS = """
[[analyses]]
name = "knockout"
edges = 4
controls = ["random"]
draws = 2

[[analyses]]
name = "compare"
by = "task"
bins = 1
permutations = 19

[[analyses]]
name = "diff"
where = { seed = { first = 0, last = 1 } }
settings = { by = "seed", strata = ["model"], permutations = 19, resamples = 2, k = 1 }
"""
TASKS = """
[[tasks]]
name = "needle"
length = 700
seed = { first = 0, last = 1 }

[[tasks]]
name = "multikey"
length = 700
distractors = 1
haystack = "noise"
seed = { first = 0, last = 1 }
"""


def test_runs_made_by_hand_are_reused_and_the_summary_tells_every_table(command, tiny_folder, tmp_path):
    by_hand = tmp_path / "by_hand"
    lm = ag.load_model(str(tiny_folder))
    config = ag.StreamConfig(budget=6, n_match=1)
    for seed in (0, 1):
        prompt = ag.tasks.make("needle", lm.tokenizer, length=700, seed=seed)
        ag.capture(lm, prompt, config, store=by_hand, progress=False)
    configs = "[[configs]]\nbudget = 6\nn_match = 1\n"
    file = study_file(tmp_path, tiny_folder, tasks=TASKS, configs=configs, analyses=QUESTIONS)
    done = command("study", "run", file, "--store", by_hand, "--json")
    report = json.loads(done.stdout)
    assert (report["done"], report["captured"], report["failed_tables"]) == (4, 2, []), done.stderr
    assert len(ag.open_store(by_hand)) == 4

    summary = json.loads(command("study", "summary", file, "--store", by_hand, "--json").stdout)
    told = {one["table"]: one for one in summary["findings"]}
    assert told.keys() == {"knockout", "compare", "diff"}
    rows = told["knockout"]["told"]
    assert [(row["task"], row["removed"], row["runs"]) for row in rows] == [
        (task, removed, 2) for task in ("needle", "multikey") for removed in ("base", "edges", "random")
    ]
    assert all(row["effect"] == 0 for row in rows if row["removed"] == "base")
    assert [(row["one"], row["other"]) for row in told["compare"]["told"]] == [("multikey", "needle")]
    assert len(told["diff"]["told"]) == min(10, told["diff"]["rows"])
    printed = command("study", "summary", file, "--store", by_hand).stdout
    assert "knockout: 16 rows, by task, distractors, removed" in " ".join(printed.split())
    assert f"diff: first {len(told['diff']['told'])} of" in printed


def test_the_studies_of_the_project_ask_what_can_be_asked():
    asked = {file.stem: file for file in (ROOT / "analyses" / "studies").glob("*.toml")}
    names = {"across_models", "knockout", "needle", "success_failure", "thought_anchors", "variable_tracking"}
    assert asked.keys() == names
    plans = {name: ag.study.load(file, ag.ANALYSES) for name, file in asked.items()}
    assert {name: len(plan.tasks) for name, plan in plans.items()} == {
        "across_models": 20, "knockout": 16, "needle": 20, "success_failure": 110, "thought_anchors": 9,
        "variable_tracking": 80,
    }  # fmt: skip
    # Runs are shared: every task of these two is one of the needle study.
    needles = {task.id for task in plans["needle"].tasks}
    assert {task.id for name in ("across_models", "knockout") for task in plans[name].tasks} <= needles
