"""What a capture says about the attention that it dropped, against the dense attention of tiny models."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import attngraph as ag
from attngraph.errors import ConfigError
from attngraph.graph import completeness
from tests.attngraph.tiny_models import by_block, dense, random_prompt, tiny

TOKENS, SIZE = 203, 8
BLOCKS = 26


def config(audit: str, budget: int | str = 4, **settings) -> ag.StreamConfig:
    # No exact tail and few start nodes, so that most rows go through the descent.
    given = {"block_size": SIZE, "first_layers": 0, "n_match": 0, "candidates": 1, "start_nodes": 4, "exact_tail": 0}
    return ag.StreamConfig(budget=budget, audit=audit, **given | settings)


def capture(kind: str, settings: ag.StreamConfig, store) -> ag.Run:
    run = ag.capture(tiny(kind), random_prompt(TOKENS), settings, store=store, progress=False)
    assert ag.verify_run(run.path).problems == ()
    return run


def kept_masses(run: ag.Run) -> np.ndarray:
    """[layers, blocks, heads]."""
    rows = run.rows().sort("layer", "query_block", "head").collect()
    return rows["kept_mass"].to_numpy().reshape(run.manifest.model.layers, BLOCKS, -1)


def kept_of(masses: np.ndarray, edges, row: str) -> np.ndarray:
    """1 - the dense block masses [H, rows, blocks] without an edge in the first layer: [rows, H].

    What a learned sink takes (gpt-oss) is not dropped.
    """
    table = edges.filter(layer=0).collect()
    rows = table[row].to_numpy() if row == "query_block" else np.zeros(table.height, int)
    dropped = masses.copy()
    dropped[table["head"], rows, table["key_block"]] = 0
    return 1 - dropped.sum(axis=-1).T


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral", "Gemma3Text", "Gemma2", "GptOss"])
def test_the_first_layers_kept_mass_is_the_dense_attention_on_its_edges(kind: str, tmp_path) -> None:
    attention = dense(tiny(kind), random_prompt(TOKENS)).attention[0]
    run = capture(kind, config("full"), tmp_path)
    truth = kept_of(by_block(attention, SIZE, rows=True), run.edges(), "query_block")
    found = kept_masses(run)[0]
    np.testing.assert_allclose(found, truth, atol=1e-5)
    assert found.min() < 0.9 < found.max()
    targets = run.target_rows().filter(layer=0).sort("head").collect()
    truth = kept_of(by_block(attention[:, -1:], SIZE, rows=False), run.target_edges(), "target")
    np.testing.assert_allclose(targets["kept_mass"], truth[0], atol=1e-5)
    assert targets["target"].unique().to_list() == [TOKENS - 1]


def test_every_layer_is_audited_against_its_own_hidden_states(tmp_path) -> None:
    # The exact selector scores every key in every layer, on its way: the audit's own pass must say the same.
    full, targets = (capture("Gemma3Text", config(audit, selector="exact"), tmp_path) for audit in ("full", "targets"))
    assert full.edges().collect().equals(targets.edges().collect())
    np.testing.assert_allclose(kept_masses(full), kept_masses(targets), atol=1e-5)
    assert full.target_rows().collect().equals(targets.target_rows().collect())


def test_targets_are_audited_without_a_pass_of_their_own_and_none_if_told_so(tmp_path) -> None:
    full, targets, none = (capture("Llama", config(audit), tmp_path) for audit in ("full", "targets", "none"))
    assert full.edges().collect().equals(none.edges().collect())
    assert full.target_rows().collect().equals(targets.target_rows().collect())
    known = ~np.isnan(kept_masses(targets))
    assert known[:, -1].all()  # all visible blocks are candidates in the target's block,
    assert known[:, :4].all()  # and where there are no more of them than candidates
    assert not known[:, 4:-1].any()
    np.testing.assert_allclose(kept_masses(targets)[known], kept_masses(full)[known], atol=1e-5)
    assert np.isnan(kept_masses(none)).all()
    assert none.target_rows().collect()["kept_mass"].null_count() == none.target_rows().collect().height
    assert none.manifest.key != full.manifest.key


@pytest.mark.parametrize("audit", ["targets", "full"])
@pytest.mark.parametrize("selector", ["stream", "exact"])
@pytest.mark.parametrize("kind", ["Qwen2", "Gemma3Text"])
def test_where_all_blocks_are_kept_nothing_is_missing(kind: str, selector: str, audit: str, tmp_path) -> None:
    run = capture(kind, config(audit, "all", selector=selector), tmp_path)
    np.testing.assert_allclose(kept_masses(run), 1, atol=1e-5)
    np.testing.assert_allclose(run.target_rows().collect()["kept_mass"], 1, atol=1e-5)
    for policy in ({}, {"sink": "exclude"}, {"heads": "max", "weight": "mass"}):
        found = ag.influence(run.graph(**policy))
        assert found.completeness == pytest.approx(1, abs=1e-5)
        assert found.completeness_source == "audited"


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text", "GptOss"])
def test_rows_that_are_not_audited_are_estimated(kind: str, tmp_path) -> None:
    full, targets, none = (
        capture(kind, config(audit, query_representatives=SIZE), tmp_path) for audit in ("full", "targets", "none")
    )
    estimates = targets.rows().sort("layer", "query_block", "head").collect()["kept_mass_estimate"].to_numpy()
    estimated = ~np.isnan(estimates).reshape(kept_masses(full).shape)
    np.testing.assert_array_equal(estimated, np.isnan(kept_masses(targets)))
    found, truth = estimates[estimated.ravel()], kept_masses(full)[estimated]
    # Keys without any structure, and a search over four start nodes: as hard as it gets.
    assert np.abs(found - truth).mean() < 0.15
    assert np.corrcoef(found, truth)[0, 1] > 0.8
    graph = targets.graph()
    assert completeness(graph).source == "estimated"
    assert completeness(graph).share == pytest.approx(completeness(full.graph()).share, abs=0.1)
    for run in (full, none):
        assert run.rows().collect()["kept_mass_estimate"].null_count() == run.rows().collect().height


def test_soft_capped_layers_are_not_estimated(tmp_path) -> None:
    run = capture("Gemma2", config("targets"), tmp_path)
    assert run.rows().collect()["kept_mass_estimate"].null_count() == run.rows().collect().height
    assert completeness(run.graph()).share is None


def test_every_result_carries_its_completeness(tmp_path) -> None:
    graph = capture("Gemma3Text", config("full"), tmp_path).graph()
    share, source, _ = completeness(graph)
    assert 0 < share < 1
    assert source == "audited"
    for found in (
        ag.influence(graph),
        ag.routes(graph, "block:3", k=2),
        ag.throughput(graph, "block:3"),
    ):
        assert (found.completeness, found.completeness_source) == (share, source)
    unaudited = ag.influence(capture("Gemma3Text", config("none"), tmp_path).graph())
    assert (unaudited.completeness, unaudited.completeness_source) == (None, None)


def test_a_larger_budget_keeps_more_of_the_first_layer(tmp_path) -> None:
    settings = [config("full", budget, selector="exact") for budget in (3, 5, 9)]
    kept = [kept_masses(capture("Qwen3", each, tmp_path))[0] for each in settings]
    for less, more in pairwise(kept):
        assert (less <= more + 1e-5).all()
        assert less.mean() < more.mean()


def test_an_unknown_audit_is_refused() -> None:
    with pytest.raises(ConfigError, match="audit='some' is not one of none, targets, full"):
        ag.StreamConfig(audit="some")
