"""Studies of a tiny model, carried out: what is made, what is done once only, what failures leave."""

from __future__ import annotations

import json
import shutil
import threading

import polars as pl
import pytest

import attngraph as ag
from attngraph.store import KeyIndex, working_on
from attngraph.study import engines
from tests.attngraph.study_helpers import ANALYSES, same_tables, study_file, tables


def load(file, **changes):
    return ag.study.load(file, ANALYSES, **changes)


def asks(*names: str, **options: str) -> str:
    """The analyses of a study file."""
    texts = {name: f'[[analyses]]\nname = "{name}"\n{options.get(name, "")}\n' for name in names}
    return "\n".join(texts.values())


def test_a_study_fills_its_tables_and_a_second_run_does_nothing(tiny_folder, tmp_path, monkeypatch):
    analyses = asks("influence_rank", "routes", "count", influence_rank='null = "uniform"')
    study = load(study_file(tmp_path, tiny_folder, analyses=analyses))
    report = ag.study.run(study)
    assert report == ag.study.Report(done=4, failed=0, left=0, captured=4, retries=0)
    assert len(ag.open_store(study.store)) == 4

    found = tables(study)
    assert found.keys() == {"runs", "influence_rank", "routes", "count"}
    runs = found["runs"]
    assert runs.select("seed", "config").rows() == [(s, c) for s in (0, 1) for c in ("budget=4", "budget=6")]
    folders = ag.study.read_table(study, "folders")
    assert folders["key"].equals(runs["key"])
    for row in runs.join(folders.select("key", "run"), on="key").to_dicts():
        run = ag.open_store(study.store).run(row["run"])
        assert run.manifest.key == row["key"]
        assert (run.manifest.config.budget, run.manifest.prompt.metadata["seed"]) == (row["budget"], row["seed"])
        assert (row["kl"], row["success"], row["margin"]) == (
            run.fidelity.kl, run.manifest.outcome.success, run.manifest.outcome.margin
        )  # fmt: skip
        rank = found["influence_rank"].filter(pl.col("key") == row["key"])
        expected = ag.influence(run.graph(), null="uniform").rank_of("needle", before="question")
        assert rank["rank"].to_list() == [expected]
    assert found["count"].row(0) == (4, runs["edges"].sum())

    document = ag.study.summary(study)
    assert (document["done"], document["failed"], document["left"]) == (4, 0, 0)
    assert document["group_by"] == ["model", "task", "config"]
    group = document["groups"][0]
    assert (group["config"], group["runs"]) == ("budget=4", 2)
    few = runs.filter(pl.col("config") == "budget=4")
    assert group["values"]["kl"] == few["kl"].median()
    assert group["values"]["success"] == few["success"].mean()
    ranks = found["influence_rank"].filter(pl.col("config") == "budget=4")
    assert group["values"]["influence_rank.candidates"] == ranks["candidates"].median()

    monkeypatch.setattr("attngraph.study.checks.check", lambda *_: pytest.fail("nothing was left to check"))
    assert ag.study.run(study) == report._replace(captured=0)
    assert all(found[name].equals(table) for name, table in tables(study).items())


def test_what_is_missing_is_made_again_and_nothing_else(tiny_folder, tmp_path):
    study = load(study_file(tmp_path, tiny_folder))
    ag.study.run(study)
    before = tables(study)
    (first, *_) = ag.open_store(study.store)
    shutil.rmtree(first.path)
    assert [(group.done, group.left) for group in ag.study.status(study)] == [(1, 1), (2, 0)]
    assert ag.study.run(study).captured == 1
    # A part of an analysis that is gone is answered from the run that is there.
    part = next((study.output / "parts" / "influence_rank").iterdir())
    part.unlink()
    assert sum(group.left for group in ag.study.status(study)) == 1
    assert ag.study.run(study).captured == 0
    # Records only remember: without any, every run is found by its key.
    shutil.rmtree(study.output)
    assert sum(group.left for group in ag.study.status(study)) == 4
    assert ag.study.run(study).captured == 0
    assert all(before[name].equals(table) for name, table in tables(study).items())


def test_another_study_shares_the_runs_of_the_store(tiny_folder, tmp_path):
    ag.study.run(load(study_file(tmp_path, tiny_folder)))
    head = f'name = "other"\nstore = "{tmp_path / "runs"}"\nmodels = ["{tiny_folder}"]'
    other = load(study_file(tmp_path, tiny_folder, head=head, analyses=""))
    report = ag.study.run(other)
    assert (report.done, report.captured) == (4, 0)


def test_a_new_question_is_asked_without_a_model_unless_it_needs_one(tiny_folder, tmp_path, monkeypatch):
    ag.study.run(load(study_file(tmp_path, tiny_folder)))
    study = load(study_file(tmp_path, tiny_folder, analyses=asks("tokens")))
    with monkeypatch.context() as without:
        without.setattr("attngraph.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        assert ag.study.run(study) == ag.study.Report(done=4, failed=0, left=0, captured=0, retries=0)
    study = load(study_file(tmp_path, tiny_folder, analyses=asks("parameters")))
    assert ag.study.run(study).captured == 0
    table = tables(study)["parameters"]
    assert table["parameters"].unique().to_list() == [ag.load_model(str(tiny_folder)).model.num_parameters()]
    assert table["run_tokens"].equals(tables(study)["runs"]["tokens"].rename("run_tokens"))


def test_failures_are_records_and_the_rest_goes_on(tiny_folder, tmp_path):
    analyses = asks("refuse", "influence_rank", "count", influence_rank='null = "uniform"', count="at_least = 5")
    study = load(study_file(tmp_path, tiny_folder, analyses=analyses))
    report = ag.study.run(study)
    assert report == ag.study.Report(2, 2, 0, captured=4, retries=0, failed_tables=("count",))
    assert not report.ok
    lines = [json.loads(line) for line in (study.output / "failures.jsonl").read_text().splitlines()]
    *lines, over_all = lines
    assert (over_all["stage"], over_all["error"], over_all["message"]) == ("count", "StoreError", "only 4 runs")
    assert [(line["seed"], line["config"]) for line in lines] == [(0, "budget=4"), (1, "budget=4")]
    for line in lines:
        assert (line["stage"], line["error"], line["message"]) == ("refuse", "GraphError", "no answer with budget 4")
        assert 'raise ag.errors.GraphError(f"no answer' in line["traceback"]
    # The run is there, and so are the answers of the other analyses.
    found = tables(study)
    assert {name: len(table) for name, table in found.items()} == {"runs": 4, "influence_rank": 4, "refuse": 2}
    assert [(group.done, group.failed) for group in ag.study.status(study)] == [(0, 2), (2, 0)]

    assert ag.study.run(study, retry_failed=False).failed == 2
    study = load(study_file(tmp_path, tiny_folder, analyses=asks("refuse", refuse="budget = 5")))
    report = ag.study.run(study)
    assert (report.done, report.captured, (study.output / "failures.jsonl").read_text()) == (4, 0, "")
    assert tables(study).keys() == {"runs", "refuse"}  # what isn't asked any more has no table


def test_a_column_that_tells_tasks_apart_is_refused(tiny_folder, tmp_path):
    study = load(study_file(tmp_path, tiny_folder, analyses=asks("collide")))
    assert ag.study.run(study).failed == 4
    line = json.loads((study.output / "failures.jsonl").read_text().splitlines()[0])
    assert "'collide' has a column 'seed'" in line["message"]


def test_a_model_that_cannot_be_traced_fails_its_tasks_alone(tiny_folder, tmp_path):
    import transformers

    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(broken)
    head = f'name = "two"\nstore = "{tmp_path / "runs"}"\nmodels = ["{broken}", "{tiny_folder}"]'
    study = load(study_file(tmp_path, tiny_folder, head=head))
    assert ag.study.run(study) == ag.study.Report(4, 4, 0, captured=4, retries=0)
    line = json.loads((study.output / "failures.jsonl").read_text().splitlines()[0])
    assert (line["model"], line["stage"], line["error"], line["key"]) == (
        str(broken), "model", "UnsupportedModelError", None
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": '[[tasks]]\nname = "needle"\nlength = 700\ndepth = [0.5, 1.5]\n'}, r"tasks, .*depth=1.5 must be"),
        ({"tasks": '[[tasks]]\nname = "needle"\nlength = 300\n'}, r"tasks, .*length=300 is too short"),
        ({"head": 'name = "t"\nstore = "runs"\nmodels = ["./gone"]\n'}, r"models, './gone': There is no folder"),
        ({"head": 'name = "t"\nstore = "study.toml/x"\nmodels = ["{model}"]\n'}, r"store: Opening the store"),
    ],
)
def test_what_is_missing_is_refused_before_anything_runs(tiny_folder, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    changes = {name: text.replace("{model}", str(tiny_folder)) for name, text in changes.items()}
    study = load(study_file(tmp_path, tiny_folder, **changes))
    with pytest.raises(ag.errors.StudyError, match=message):
        ag.study.run(study)
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_study_that_has_not_run(tmp_path):
    study = load(study_file(tmp_path, "./gone"))
    assert [(group.done, group.failed, group.left) for group in ag.study.status(study)] == [(0, 0, 2), (0, 0, 2)]
    with pytest.raises(ag.errors.StudyError, match=r"summary.json: run the study first \(attngraph study run"):
        ag.study.summary(study)
    with pytest.raises(ag.errors.StudyError, match="'runs' is no table of this study; it has none yet"):
        ag.study.read_table(study, "runs")


def test_a_task_that_another_process_works_on_is_waited_for(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.01)
    study = load(study_file(tmp_path, tiny_folder))
    ag.study.run(study)
    index = KeyIndex(study.store)
    index.refresh()
    (first, *_) = ag.open_store(study.store)
    key = first.manifest.key
    shutil.rmtree(study.output)  # so that all tasks are looked at again
    reports = []
    with working_on(study.store, key) as held:
        assert held
        running = threading.Thread(target=lambda: reports.append(ag.study.run(study, progress=False)))
        running.start()
        while len(list((study.output / "state").glob("*.json"))) < 3:
            assert running.is_alive()
        assert not reports
    running.join()
    assert reports == [ag.study.Report(4, 0, 0, captured=0, retries=0)]


@pytest.mark.slow
def test_processes_give_serials_tables_and_a_killed_worker_costs_one_retry(tiny_folder, tmp_path):
    analyses = asks("influence_rank", "routes", "die_once", die_once=f'flag = "{tmp_path / "died"}"')
    file = study_file(tmp_path, tiny_folder, analyses=analyses)
    study = load(file, engine="processes", workers=2)
    assert ag.study.run(study) == ag.study.Report(4, 0, 0, captured=3, retries=1)
    assert (tmp_path / "died").exists()
    states = [json.loads(path.read_bytes()) for path in (study.output / "state").iterdir()]
    assert sorted(state["attempts"] for state in states) == [1, 1, 1, 2]
    assert len(ag.open_store(study.store)) == 4  # the killed task's run had been made, and was found again
    serial = load(file, store=tmp_path / "serial")
    assert ag.study.run(serial) == ag.study.Report(4, 0, 0, captured=4, retries=0)
    assert same_tables(study, serial)


@pytest.mark.slow
def test_ray_gives_serials_tables_and_survives_a_killed_worker(tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    import os
    import sys

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default it lets everything else on the machine go first
    analyses = asks("influence_rank", "die_once", die_once=f'flag = "{tmp_path / "died"}"')
    configs = "[[configs]]\nbudget = 4\nn_match = 1\n"
    file = study_file(tmp_path, tiny_folder, analyses=analyses, configs=configs)
    study = load(file, engine="ray", workers=1)
    assert ag.study.run(study) == ag.study.Report(2, 0, 0, captured=1, retries=1)
    serial = load(file, store=tmp_path / "serial")
    ag.study.run(serial)
    assert same_tables(study, serial)
    file.write_text(f"{file.read_text()}gpus = 1000\n")
    with pytest.raises(
        ag.errors.StudyError, match=r"engine\.gpus: a task asks for 1000 GPU, but the largest node of the"
    ):
        ag.study.run(load(file, engine="ray", store=tmp_path / "refused"))
    assert not list((tmp_path / "refused").glob("run=*"))


def test_prompts_without_an_answer_have_none_in_the_table(tiny_folder, tmp_path):
    tasks = '[[tasks]]\nname = "reasoning"\ntrace = "tank"\n'
    study = load(study_file(tmp_path, tiny_folder, tasks=tasks, analyses=asks("count")))
    assert ag.study.run(study).done == 2
    for row in tables(study)["runs"].to_dicts():
        assert (row["answer_tokens"], row["expected"], row["dense_answer"], row["success"]) == (None,) * 4
        assert row["tokens"] > 0 and row["kl"] >= 0
