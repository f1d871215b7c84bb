"""Successes against failures on stores of random runs: what decides the outcome is found, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

import attngraph as ag
from attngraph.errors import ConfigError, GraphError
from attngraph.store import Run, open_store
from attngraph.testing import write_random_run
from attngraph_analyses import Diff, diff, role_features
from attngraph_analyses.groups import field_of, grouped
from attngraph_analyses.role_features import RoleFeatures
from attngraph_analyses.run_features import KEYS

SIZE = {"layers": 2, "heads": 2, "blocks": 16, "budget": 6}
PLANTED = {"feature": "mass", "layer": 1, "head": 0, "query_role": "output", "key_role": "haystack"}
QUICK = {"permutations": 499, "resamples": 100, "k": 3}


def values_of(runs: RoleFeatures, key: dict[str, object]) -> np.ndarray:
    place = runs.keys.with_row_index().filter(**key)["index"].item()
    return runs.values[:, place]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """20 runs that succeed where a head of the output reads much of the haystack."""
    folder = tmp_path_factory.mktemp("store")
    written = [
        write_random_run(folder, seed=seed, success=True, metadata={"group": "abc"[seed % 3]}, **SIZE)
        for seed in range(20)
    ]
    planted = values_of(role_features(written, k=1), PLANTED)
    limit = np.median(planted)
    return [with_success(run, bool(value > limit)) for run, value in zip(written, planted, strict=True)]


def with_success(run: Run, success: bool) -> Run:
    outcome = msgspec.structs.replace(run.manifest.outcome, success=success)
    return replace(run, manifest=msgspec.structs.replace(run.manifest, outcome=outcome))


@pytest.fixture(scope="module")
def features(runs: list[Run]) -> RoleFeatures:
    return role_features(runs, k=3)


@pytest.fixture(scope="module")
def found(features: RoleFeatures) -> Diff:
    return diff(features, **QUICK)


def test_what_decides_the_outcome_is_found(found: Diff, features: RoleFeatures):
    assert found.groups == ("success", "failure")
    assert found.runs.rows() == [("needle, random, 256, 16×6 stream sparse", 10, 10)]
    first = found.table.row(0, named=True)
    assert {name: first[name] for name in KEYS} == PLANTED
    assert first["p_family"] <= 0.01
    assert first["rank_biserial"] == 1.0
    assert first["t"] > 0
    assert first["d"] > first["d_low"] > 0
    success = np.array([manifest.outcome.success for manifest in features.manifests])
    planted = values_of(features, PLANTED)
    assert first["mean_first"] == pytest.approx(planted[success].mean())
    assert first["mean_second"] == pytest.approx(planted[~success].mean())
    assert first["difference"] == pytest.approx(planted[success].mean() - planted[~success].mean())
    # What else is significant is of the same head's row, whose masses sum to 1.
    assert set(found.significant().select("layer", "head", "query_role").rows()) == {(1, 0, "output")}


def test_the_table_is_sorted_and_whole(found: Diff, features: RoleFeatures):
    assert found.table["p_family"].is_sorted()
    assert (found.table["p"] <= found.table["p_family"]).all()
    assert not any(found.table[name].is_nan().any() for name in ("t", "p", "p_family", "q"))
    assert found.table["rank_biserial_low"].null_count() == len(found.table) - 100
    assert found.significant(0.5, correction="q").equals(found.table.filter(pl.col("q") <= 0.5))
    assert len(found.significant(1.0)) == len(found.table)
    assert pl.DataFrame(found).equals(found.table)
    assert any("takes a knockout" in line for line in found.not_covered)
    assert found.completeness == pytest.approx(np.median(features.completeness))
    assert found.completeness_source == features.completeness_source == "estimated"
    success = np.array([manifest.outcome.success for manifest in features.manifests])
    medians = np.median(features.completeness[success]), np.median(features.completeness[~success])
    assert found.completeness_by_group == pytest.approx(medians)


def test_the_order_of_the_runs_is_irrelevant(runs: list[Run], found: Diff):
    again = diff(runs[::-1] + runs[:3], **QUICK)
    assert again.table.equals(found.table)
    assert again.components.equals(found.components)
    assert again.routes.equals(found.routes)


def test_confirmed_on_its_own_only(features: RoleFeatures, found: Diff):
    wanted = found.significant().head(2)
    fresh = diff(features, only=wanted, **QUICK)
    assert set(fresh.table.select(KEYS).rows()) == set(wanted.select(KEYS).rows())
    assert (fresh.table["p_family"] <= 0.05).all()
    kinds = diff(features, features=["width", "reading"], **QUICK)
    assert set(kinds.table["feature"]) <= {"width", "reading"}


def test_a_field_of_the_metadata_is_silent(features: RoleFeatures):
    nothing = diff(features, by="group", groups=("a", "b"), **QUICK)
    assert nothing.groups == ("a", "b")
    assert len(nothing.significant()) == 0
    assert (nothing.components["p"] > 0.05).all()
    assert "6 runs of other groups" in " ".join(nothing.not_covered)
    turned = diff(features, by="group", groups=("b", "a"), **QUICK)
    both = nothing.table.join(turned.table, on=KEYS, nulls_equal=True)
    assert len(both) == len(turned.table)
    np.testing.assert_allclose(both["difference_right"], -both["difference"], atol=1e-9)
    np.testing.assert_allclose(both["rank_biserial_right"], -both["rank_biserial"], atol=1e-9)


def test_length_is_a_stratum(tmp_path: Path):
    """Long prompts fail, short ones succeed: what differs without strata comes from the length alone."""
    for seed in range(24):
        long = seed % 2 == 1
        success = (seed < 2) == long
        write_random_run(tmp_path, **{**SIZE, "blocks": 32 if long else 12}, seed=seed, success=success)
    runs = role_features(open_store(tmp_path), k=1)
    confounded = diff(runs, strata=(), **QUICK)
    assert confounded.significant().select("feature", "layer").rows() == [("width", 0)]  # long needles take two blocks
    assert confounded.strata == ()
    within = diff(runs, **QUICK)
    assert len(within.runs) == 2
    assert within.runs["first"].to_list() == [11, 1]
    assert len(within.significant()) == 0


def test_components_name_their_hops(features: RoleFeatures):
    found = diff(features, network="mass", **QUICK)
    assert (np.abs(found.components["t"]) >= 3.0).all()
    sizes = found.components.group_by("component", maintain_order=True).agg(pl.len(), pl.col("size").first())
    assert sizes["len"].to_list() == sizes["size"].to_list()
    assert sizes["size"].is_sorted(descending=True)
    planted = found.components.filter(layer=1, head=0, query_role="output")
    assert len(planted) >= 1


def test_routes_that_one_group_shares(features: RoleFeatures, found: Diff):
    """Of every hop and route the table says how many runs of either group have it."""
    success = {manifest.run: manifest.outcome.success for manifest in features.manifests}
    hops = features.hops.with_columns(
        pl.format("{} —{}.{}→ {}", "key_role", "layer", "head", "query_role").alias("name"),
        pl.col("run").replace_strict(success, return_dtype=pl.Boolean).alias("success"),
    )
    assert set(found.routes["kind"]) == {"hop", "route"}
    for row in found.routes.filter(kind="hop").rows(named=True):
        having = hops.filter(pl.col("name") == row["route"])
        assert row["share_first"] == pytest.approx(having.filter("success")["run"].n_unique() / 10)
        assert row["share_second"] == pytest.approx(having.filter(~pl.col("success"))["run"].n_unique() / 10)
    whole = hops.sort("run", "route", "hop").group_by("run", "route").agg(pl.col("name").str.join(", "))
    for row in found.routes.filter(kind="route").rows(named=True):
        assert whole.filter(pl.col("name") == row["route"])["run"].n_unique() == pytest.approx(
            10 * (row["share_first"] + row["share_second"])
        )
        assert row["hops"] == row["route"].count("→")


def test_a_planted_route_is_found(features: RoleFeatures):
    """Successes get a hop that no failure has."""
    winners = [manifest.run for manifest in features.manifests if manifest.outcome.success][:9]
    extra = pl.DataFrame({name: [None] * 9 for name in features.hops.columns}, schema=features.hops.schema)
    extra = extra.with_columns(
        run=pl.Series(winners),
        route=pl.lit(99, pl.Int64),
        hop=pl.lit(0, pl.Int64),
        layer=pl.lit(7, pl.Int64),
        head=pl.lit(5, pl.Int64),
        query_role=pl.lit("output"),
        key_role=pl.lit("needle"),
    )
    planted = diff(RoleFeatures(**{**vars(features), "hops": pl.concat([features.hops, extra])}), **QUICK)
    best = planted.routes.head(2)
    assert best["route"].to_list() == ["needle —7.5→ output"] * 2
    assert best["kind"].to_list() == ["hop", "route"]
    assert best["share_first"].to_list() == pytest.approx([9 / 10] * 2)
    assert best["share_second"].to_list() == [0, 0]
    assert (best["p_family"] <= 0.05).all()


def test_two_models_of_one_shape_are_strata(tmp_path: Path):
    for seed in range(12):
        write_random_run(
            tmp_path, **SIZE, model="one" if seed < 6 else "other", success=seed % 2 == 0, seed=seed, task="needle"
        )
    runs = role_features(open_store(tmp_path), k=1)
    both = diff(runs, **QUICK)
    assert [row[1:] for row in both.runs.rows()] == [(3, 3), (3, 3)]
    assert both.exact
    assert both.permutations == 20 * 20 - 1
    with pytest.raises(ConfigError, match=r"several models: one .6 runs., other .6 runs.*Name 'model'"):
        diff(runs, strata=("task",), **QUICK)
    models = diff(runs, by="model", **QUICK)
    assert models.groups == ("one", "other")
    assert any("is an assumption" in line for line in models.not_covered)


def test_fields_of_a_manifest(runs: list[Run]):
    manifest = runs[0].manifest
    assert field_of(manifest, "outcome") == ("success" if manifest.outcome.success else "failure")
    assert field_of(manifest, "task") == "needle"
    assert field_of(manifest, "length") == "256"  # 253 tokens
    assert field_of(manifest, "group") == "a"
    assert field_of(manifest, "config.block_size") == "16"
    more = msgspec.structs.replace(manifest, config=replace(manifest.config, first_layers=1, first_budget=9))
    assert field_of(more, "config") == "16×6, first 1 × 9 stream sparse"
    assert field_of(manifest, "fidelity.next_tokens_match") == "True"
    assert field_of(manifest, "fidelity.nothing") is None
    assert field_of(manifest, "config.budget_for") is None


def runs_of(folder: Path, *outcomes: bool | None, **options) -> list[Run]:
    return [
        write_random_run(folder, **{**SIZE, **options}, success=success, seed=seed)
        for seed, success in enumerate(outcomes)
    ]


def test_groups_that_can_not_be_compared(tmp_path: Path, runs: list[Run]):
    with pytest.raises(ConfigError, match="2 of 3 runs have no outcome: capture prompts that have an answer"):
        diff(runs_of(tmp_path / "a", True, None, None))
    with pytest.raises(GraphError, match="All 3 runs have the outcome 'success'"):
        diff(runs_of(tmp_path / "b", True, True, True))
    with pytest.raises(GraphError, match="'failure' holds for 1 of 4 runs; a comparison needs at least 2"):
        diff(runs_of(tmp_path / "c", True, True, True, False))
    with pytest.raises(GraphError, match="There are no runs to compare"):
        diff([])
    with pytest.raises(ConfigError, match=r"'group' has 3 values, not two: a .7 runs., b .7 runs., c .6 runs."):
        diff(runs, by="group")
    with pytest.raises(ConfigError, match=r"'z'.*are not two different values of 'group'"):
        diff(runs, by="group", groups=("a", "z"))
    with pytest.raises(ConfigError, match=r"20 of 20 runs have no field 'colour'.*metadata: group, seed"):
        diff(runs, by="colour")
    with pytest.raises(GraphError, match="No stratum has runs of both groups"):
        diff(runs, strata=("seed",))
    other = runs_of(tmp_path / "d", True, False, layers=3)
    with pytest.raises(
        ConfigError, match=r"different shapes: 2 layers of 2 heads .20 runs., 3 layers of 2 heads .2 runs."
    ):
        grouped([run.manifest for run in [*runs, *other]])


def test_settings_out_of_range(features: RoleFeatures):
    for options, message in (
        ({"features": ["masses"]}, "features='masses' is not one of mass, contribution"),
        ({"network": "width"}, "network='width' is not a feature of hops"),
        ({"level": 1.0}, "level=1.0"),
        ({"top": 0}, "top=0"),
        ({"resamples": 0}, "resamples=0"),
        ({"permutations": 5}, "permutations=5"),
        ({"only": pl.DataFrame({"layer": [1]})}, "only= lacks the columns feature, head"),
        (
            {"only": features.keys.head(1).with_columns(layer=pl.lit(9, pl.Int64))},
            "only= names 1 features, of which these runs have 0",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            diff(features, **options)
    with pytest.raises(ConfigError, match="correction='bonferroni'"):
        diff(features, **QUICK).significant(correction="bonferroni")


def test_the_front_door():
    assert ag.diff is diff
    assert ag.role_features is role_features
