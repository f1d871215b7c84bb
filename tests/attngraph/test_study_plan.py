"""Study files: what they expand to, and what is refused, by the file's own keys, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import attngraph as ag
from attngraph.study.options import expanded
from tests.attngraph.study_helpers import ANALYSES, study_file

ROOT = Path(__file__).parents[2]


def load(file, **changes):
    return ag.study.load(file, ANALYSES, **changes)


def test_every_combination_is_one_task_and_models_come_one_after_the_other(tmp_path):
    text = f"""
        name = "all"
        store = "{tmp_path}/runs"
        models = ["one", {{ name = "two", dtype = "bfloat16" }}]
        [[tasks]]
        name = "needle"
        length = [1024, 2048]
        seed = {{ first = 0, last = 4, step = 2 }}
        [[tasks]]
        name = "needle"
        length = 512
        haystack = ["noise", "varied"]
        [[configs]]
        name = "plain"
        [[configs]]
        budget = [4, "all"]
        targets = [["output", "span:needle"]]
    """
    study = load(study_file(tmp_path, "", text=text))
    assert len(study.tasks) == 2 * (2 * 3 + 2) * (1 + 2)
    assert [task.model.name for task in study.tasks] == ["one"] * 24 + ["two"] * 24
    assert [task.model.dtype for task in study.tasks[::24]] == ["float32", "bfloat16"]
    assert {task.config_name for task in study.tasks} == {"plain", "budget=4", "budget=all"}
    assert {task.config.targets for task in study.tasks} == {("output",), ("output", "span:needle")}
    first = study.tasks[0].labels
    # Defaults of the task are filled in, so that a later default makes no difference.
    assert first == {
        "model": "one", "task": "needle", "config": "plain",
        "length": 1024, "depth": 0.5, "seed": 0, "haystack": "noise",
    }  # fmt: skip
    assert {task.options["seed"] for task in study.tasks} == {0, 2, 4}
    assert len({task.id for task in study.tasks}) == len(study.tasks)
    assert study.label_names == ["model", "task", "config", "length", "depth", "seed", "haystack"]
    assert study.output == tmp_path / "runs" / "studies" / "all"


def test_a_task_is_the_same_in_every_study_but_not_after_its_model_has_changed(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = [task.id for task in load(study_file(tmp_path, model)).tasks]
    assert [task.id for task in load(study_file(tmp_path, model, analyses="")).tasks] == before
    (model / "config.json").write_text('{"other": 1}')
    assert not set(before) & {task.id for task in load(study_file(tmp_path, model)).tasks}


def test_analyses_have_their_options_and_parts_of_their_own(tmp_path):
    analyses = """
        [[analyses]]
        name = "routes"
        [[analyses]]
        name = "routes"
        table = "widest"
        k = 3
        kind = "widest"
        policy = { residual = 0.5 }
        [[analyses]]
        name = "influence_rank"
        null = { name = "edges", draws = 3 }
    """
    plain, widest, rank = load(study_file(tmp_path, "m", analyses=analyses)).analyses
    assert (plain.table, widest.table, rank.options["null"].draws) == ("routes", "widest", 3)
    assert (plain.options["k"], widest.options["k"], widest.options["policy"].residual) == (10, 3, 0.5)
    assert plain.part("key") != widest.part("key") != plain.part("other")


def test_options_in_place_of_the_files(tmp_path):
    file = study_file(tmp_path, "m", head=f'name = "t"\nstore = "a"\noutput = "{tmp_path}/o"\nmodels = ["m"]')
    assert load(file).output == tmp_path / "o"
    study = load(file, store=tmp_path / "b", engine="processes", workers=3)
    assert (study.store, study.output) == (tmp_path / "b", tmp_path / "b" / "studies" / "t")
    assert (study.engine.kind, study.engine.workers, study.engine.threads) == ("processes", 3, 1)


def test_alternatives():
    assert expanded({}, "x") == [{}]
    assert expanded({"a": [1, 2], "b": "c", "d": {"first": 3, "last": 4}}, "x") == [
        {"a": a, "b": "c", "d": d} for a in (1, 2) for d in (3, 4)
    ]
    for options, message in (
        ({"a": []}, "x.a: there is nothing to choose from"),
        ({"a": {"first": 3, "last": 2}}, "x.a: there is nothing to choose from"),
        ({"a": {"first": 3}}, "x.a: Object missing required field `last`"),
        ({"a": {"first": 0, "last": 2, "step": 0}}, "x.a.step: 0 must be at least 1"),
    ):
        with pytest.raises(ag.errors.StudyError, match=re.escape(message)):
            expanded(options, "x")


def test_every_study_of_the_project_is_valid():
    files = sorted((ROOT / "analyses" / "studies").glob("*.toml"))
    assert "needle.toml" in [file.name for file in files]
    for file in files:
        study = ag.study.load(file, ag.ANALYSES)
        assert study.name == file.stem
        assert study.description


HEAD = 'name = "t"\nstore = "s"\nmodels = ["m"]\n'
NEEDLE = '[[tasks]]\nname = "needle"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "isn't valid TOML"),
        ('name = "t"\nstore = "s"\n' + NEEDLE, "Object missing required field `models`"),
        ('name = "a/b"\nstore = "s"\nmodels = ["m"]\n' + NEEDLE, "name: Expected `str` matching regex"),
        ('name = "t"\nstore = "s"\nmodels = []\n' + NEEDLE, "models: Expected `array` of length >= 1"),
        ('name = "t"\nstore = "s"\nmodels = ["m", "m"]\n' + NEEDLE, "models: the name 'm' comes twice"),
        (
            'name = "t"\nstore = "s"\nmodels = [{ name = "m", kind = 1 }]\n' + NEEDLE,
            "models[0]: Object contains unknown",
        ),
        (HEAD + "seeds = 3\n" + NEEDLE, "Object contains unknown field `seeds`"),
        (HEAD, "Object missing required field `tasks`"),
        (HEAD + '[[tasks]]\nname = "noodle"\n', "tasks[0].name: 'noodle' is no task; known: needle"),
        (HEAD + NEEDLE + "lenght = 5\n", "tasks[0].lenght: there is no such option; known: length, depth, seed"),
        (HEAD + NEEDLE + "lenght = 5\n", "Did you mean 'length'?"),
        (HEAD + NEEDLE + 'length = "long"\n', "tasks[0].length: Expected `int`, got `str`"),
        (HEAD + NEEDLE + 'haystack = ["noise", "hay"]\n', "tasks[0].haystack: Invalid enum value 'hay'"),
        (HEAD + NEEDLE + "seed = [1, 1]\n", "tasks: the combination"),
        (HEAD + NEEDLE + "key = 1\n", "tasks[0].key: there is no such option"),
        (HEAD + NEEDLE + "[[configs]]\nbudgets = 8\n", "configs[0].budgets: there is no such option"),
        (HEAD + NEEDLE + "[[configs]]\nbudget = 2\n", "configs[0]: budget=2 is too small"),
        (HEAD + NEEDLE + '[[configs]]\naudit = "some"\n', "configs[0].audit: Invalid enum value 'some'"),
        (HEAD + NEEDLE + "length = 80\n[[configs]]\nbudget = 8\n", "budget=8 is over the prompt's 5 blocks"),
        (HEAD + NEEDLE + "[[configs]]\n[[configs]]\n", "configs: the name 'default' comes twice"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "rotes"\n', "analyses[0].name: 'rotes' is no analysis; known: anchor"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "routes"\nk = "ten"\n', "analyses[0].k: Expected `int`, got `str`"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "routes"\nK = 1\n', "analyses[0].K: there is no such option"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "routes"\n' * 2, "analyses: the table 'routes' comes twice"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "routes"\ntable = "runs"\n', "'runs' is a table of every study"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "die_once"\n', "analyses[0]: flag must be given"),
        (HEAD + NEEDLE + '[[analyses]]\nname = "routes"\npolicy = { residual = 2 }\n', "residual=2"),
        (HEAD + NEEDLE + '[engine]\nkind = "slurm"\n', "engine.kind: Invalid enum value 'slurm'"),
        (HEAD + NEEDLE + "[engine]\nworkers = 0\n", "engine.workers: Expected `int` >= 1"),
        (HEAD + NEEDLE + "[engine]\ntimeout = 3\n", "engine.timeout: the serial engine can't end a task"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ag.errors.StudyError, match=re.escape(message)):
        load(study_file(tmp_path, "", text=text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ag.errors.StudyError, match="can't be read: No such file"):
        load(tmp_path / "gone.toml")


@pytest.mark.parametrize("name", ag.tasks.TASKS)
def test_every_task_can_stand_in_a_study(tmp_path, name):
    tasks = f'[[tasks]]\nname = "{name}"\nseed = [0, 1]\n'
    first, second, *_ = load(study_file(tmp_path, "m", tasks=tasks, configs="")).tasks
    assert (first.options["seed"], second.options["seed"]) == (0, 1)
    assert not {"name", "model", "task", "config", "key"} & first.options.keys()
