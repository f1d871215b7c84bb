"""Chains over many runs: the tests of their percentiles, what a study asks, the commands, the figure."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import typer
from scipy.stats import binomtest, false_discovery_control, wilcoxon
from typer.testing import CliRunner

import attngraph as ag
from attngraph.cli.chain import chain as of_a_run
from attngraph.cli.chain import chain_test as of_a_store
from attngraph.errors import ConfigError, GraphError, MissingDependencyError
from attngraph.graph import Policy
from attngraph.store import Run, open_store
from attngraph.testing import write_random_run
from attngraph_analyses import ChainTest, chain, chain_test, other_chains
from attngraph_analyses.chain_test import mean_interval, signed_rank_p
from attngraph_analyses.registry import ANALYSES

HOPS = ("block:4", "needle")
APP = typer.Typer()
APP.command("chain")(of_a_run)
APP.command("chain-test")(of_a_store)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Nine runs of one model, seven of them successes, and three of another."""
    folder = tmp_path_factory.mktemp("store")
    sizes = {"layers": 2, "heads": 2, "blocks": 24, "budget": 6}
    for seed in range(12):
        model = "one" if seed < 9 else "other"
        write_random_run(folder, **sizes, model=model, seed=seed, success=seed > 1, metadata={"hops": seed % 2})
    return list(open_store(folder))


@pytest.fixture(scope="module")
def found(runs: list[Run]) -> ChainTest:
    return chain_test(runs, HOPS, draws=30)


def test_ranks_are_those_of_every_run(runs: list[Run], found: ChainTest):
    assert len(found.ranks) == 12 * 3 * 2
    for run in runs:
        own = found.ranks.filter(run=run.id)
        expected = chain(run.graph(), HOPS, draws=30)
        assert own.select(expected.to_polars().columns).equals(expected.to_polars())
        assert own["completeness"].unique().to_list() == [expected.completeness]
        assert own["outcome"].unique().to_list() == ["success" if run.manifest.outcome.success else "failure"]


def test_tests_are_of_groups_and_outcomes(found: ChainTest):
    counts = found.tests.filter(stop="chain").select("model", "control", "outcome", "runs").rows()
    assert counts == [
        ("one", "haystack", "all", 9),
        ("one", "haystack", "success", 7),
        ("one", "haystack", "failure", 2),
        ("other", "haystack", "all", 3),
        ("other", "haystack", "success", 3),
    ]
    (row,) = found.tests.filter(model="one", stop="needle", outcome="success").to_dicts()
    own = found.ranks.filter(model="one", stop="needle", control="haystack", outcome="success")
    values = own["percentile"].to_numpy()
    assert row["mean"] == pytest.approx(values.mean())
    assert row["low"] < row["mean"] < row["high"]
    assert row["above"] == pytest.approx((values > 0.5).mean())
    assert row["first"] == pytest.approx(own["first"].mean())
    assert row["p"] == pytest.approx(wilcoxon(values - 0.5).pvalue)
    small = found.tests.filter(pl.col("runs") < 6)
    assert len(small) > 0
    assert small["p"].is_null().all() and small["q"].is_null().all()
    known = found.tests.filter(pl.col("p").is_not_null())
    np.testing.assert_allclose(known["q"], false_discovery_control(known["p"]))


def test_other_groups_and_policies(runs: list[Run], found: ChainTest):
    by_hops = chain_test(runs, HOPS, by=["hops"], draws=30, policy=Policy(weight="uniform"))
    counts = by_hops.tests.filter(stop="chain", outcome="all", control="haystack")
    assert counts.select("hops", "runs").rows() == [("0", 6), ("1", 6)]
    assert by_hops.ranks["weight"].to_list() != found.ranks["weight"].to_list()
    assert chain_test(runs, HOPS, by=[], draws=5).tests["runs"].max() == 12


def test_p_is_small_at_its_rate_where_hops_are_nothing_special():
    random = np.random.default_rng(0)
    percentiles = (random.integers(0, 41, size=(200, 24)) + 0.5) / 41
    alarms = sum(signed_rank_p(values) <= 0.05 for values in percentiles)
    assert binomtest(alarms, 200, 0.05).pvalue > 0.001
    high = np.maximum(percentiles, percentiles[::-1])
    assert np.mean([signed_rank_p(values) <= 0.05 for values in high]) > 0.8


def test_the_interval_holds_the_mean_at_its_rate():
    random = np.random.default_rng(1)
    ends = [mean_interval(random.random(40))[1:] for _ in range(20)]
    held = sum(low <= 0.5 <= high for low, high in ends)
    assert binomtest(held, 20, 0.95).pvalue > 0.001
    assert mean_interval(np.full(6, 0.25)) == (0.25, 0.25, 0.25)


def test_too_few_runs_have_no_p():
    assert signed_rank_p(np.full(5, 0.99)) is None
    assert signed_rank_p(np.full(6, 0.99)) <= 0.05
    assert signed_rank_p(np.full(6, 0.5)) == 1.0


def test_a_study_asks_the_same(runs: list[Run], found: ChainTest):
    ranks = ANALYSES["chain_ranks"].function(runs[0], hops=HOPS, draws=30)
    expected = found.ranks.filter(run=runs[0].id)
    assert ranks.equals(expected.select(ranks.columns))
    ask = ANALYSES["chain_test"].function
    assert ask(runs, hops=HOPS, draws=30).equals(found.tests)
    one = ask(runs, where={"model": "one"}, hops=HOPS, draws=30)
    assert one.drop("q").equals(found.tests.filter(model="one").drop("q"))
    for name, table in (("chain_ranks", ranks), ("chain_test", found.tests)):
        assert {*ANALYSES[name].by, *ANALYSES[name].show} <= set(table.columns)


def test_other_chains_are_read_from_the_text():
    """One token per character, four to a block; the chains' sentences lie mixed, and each names another variable."""
    said = ["VAR AB = 71.", "VAR CD = 82.", "VAR EF = VAR CD.", "VAR GH = VAR AB.", "VAR IJ = 93."]
    text = " noise ".join(said)
    spans = [
        SimpleNamespace(name="hop:0" if "IJ" in one else "distractor", start=text.index(one), end=text.index(one) + 12)
        for one in said
    ]
    chains = [{"value": "82", "variables": ["CD", "EF"]}, {"value": "71", "variables": ["AB", "GH"]}]
    prompt = SimpleNamespace(task="variable_tracking", spans=spans, metadata={"distractors": chains})
    manifest = SimpleNamespace(prompt=prompt, config=SimpleNamespace(block_size=4))
    tokens = pl.LazyFrame({"position": range(len(text)), "text": list(text)}).sort("position", descending=True)
    run = SimpleNamespace(manifest=manifest, tokens=lambda: tokens)
    starts = [[text.index(said[at]) for at in order] for order in ((1, 2), (0, 3))]
    expected = [[list(range(start // 4, (start + 11) // 4 + 1)) for start in own] for own in starts]
    assert [[hop.tolist() for hop in own] for own in other_chains(run)] == expected
    prompt.task = "needle"
    assert other_chains(run) == []


def output(*arguments: object) -> str:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_commands_are_the_functions(runs: list[Run], found: ChainTest):
    flags = ("--hop", "block:4", "--hop", "needle", "--draws", "30")
    path = runs[0].path
    document = json.loads(output("chain", path, *flags, "--json"))
    assert document == {"run": str(path), **chain(runs[0].graph(), HOPS, draws=30).to_dict()}
    text = output("chain", path, *flags)
    assert "block:4 (4) → needle" in text and "haystack" in text
    store = json.loads(output("chain-test", path.parent, *flags, "--json"))
    assert store == {"store": str(path.parent), **found.to_dict()}
    assert "failure" in output("chain-test", path.parent, *flags)
    assert "Example: attngraph chain" in output("chain", "--help")


def test_the_figure_has_a_panel_per_control_and_group(runs: list[Run], found: ChainTest, tmp_path: Path):
    pytest.importorskip("matplotlib")
    figure = found.figure()
    panels = [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
    assert panels == [(f"model {name}", "percentile among haystack places") for name in ("one", "other")]
    dots = sum(len(part.get_offsets()) for part in figure.axes[0].collections if hasattr(part, "get_sizes"))
    assert dots == found.ranks.filter(pl.col("percentile").is_not_null(), model="one").height
    file = tmp_path / "chains.png"
    output("chain-test", runs[0].path.parent, "--hop", "block:4", "--hop", "needle", "--draws", "5", "--figure", file)
    assert file.stat().st_size > 0
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        output("chain-test", runs[0].path.parent, "--figure", tmp_path / "chains.txt")


def test_a_figure_without_matplotlib_says_what_to_install(found: ChainTest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "attngraph\[plot\]"'):
        found.figure()


def test_bad_input(runs: list[Run]):
    with pytest.raises(GraphError, match=r"No group of model has 6 runs with a percentile among 5, .* more seeds"):
        chain_test(runs[:5], HOPS, draws=5)
    with pytest.raises(GraphError, match="among 0"):
        chain_test([], HOPS)
    with pytest.raises(ConfigError, match=r"has no field 'depth' to group by\. .* metadata: hops, seed"):
        chain_test(runs, HOPS, by=["depth"])
    with pytest.raises(ConfigError, match="names the outcome"):
        chain_test(runs, HOPS, by=["outcome"])
    with pytest.raises(ag.errors.UnknownNodeError, match="no spans hop:0"):
        chain_test(runs)
