"""Every model family, pruned and observed: what its tiny model's run holds, against its own eager attention.

That all kept blocks give the model's own logits, edges and contributions is `test_capture_equivalence`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import attngraph as ag
from attngraph.capture.attention import replaced_attention, streamed_attention
from tests.attngraph.families import FAMILIES, table
from tests.attngraph.tiny_models import (
    ARCHITECTURES,
    as_array,
    available,
    by_block,
    dense,
    random_prompt,
    tiny,
    windows,
    word_tokenizer,
    words,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
TOKENS, SIZE, BUDGET = 187, 8, 4
# No exact tail and few start nodes, so that most rows go through the descent, over several levels.
SEARCH = {"block_size": SIZE, "budget": BUDGET, "first_layers": 0, "candidates": 1, "start_nodes": 4, "exact_tail": 0}


def test_the_documents_table_is_the_one_of_these_tests() -> None:
    assert {family.kind for family in FAMILIES} == set(ARCHITECTURES)
    assert table() in DOCUMENT.read_text(encoding="utf-8"), "python -m tests.attngraph.families prints the new table"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_pruned_run(kind: str, tmp_path) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS, spans=[("needle", 30, 60)])
    run = ag.capture(lm, prompt, ag.StreamConfig(**SEARCH), store=tmp_path, progress=False)
    assert ag.verify_run(run.path).problems == ()
    kept = sum(min(BUDGET, blocks) for window in windows(lm) for blocks in available(TOKENS, SIZE, window))
    assert run.cost.edges == lm.model.config.num_attention_heads * kept
    assert run.manifest.model.sinks == (kind == "GptOss")
    assert run.fidelity.kl > 0
    assert np.isfinite(ag.influence(run.graph(), target="output").to_polars()["influence"].to_numpy()).all()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_beside_a_dense_pass_edges_are_the_models_own_masses(kind: str, tmp_path) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS)
    truth = dense(lm, prompt)
    config = ag.StreamConfig(**SEARCH, forward="dense", n_match=0, audit="none")
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    assert ag.verify_run(run.path).problems == ()
    kept = sum(min(BUDGET, blocks) for window in windows(lm) for blocks in available(TOKENS, SIZE, window))
    assert run.cost.edges == lm.model.config.num_attention_heads * kept
    weighted = truth.attention * truth.lengths.unsqueeze(2)
    for column, weights in (("mass", truth.attention), ("contribution", weighted)):
        expected = by_block(weights, SIZE, rows=True)
        found = as_array(run.edges(), "query_block", expected.shape, column)
        edges = ~np.isnan(found)
        np.testing.assert_allclose(found[edges], expected[edges], rtol=2.0**-12, atol=1e-6)
        expected = by_block(weights[:, :, TOKENS - 1 :], SIZE, rows=False)
        found = as_array(run.target_edges().with_columns(row=0), "row", expected.shape, column)
        np.testing.assert_allclose(found[~np.isnan(found)], expected[~np.isnan(found)], rtol=2.0**-12, atol=1e-6)
    # What is neither on a kept block nor given to a sink is dropped.
    masses = by_block(truth.attention, SIZE, rows=True)
    rows = run.rows().sort("layer", "head", "query_block").collect()
    kept_mass = rows["kept_mass"].to_numpy().reshape(masses.shape[:3])
    edges = ~np.isnan(as_array(run.edges(), "query_block", masses.shape, "mass"))
    np.testing.assert_allclose(kept_mass, 1 - np.where(edges, 0, masses).sum(axis=-1), atol=1e-5)
    assert kept_mass.min() < 0.9
    sums = np.nansum(as_array(run.edges(), "query_block", masses.shape, "mass"), axis=-1)
    np.testing.assert_allclose(kept_mass - sums, 1 - masses.sum(axis=-1), atol=3e-4)


@pytest.mark.parametrize(("kind", "change"), [("Gemma2", {"attn_logit_softcapping": None}), ("GptOss", None)])
def test_the_cap_and_the_sinks_of_the_tiny_models_matter(kind: str, change: dict | None) -> None:
    prompt = random_prompt(TOKENS)
    truth = dense(tiny(kind), prompt)
    if change is None:
        assert truth.attention.sum(dim=-1).mean() < 0.9
    else:
        assert (dense(tiny(kind, **change), prompt).logits - truth.logits).abs().max() > 0.5


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_streamed_reference_is_eager_attention(kind: str) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS)
    with replaced_attention(lm.model, streamed_attention), torch.no_grad():
        logits = lm.model(torch.tensor([prompt.token_ids]), use_cache=False).logits[0]
    assert (logits - dense(lm, prompt).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["Llama", "GptOss"])
def test_fidelity_is_the_pruned_models_whatever_flows_on(kind: str, tmp_path) -> None:
    lm = tiny(kind, tokenizer=word_tokenizer())
    prompt = random_prompt(TOKENS, answer=words([3, 5, 8]))
    sparse, observed = (
        ag.capture(lm, prompt, ag.StreamConfig(**SEARCH, forward=forward), store=tmp_path, progress=False)
        for forward in ("sparse", "dense")
    )
    assert sparse.fidelity.kl > 1e-3
    assert observed.fidelity == sparse.fidelity
    assert sparse.manifest.key != observed.manifest.key
