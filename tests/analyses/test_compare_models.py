"""Models side by side: alike ones are alike, planted differences are found, chance stays silent at its rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, wasserstein_distance

from attngraph.errors import ConfigError, GraphError, MissingDependencyError, UnknownNodeError
from attngraph.store import Run, open_store
from attngraph.testing import write_random_run
from attngraph_analyses import Comparison, compare, head_summary
from attngraph_analyses.distances import energy, mean_distances
from attngraph_analyses.permutation import assignments, labels_within
from attngraph_analyses.summaries import LEVELS, depth_bins, head_scores, summarised

SIZES = {"blocks": 12, "budget": 5}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Models "one" and "alike" differ in nothing but their sizes, "sharp" has fewer effective keys."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(5):
        write_random_run(folder, layers=4, heads=3, model="one", seed=seed, **SIZES)
        write_random_run(folder, layers=6, heads=2, model="alike", seed=seed + 10, **SIZES)
        write_random_run(folder, layers=5, heads=4, model="sharp", seed=seed + 20, sharpness=4, **SIZES)
    return compare(open_store(folder), bins=3, permutations=499)


def distances(found: Comparison, one: str, other: str) -> dict:
    (row,) = found.distances.filter(one=one, other=other).to_dicts()
    return row


def test_alike_models_are_as_far_apart_as_their_own_runs(found: Comparison):
    row = distances(found, "alike", "one")
    assert row["ratio"] == pytest.approx(1, abs=0.1)
    assert row["p"] > 0.05
    assert found.groups == {"alike": 5, "one": 5, "sharp": 5}
    assert found.strata == 1


def test_a_planted_difference_is_found_and_named(found: Comparison):
    row = distances(found, "one", "sharp")
    assert row["ratio"] > 1.2
    assert row["p"] == pytest.approx(2 / 252), "252 ways to place the labels; a swap of the groups is as great"
    assert row["energy"] == pytest.approx(2 * row["between"] - row["within_one"] - row["within_other"])
    best = found.differences.filter(one="one", other="sharp", score="width")
    assert (best["p_family"] < 0.05).all()
    assert (best["mean_one"] > best["mean_other"]).all()
    silent = found.differences.filter(one="alike", other="one")
    assert (silent["p_family"] > 0.01).all()


def test_profiles_are_raw_means(found: Comparison):
    rows = found.profiles.filter(group="sharp", score="width").sort("depth")
    assert rows["depth"].to_list() == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert ((rows["low"] <= rows["mean"]) & (rows["mean"] <= rows["high"])).all()
    difference = found.differences.filter(one="one", other="sharp", score="width").sort("depth_start")
    np.testing.assert_allclose(difference["mean_other"], rows["mean"])
    assert len(found.to_polars()) == 3


def test_scores_that_a_run_lacks_are_left_out_and_named(found: Comparison):
    assert {"sink", "far", "retrieval", "width", "question→needle"} <= set(found.scores)
    assert not set(found.left_out) & set(found.scores)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_random_run(tmp_path_factory.mktemp("summary"), layers=4, heads=3, **SIZES)


@given(st.randoms(use_true_random=False))
def test_summaries_dont_know_which_head_is_which(random):
    scores = {"one": np.arange(12.0).reshape(4, 3) ** 2, "other": np.sqrt(np.arange(12.0)).reshape(4, 3)}
    order = random.sample(range(3), 3)
    permuted = {name: values[:, order] for name, values in scores.items()}
    one, other = summarised(scores, 2), summarised(permuted, 2)
    np.testing.assert_allclose(one.quantiles, other.quantiles)
    np.testing.assert_allclose(one.mean, other.mean)


def test_quantile_functions_give_the_wasserstein_distance():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(1, 160)), random.normal(0.5, 2, size=(1, 160))
    functions = [summarised({"score": values}, 1).quantiles[0, 0] for values in (one, other)]
    found = np.abs(functions[0] - functions[1]).mean()
    assert found == pytest.approx(wasserstein_distance(one[0], other[0]), rel=0.15)
    assert len(functions[0]) == len(LEVELS)


def test_bins_of_depth():
    assert depth_bins(4, 2).tolist() == [0, 0, 1, 1]
    assert depth_bins(5, 3).tolist() == [0, 0, 1, 1, 2]
    assert all(set(depth_bins(layers, 5)) == set(range(5)) for layers in range(5, 40))


def test_scores_between_roles_are_those_of_the_table(run: Run):
    scores = head_scores(run)
    spans = {span.name: index for index, span in enumerate(run.manifest.prompt.spans)}
    for layer, head, mass in (
        run.span_edges()
        .filter(query_span=spans["question"], key_span=spans["needle"])
        .collect()
        .select("layer", "head", "mass")
        .rows()
    ):
        assert scores["question→needle"][layer, head] == pytest.approx(mass)
    assert "needle→question" not in scores, "what comes later can't be read"
    assert "retrieval" not in head_scores(run, source=None)
    edges = run.edges().filter(layer=2, head=1).collect()
    widths = [
        1 / float((rows["mass"].cast(float) ** 2).sum()) / len(rows) for rows in edges.partition_by("query_block")
    ]
    assert scores["width"][2, 1] == pytest.approx(np.mean(widths), rel=1e-3)


def test_distances_by_hand():
    """Two strata of two runs per group; only pairs within a stratum count."""
    distance = np.full((8, 8), 100.0)
    for start in (0, 4):
        distance[start : start + 4, start : start + 4] = [[0, 1, 4, 5], [1, 0, 6, 7], [4, 6, 0, 2], [5, 7, 2, 0]]
    labels, _ = labels_within([True, True, False, False] * 2, [0] * 4 + [1] * 4)
    between, one, other = mean_distances(distance, labels.first[None], labels)
    assert (between[0], one[0], other[0]) == (5.5, 1.0, 2.0)
    assert energy(distance, labels.first[None], labels)[0] == 8.0
    swapped = energy(distance, np.array([[True, False, True, False] * 2]), labels)
    assert swapped[0] == 2 * (1 + 5 + 6 + 2) / 4 - 4 - 7


def test_chance_is_significant_at_the_stated_rate():
    random = np.random.default_rng(0)
    labels, _ = labels_within([True, False] * 6, [0] * 6 + [1] * 6)
    placed, exact = assignments(labels, 999, 0)
    assert exact
    p = []
    for _ in range(200):
        points = random.normal(size=(12, 3))
        distance = np.abs(points[:, None] - points).mean(-1)
        observed = energy(distance, labels.first[None], labels)[0]
        p.append(np.mean(energy(distance, placed, labels) >= observed - 1e-9))
    assert binomtest(int(np.sum(np.array(p) <= 0.05)), 200, 0.05, alternative="greater").pvalue > 0.001


def test_figure(found: Comparison):
    pytest.importorskip("matplotlib")
    figure = found.figure()
    titles = [axes.get_title() for axes in figure.axes]
    assert [*found.scores, "distance of runs"] == [title for title in titles if title]
    assert len(figure.axes[0].lines) == 3


def test_a_figure_without_matplotlib_says_what_to_install(found: Comparison, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "attngraph\[plot\]"'):
        found.figure()


def test_bad_input(tmp_path: Path):
    runs = [write_random_run(tmp_path, model=name, seed=seed) for seed in range(2) for name in ("one", "other")]
    with pytest.raises(GraphError, match=r"All 2 runs are of one model \(one\); a comparison needs two"):
        compare(runs[::2], bins=3)
    with pytest.raises(GraphError, match="All 0 runs are of one model"):
        compare([])
    with pytest.raises(GraphError, match=r"No two groups have two runs each .* one 1, other 2"):
        compare(runs[1:], bins=3)
    with pytest.raises(ConfigError, match="by='head' is not one of model"):
        compare(runs, by="head")
    with pytest.raises(ConfigError, match=r"bins=5 of depth for 3 layers \(one\); give 1 to 3"):
        compare(runs)
    with pytest.raises(ConfigError, match="permutations=3"):
        compare(runs, permutations=3)
    with pytest.raises(UnknownNodeError, match="'hop:0' names nothing"):
        compare(runs, source="hop:0", bins=3)
    other = write_random_run(tmp_path, model="other", budget=5)
    with pytest.raises(ConfigError, match="different settings: budget is 4, 5"):
        compare([*runs, other])
    with pytest.raises(ConfigError, match="bins=0"):
        head_summary(runs[0], bins=0)


def test_groups_by_task(tmp_path: Path):
    runs = [write_random_run(tmp_path, task=task, seed=seed) for seed in range(3) for task in ("needle", "words")]
    found = compare(runs, "task", source=None, bins=1, permutations=99)
    assert found.groups == {"needle": 3, "words": 3}
    assert found.distances["energy"][0] <= 0 + 1e-9, "the same runs under two names"
    assert "retrieval" not in found.scores
