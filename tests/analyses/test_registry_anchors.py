"""Questions of sentences and of models side by side, as a study asks them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import attngraph as ag
from attngraph.errors import ConfigError
from attngraph.store import Run
from attngraph.testing import write_random_run
from attngraph_analyses.registry import ANALYSES
from attngraph_analyses.vertical import AnchorSettings

SETTINGS = AnchorSettings(top=2)
CATEGORIES = ["plan", "fact"] * 8


def write(store: Path, **changes: object) -> Run:
    metadata = {"categories": CATEGORIES, "importance": [0.5, 0.1, 0.3, 0.2] * 4, "trace": "own"}
    sizes = {"layers": 2, "heads": 3, "blocks": 20, "budget": 6, "sentences": 16, "receivers": ((1, 2),)}
    return write_random_run(store, **{"metadata": metadata, **sizes, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write(tmp_path_factory.mktemp("store"))


def ask(name: str, *given: object, **options: object) -> pl.DataFrame:
    return ANALYSES[name].function(*given, **options)


def test_tables_are_those_of_the_functions(run):
    found = ag.anchors(run, top=2)
    assert ask("anchors", run, settings=SETTINGS).equals(found.to_polars())
    heads = ask("anchor_heads", run, settings=SETTINGS)
    assert heads.equals(found.heads())
    assert heads["receiver"].sum() == 2
    profile = ask("category_profile", run, permutations=99, settings=SETTINGS)
    assert profile["category"].to_list() == ["fact", "plan"]
    assert profile.equals(ag.category_profile(found, permutations=99).sort("category"))
    (row,) = ask("importance_correlation", run, permutations=99, settings=SETTINGS).to_dicts()
    assert row["spearman"] == ag.importance_correlation(found, permutations=99).spearman


def test_unlabelled_sentences_have_scores_alone(tmp_path):
    bare = write(tmp_path, metadata={})
    assert len(ask("anchors", bare)) == 16
    assert len(ask("category_profile", bare)) == len(ask("importance_correlation", bare)) == 0


def test_agreement_with_the_reference_of_the_same_prompt(tmp_path):
    # Two budgets of the same two prompts: the greater one is the reference.
    runs = [write(tmp_path, seed=seed, budget=budget) for seed in (0, 1) for budget in (6, 20)]
    reference = {"config.budget": 20}
    table = ask("anchor_agreement", [*runs, write(tmp_path, seed=2)], reference=reference, draws=5, settings=SETTINGS)
    assert table["budget"].to_list() == [6, 6]
    assert table["trace"].to_list() == ["own", "own"]
    assert table["prompt"].to_list() == [run.manifest.prompt.sha256 for run in runs[::2]]
    for row, sparse, whole in zip(table.to_dicts(), runs[::2], runs[1::2], strict=True):
        expected = ag.compare_anchors(ag.anchors(sparse, top=2), ag.anchors(whole, top=2), draws=5).to_dict()
        assert {name: row[name] for name in expected} == expected
    with pytest.raises(ConfigError, match="Several runs of one prompt and model"):
        ask("anchor_agreement", runs, reference={"model": "random"})
    with pytest.raises(ConfigError, match=r"None of 4 runs has config\.forward=dense"):
        ask("anchor_agreement", runs)


def test_models_side_by_side(tmp_path):
    runs = [
        write_random_run(tmp_path, layers=3, heads=2, blocks=10, model=model, seed=seed, success=bool(seed % 2))
        for model in ("one", "other")
        for seed in range(4)
    ]
    found = ag.compare(runs, bins=2, permutations=99)
    assert ask("compare", runs, bins=2, permutations=99).equals(found.distances)
    assert ask("compare_differences", runs, bins=2, permutations=99).equals(found.differences)
    assert ask("compare_profiles", runs, bins=2).equals(found.profiles)
    some = ask("compare", runs, where={"seed": [0, 1, 2]}, bins=2, permutations=99)
    assert some.select("runs_one", "runs_other").rows() == [(3, 3)]
    without = ask("compare", runs, source="", bins=2, permutations=99)
    assert without.equals(ag.compare(runs, source=None, bins=2, permutations=99).distances)
