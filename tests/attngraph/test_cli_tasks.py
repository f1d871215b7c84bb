"""`attngraph capture` makes every task's prompt, reads traces, and says how the task went."""

from __future__ import annotations

import json
from typing import get_args

import pytest

import attngraph as ag
from attngraph.cli.options import TaskName, task_options
from attngraph.errors import ConfigError
from attngraph.tasks.reasoning import TRACES

FAST = ("--n-match", 0, "--audit", "none", "--block-size", 32)


def test_the_command_line_knows_every_task() -> None:
    assert get_args(TaskName) == tuple(ag.tasks.TASKS)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("multikey", "--option", "distractors=2", "--haystack", "needles", "--depth", 0.2), {"depth": 0.2}),
        (("variable_tracking", "--option", "hops=3", "--option", "ask=variables"), {"hops": 3, "ask": "variables"}),
        (("frequent_words", "--option", "alpha=3"), {"alpha": 3, "seed": 3, "length": 1500}),
    ],
)
def test_a_task_by_name(command, tiny_folder, tmp_path, flags, expected):
    common = ("--length", 1500, "--seed", 3, *FAST, "--store", tmp_path, "--json")
    result = command("capture", "--model", tiny_folder, "--task", *flags, *common)
    assert result.code == 0, result.stderr
    prompt = json.loads(result.stdout)["prompt"]
    assert prompt["task"] == flags[0]
    assert {name: prompt["metadata"][name] for name in expected} == expected
    run = ag.open_run(json.loads(result.stdout)["run"])
    assert {"sink", "question", "answer_prefix"} <= {span.name for span in run.manifest.prompt.spans}


def test_traces_by_name_and_by_file(command, tiny_folder, tmp_path):
    by_name = command(
        "capture", "--model", tiny_folder, "--task", "reasoning", "--option", "trace=tank", *FAST, "--store", tmp_path
    )
    assert by_name.code == 0, by_name.stderr
    file = tmp_path / "trace.json"
    file.write_text(
        json.dumps(
            {
                "prompt": "Problem: What is 2 + 3?\n",
                "solution": "I have to add here. So it is 5.\n\n" * 9 + "It is \\boxed{5}.",
                "sentences": [{"text": "I have to add here."}, {"text": "It is \\boxed{5}."}],
            }
        )
    )
    flags = ("--trace", file, "--option", "until=answer", "--block-size", 32, "--store", tmp_path)
    shown = command("capture", "--model", tiny_folder, *flags)
    assert shown.code == 0, shown.stderr
    named, given = ag.open_store(tmp_path)
    assert named.manifest.prompt.metadata["trace"] == "tank"
    assert given.manifest.prompt.answer == "5"
    assert {"completion", "sentence:0", "sentence:1"} <= {span.name for span in given.manifest.prompt.spans}
    outcome = given.manifest.outcome
    said = f"outcome   {'success' if outcome.success else 'FAILURE'}: expected '5', dense said "
    assert said in shown.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "multikey", "--option", "distractors"), "--option 'distractors' isn't of the form name=value"),
        (("--task", "multikey", "--trace", __file__), "exactly one of --task NAME, --prompt FILE.json"),
        (("--text", __file__, "--option", "hops=2"), "--option is for --task and --trace"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_looked_for(command, tmp_path, flags, message):
    result = command("capture", "--model", "./gone", *flags, "--store", tmp_path / "s")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "multikey", "--option", "hops=2"), "The task 'multikey' can't be made with"),
        (("--task", "multikey", "--option", "task=1"), "The task 'multikey' can't be made with"),
        (("--task", "common_words", "--depth", 0.5), "The task 'common_words' can't be made with"),
        (("--task", "reasoning", "--option", "trace=boats"), f"trace='boats' is not one of {', '.join(TRACES)}"),
    ],
)
def test_options_that_the_task_refuses_leave_nothing(command, tiny_folder, tmp_path, flags, message):
    result = command("capture", "--model", tiny_folder, *flags, "--length", 1500, "--store", tmp_path / "s")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_are_numbers_where_they_look_like_it() -> None:
    assert task_options(["hops=2", "alpha=2.5", "trace=a=b", "ask="]) == {
        "hops": 2,
        "alpha": 2.5,
        "trace": "a=b",
        "ask": "",
    }
    with pytest.raises(ConfigError, match="isn't of the form name=value"):
        task_options(["=3"])
