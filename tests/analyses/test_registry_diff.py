"""Groups of a study's runs: what is planted is found, named and confirmed on fresh prompts; what is not, isn't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

import attngraph as ag
from attngraph.errors import ConfigError
from attngraph.store import Run
from attngraph.testing import write_random_run
from attngraph_analyses import confirm, diff, role_features
from attngraph_analyses.confirm import shuffled
from attngraph_analyses.registry import ANALYSES
from attngraph_analyses.registry_diff import DiffSettings
from attngraph_analyses.run_features import KEYS
from attngraph_analyses.selection import Between

SIZE = {"layers": 2, "heads": 2, "blocks": 12, "budget": 6}
PLANTED = {"feature": "mass", "layer": 1, "head": 0, "query_role": "output", "key_role": "haystack"}
QUICK = DiffSettings(permutations=499, resamples=20, k=2)
FOUND, FRESH = {"seed": Between(0, 19)}, {"seed": Between(100, 119)}
SEEDS = [*range(20), *range(100, 120)]


def planted(folder: Path, seeds: list[int]) -> list[Run]:
    """Runs that succeed where a head of the output reads more of the haystack than in half; in order of `SEEDS`."""
    plain = {seed: write_random_run(folder / "plain", seed=seed, **SIZE) for seed in SEEDS}
    order = role_features(plain.values(), k=1)
    column = order.keys.with_row_index().filter(**PLANTED)["index"].item()
    read = {
        manifest.prompt.metadata["seed"]: value
        for manifest, value in zip(order.manifests, order.values[:, column], strict=True)
    }
    limit = np.median(list(read.values()))
    made = {
        seed: write_random_run(folder / "runs", seed=seed, success=bool(read[seed] > limit), **SIZE) for seed in seeds
    }
    return [made[seed] for seed in SEEDS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return planted(tmp_path_factory.mktemp("one"), SEEDS)


def ask(name: str, runs: list[Run], **options: object) -> pl.DataFrame:
    return ANALYSES[name].function(runs, settings=QUICK, **options)


def test_tables_are_those_of_diff(runs):
    part = [run for run in runs if run.manifest.prompt.metadata["seed"] < 20]
    found = diff(part, permutations=499, resamples=20, k=2)
    assert ask("diff", runs, where=FOUND).equals(found.table)
    assert ask("diff_components", runs, where=FOUND).equals(found.components)
    assert ask("diff_routes", runs, where=FOUND).equals(found.routes)
    assert ask("diff", part).equals(found.table)


def test_what_is_planted_is_confirmed_on_fresh_prompts(runs):
    table = ask("diff_confirmed", runs, found=FOUND, fresh=FRESH)
    (row,) = table.filter(**PLANTED).to_dicts()
    assert row["confirmed"] and row["same_direction"]
    assert row["p_family"] <= 0.05 >= row["p_family_fresh"]
    # The second part is tested on what the first has named, and on nothing else.
    parts = [role_features([run for run in runs if (run.manifest.prompt.metadata["seed"] < 20) == first], k=2)
             for first in (True, False)]  # fmt: skip
    named = diff(parts[0], permutations=499, resamples=20).significant()
    again = diff(parts[1], only=named, permutations=499, resamples=20, top=len(named))
    expected = named.select(KEYS).join(again.table.select(*KEYS, "p_family"), on=KEYS, nulls_equal=True, how="left")
    both = expected.join(table.select(*KEYS, "p_family_fresh"), on=KEYS, nulls_equal=True)
    assert len(table) == len(named) == len(both)
    assert both["p_family"].equals(both["p_family_fresh"].rename("p_family"))

    totals = ask("diff_totals", runs, found=FOUND, fresh=FRESH)
    first, second = totals.to_dicts()
    assert (first["part"], first["groups"], first["named"]) == ("found", "success, failure", len(named))
    assert first["first"] + first["second"] == second["first"] + second["second"] == 20
    assert second["tested"] == len(again.table)
    assert second["confirmed"] == table["confirmed"].sum() >= 1
    assert second["same_direction"] == table["same_direction"].sum() >= second["confirmed"]


def test_nothing_named_is_nothing_confirmed(runs):
    options = {"found": FOUND, "fresh": FRESH, "level": 0.001}  # below what 499 permutations can give
    table = ask("diff_confirmed", runs, **options)
    assert len(table) == 0
    assert table.columns == ask("diff_confirmed", runs, found=FOUND, fresh=FRESH).columns
    (row,) = ask("diff_totals", runs, **options).to_dicts()
    assert (row["part"], row["named"], row["confirmed"]) == ("found", 0, None)


def test_a_feature_that_differs_the_other_way_is_not_confirmed(runs):
    parts = [role_features([run for run in runs if (run.manifest.prompt.metadata["seed"] < 20) == first], k=2)
             for first in (True, False)]  # fmt: skip
    flipped = tuple(
        msgspec.structs.replace(
            manifest, outcome=msgspec.structs.replace(manifest.outcome, success=not manifest.outcome.success)
        )
        for manifest in parts[1].manifests
    )
    found = diff(parts[0], permutations=499, resamples=20)
    answer = confirm(found, replace(parts[1], manifests=flipped), permutations=499, resamples=20)
    (row,) = answer.to_polars().filter(**PLANTED).to_dicts()
    assert row["p_family_fresh"] <= 0.05
    assert not row["same_direction"] and not row["confirmed"]
    assert any("knockout" in line for line in answer.not_covered)


def test_shuffled_groups_seldom_name_anything(runs):
    table = ask("diff_shuffled", runs, where=FOUND, shuffles=20, permutations=99)
    assert table["by"].unique().to_list() == ["outcome"]
    assert table["shuffle"].to_list() == list(range(20))
    assert table["alarm"].to_list() == [named > 0 for named in table["named"]]
    assert (table["alarm"] == (table["least_p_family"] <= 0.05)).all()
    # Binomial with 20 shuffles at .05: more than 5 alarms have a probability of 0.0003.
    assert table["alarm"].sum() <= 5
    assert ask("diff_shuffled", runs, where=FOUND, shuffles=20, permutations=99).equals(table)


def test_the_order_in_which_runs_were_made_does_not_matter(runs, tmp_path):
    others = planted(tmp_path, SEEDS[::-1])
    assert [run.manifest.prompt for run in others] == [run.manifest.prompt for run in runs]
    assert sorted(run.id for run in others) == [run.id for run in others[::-1]]
    options = {"found": FOUND, "fresh": FRESH}
    for name in ("diff_confirmed", "diff_totals"):
        assert ask(name, others, **options).equals(ask(name, runs, **options))
    assert ask("diff", others, where=FOUND).equals(ask("diff", runs, where=FOUND))
    assert ask("diff_routes", others, where=FOUND).equals(ask("diff_routes", runs, where=FOUND))


def test_bad_questions_are_refused(runs):
    with pytest.raises(ConfigError, match="5 prompts are in both parts"):
        ask("diff_confirmed", runs, found=FOUND, fresh={"seed": Between(15, 115)})
    with pytest.raises(ConfigError, match=r"level=1\.5 is the greatest p_family"):
        ask("diff_confirmed", runs, found=FOUND, fresh=FRESH, level=1.5)
    with pytest.raises(ConfigError, match="shuffles=0 must be at least 1"):
        ask("diff_shuffled", runs, shuffles=0)
    features = role_features(runs[:20], k=2)
    with pytest.raises(ConfigError, match="read both alike"):
        confirm(diff(features, permutations=19, resamples=1), role_features(runs[20:], k=1))
    with pytest.raises(ConfigError, match="level=0 is the greatest"):
        shuffled(features, level=0)
    assert ag.confirm is confirm
