"""Pruned runs of tiny models: what is kept, counted and summed, against counts and sums by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import attngraph as ag
from tests.attngraph.tiny_models import (
    FEW,
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

TOKENS, SIZE = 203, 8
BLOCKS = 26
SPANS = [("sink", 0, 1), ("needle", 33, 61), ("question", 180, 203), ("needle", 90, 95), ("inside", 40, 44)]


def sparse(budget: int | str = 3, **settings) -> ag.StreamConfig:
    # No exact tail and few start nodes, so that most rows go through the descent, over several levels.
    given = {"block_size": SIZE, "first_layers": 0, "n_match": 0, "candidates": 1, "start_nodes": 4, "exact_tail": 0}
    return ag.StreamConfig(budget=budget, **given | settings)


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize(
    "config",
    [
        sparse(),
        sparse(5),
        sparse("all"),
        sparse(4, selector="exact"),
        sparse(4, first_layers=1, first_budget=9),
        sparse(9, first_layers=2, first_budget=4),
        ag.StreamConfig(n_match=0),
    ],
)
def test_counts_and_sums_of_a_sparse_run(kind: str, config: ag.StreamConfig, tmp_path) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS, spans=SPANS)
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    assert ag.verify_run(run.path).problems == ()
    heads, size = lm.model.config.num_attention_heads, config.block_size
    kept = [
        [min(config.layer_budget(layer, TOKENS, window), n) for n in available(TOKENS, size, window)]
        for layer, window in enumerate(windows(lm))
    ]
    assert run.cost.edges == run.edges().collect().height == heads * sum(map(sum, kept))
    rows = run.rows().sort("layer", "query_block", "head").collect()
    assert rows["kept"].to_list() == [n for layer in kept for n in layer for _ in range(heads)]
    targets = run.target_edges().collect()
    assert set(targets["target"]) == {TOKENS - 1}
    assert targets.height == heads * sum(layer[-1] for layer in kept)
    shares = run.shares().collect()
    blocks = len(kept[0])
    assert shares.height == len(kept) * (blocks + 1)
    assert shares.filter(position=TOKENS - 1).height == len(kept)
    np.testing.assert_allclose(shares["residual"] + shares["attention"], 1, atol=1e-6)
    assert run.fidelity is None
    assert run.cost.dense_forward_seconds is None


@pytest.mark.parametrize("kind", ["Gemma3Text", "Mistral"])
def test_no_edge_leaves_its_window_and_the_forced_blocks_are_there(kind: str, tmp_path) -> None:
    lm = tiny(kind)
    run = ag.capture(lm, random_prompt(TOKENS), sparse(), store=tmp_path, progress=False)
    window = {layer: window or TOKENS for layer, window in enumerate(windows(lm))}
    edges = run.edges().collect().with_columns(window=pl.col("layer").replace_strict(window, return_dtype=pl.Int64))
    # The last key of the block against the first key that the block's first query sees.
    reach = pl.col("query_block").cast(pl.Int64) * SIZE - pl.col("window") + 1
    assert edges.filter((pl.col("key_block").cast(pl.Int64) + 1) * SIZE - 1 < reach).is_empty()
    rows = run.rows().collect().height
    assert edges.filter(pl.col("key_block") == pl.col("query_block")).height == rows
    per_layer = lm.model.config.num_attention_heads * BLOCKS
    for layer, width in window.items():
        sink = edges.filter((pl.col("layer") == layer) & (pl.col("key_block") == 0)).height
        visible = sum(start * SIZE - width + 1 < SIZE for start in range(BLOCKS)) * per_layer // BLOCKS
        assert sink == per_layer if width == TOKENS else sink <= visible


def brute_force(attention: np.ndarray, budget: int) -> np.ndarray:
    """Kept block pairs [H, blocks, blocks] of one unwindowed layer from its block masses, loop by loop."""
    kept = np.zeros(attention.shape, dtype=bool)
    for head, rows in enumerate(attention):
        for query, masses in enumerate(rows):
            forced = {0, query, max(0, query - 1)}
            others = sorted((key for key in range(query) if key not in forced), key=lambda key: (-masses[key], key))
            wanted = min(budget, query + 1)
            kept[head, query, [*forced, *others[: wanted - len(forced)]]] = True
    return kept


@pytest.mark.parametrize("config", [sparse(5, selector="exact"), sparse(5, candidates=6)], ids=["exact", "stream"])
def test_the_first_layer_keeps_the_blocks_with_the_most_mass(config: ag.StreamConfig, tmp_path) -> None:
    # Six times five candidates are all 26 blocks: then the search is exact too.
    lm, prompt = tiny("Qwen3"), random_prompt(TOKENS)
    truth = dense(lm, prompt)
    masses = by_block(truth.attention[0], SIZE, rows=True)
    kept = brute_force(masses, 5)
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    first = run.edges().filter(layer=0)
    found = as_array(first, "query_block", (1, *masses.shape), "mass")[0]
    np.testing.assert_array_equal(~np.isnan(found), kept)
    # What is kept is a softmax over the kept keys alone.
    tokens = torch.from_numpy(kept).repeat_interleave(SIZE, 1)[:, :TOKENS].repeat_interleave(SIZE, 2)[..., :TOKENS]
    pruned = truth.attention[0] * tokens
    pruned = pruned / pruned.sum(dim=-1, keepdim=True)
    for column, weights in (("mass", pruned), ("contribution", pruned * truth.lengths[0].unsqueeze(1))):
        found = as_array(first, "query_block", (1, *masses.shape), column)[0]
        np.testing.assert_allclose(np.nan_to_num(found), by_block(weights, SIZE, rows=True), rtol=2.0**-12, atol=1e-6)
    rows = run.rows().filter(layer=0).sort("head", "query_block").collect()
    audited = rows["kept_mass"].to_numpy().reshape(kept.shape[:2])
    np.testing.assert_allclose(audited, (masses * kept).sum(axis=-1), atol=1e-5)


def test_target_rows_keep_blocks_of_their_own(tmp_path) -> None:
    lm, prompt = tiny("Llama", peak=2.5), random_prompt(TOKENS)
    run = ag.capture(lm, prompt, sparse(5), store=tmp_path, progress=False)
    masses = by_block(dense(lm, prompt).attention[:1, :, TOKENS - 1 :], SIZE, rows=False)
    found = as_array(run.target_edges().filter(layer=0).with_columns(row=0), "row", masses.shape, "mass")
    for head, row in enumerate(masses[0, :, 0]):
        forced = [0, BLOCKS - 2, BLOCKS - 1]
        others = sorted(set(range(BLOCKS)) - set(forced), key=lambda key: -row[key])[:2]
        kept = sorted([*forced, *others])
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found[0, head, 0])), kept)
        np.testing.assert_allclose(found[0, head, 0, kept], row[kept] / row[kept].sum(), rtol=2.0**-12, atol=1e-6)


def test_a_targets_output_comes_from_the_blocks_of_its_own_row(tmp_path) -> None:
    lm, prompt = tiny("Llama", peak=2.5, num_hidden_layers=1), random_prompt(TOKENS)
    attention = lm.model.model.layers[0].self_attn
    seen = {}
    hooks = [
        attention.v_proj.register_forward_hook(lambda _, __, output: seen.update(values=output[0])),
        attention.o_proj.register_forward_pre_hook(lambda _, args: seen.update(output=args[0][0, -1])),
    ]
    run = ag.capture(lm, prompt, sparse(4), store=tmp_path, progress=False)
    for hook in hooks:
        hook.remove()
    row = dense(lm, prompt).attention[0, :, -1]
    of_block, of_target = (
        frame.collect().group_by("head", maintain_order=True).agg(pl.col("key_block").sort())["key_block"].to_list()
        for frame in (run.edges().filter(query_block=BLOCKS - 1), run.target_edges())
    )
    assert of_block != of_target  # else the test could not tell one from the other
    values = seen["values"].unflatten(-1, (-1, 16)).transpose(0, 1).repeat_interleave(2, 0)
    for head, blocks in enumerate(of_target):
        keys = [key for key in range(TOKENS) if key // SIZE in blocks]
        weights = row[head, keys] / row[head, keys].sum()
        expected = weights @ values[head, keys]
        torch.testing.assert_close(seen["output"].unflatten(0, (4, 16))[head], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_span_edges_are_sums_over_token_pairs(kind: str, tmp_path) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS, spans=SPANS)
    truth = dense(lm, prompt)
    run = ag.capture(lm, prompt, sparse("all"), store=tmp_path, progress=False)
    table = run.span_edges().collect()
    found = {row[:4]: row[4:] for row in table.iter_rows()}
    for layer, head in np.ndindex(*truth.lengths.shape[:2]):
        attention, lengths = truth.attention[layer, head].double(), truth.lengths[layer, head].double()
        for query, (_, query_start, query_end) in enumerate(SPANS):
            for key, (_, key_start, key_end) in enumerate(SPANS):
                pairs = attention[query_start:query_end, key_start:key_end]
                contribution = (pairs * lengths[key_start:key_end]).sum() / (query_end - query_start)
                expected = (float(pairs.sum() / (query_end - query_start)), float(contribution))
                assert found.get((layer, head, query, key), (0, 0)) == pytest.approx(expected, rel=3e-4, abs=1e-6)


def test_pruned_shares_by_hand(tmp_path) -> None:
    # 8 blocks of 8 tokens, budget 3: rows keep 1, 2, 3, 3, … = 21 blocks of 64 pairs = 1344 pairs, in both layers: with
    # a window of 16 a block sees itself and the two before it. Causal pairs: 64·65/2 = 2080. Pairs within the window:
    # 16·17/2 + 48·16 = 904, fewer than the whole blocks hold, so nothing of them is pruned.
    lm = tiny("Gemma3Text", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=16)
    run = ag.capture(lm, random_prompt(64), sparse(), store=tmp_path, progress=False)
    assert run.cost.edges == 2 * 4 * 21
    assert run.cost.pruned.causal == pytest.approx(1 - 1344 / 2080)
    assert run.cost.pruned.square == pytest.approx(1 - 1344 / 4096)
    assert run.cost.pruned.visible == pytest.approx((1 - 1344 / 2080) / 2)
    assert run.cost.dense_cache_bytes == 2 * 4 * 64**2 * 4


def test_nothing_is_pruned_with_all_blocks(tmp_path) -> None:
    run = ag.capture(tiny("Llama"), random_prompt(60), sparse("all"), store=tmp_path, progress=False)
    assert (run.cost.pruned.causal, run.cost.pruned.visible) == (0, 0)


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_a_bfloat16_model(kind: str, tmp_path) -> None:
    lm = tiny(kind, dtype="bfloat16")
    assert lm.model.dtype == torch.bfloat16
    run = ag.capture(lm, random_prompt(TOKENS), sparse(n_match=2), store=tmp_path, progress=False)
    assert ag.verify_run(run.path).problems == ()
    assert run.manifest.model.dtype == "bfloat16"
    assert run.cost.dense_cache_bytes == len(windows(lm)) * 4 * TOKENS**2 * 2


@pytest.mark.parametrize("kind", ["Qwen2", "Gemma3Text"])
def test_the_same_prompt_gives_the_same_files(kind: str, tmp_path) -> None:
    prompt = random_prompt(TOKENS, spans=SPANS)
    runs = [ag.capture(tiny(kind), prompt, sparse(5), store=tmp_path, progress=False) for _ in range(2)]
    assert runs[0].id != runs[1].id
    assert runs[0].manifest.files == runs[1].manifest.files
    assert runs[0].manifest.key == runs[1].manifest.key


@pytest.mark.parametrize("kind", ["Qwen2", "Gemma3Text"])
def test_the_mask_does_not_depend_on_the_number_of_threads(kind: str, tmp_path) -> None:
    prompt, usual, masks = random_prompt(TOKENS), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            run = ag.capture(tiny(kind), prompt, sparse(5), store=tmp_path, progress=False)
            tables = [run.edges().collect(), run.target_edges().collect()]
            masks.append([table.drop("mass", "contribution") for table in tables])
    finally:
        torch.set_num_threads(usual)
    assert masks[0][0].height > 0
    for other in masks[1:]:
        assert all(table.equals(first) for table, first in zip(other, masks[0], strict=True))


def test_other_settings_prompts_spans_and_models_are_other_tasks(tmp_path) -> None:
    prompt = random_prompt(60)
    cases = [
        (tiny(), prompt, sparse()),
        (tiny(seed=1), prompt, sparse()),
        (tiny(), random_prompt(60, seed=1), sparse()),
        (tiny(), random_prompt(60, spans=[("a", 0, 5)]), sparse()),
        (tiny(), random_prompt(60, answer="w1"), sparse()),
        (tiny(), prompt, sparse(4)),
    ]
    keys = {ag.capture(*case, store=tmp_path, progress=False).manifest.key for case in cases}
    assert len(keys) == len(cases)


def test_the_prompts_tables_hold_its_text_and_spans(tmp_path) -> None:
    prompt = random_prompt(30, spans=[("needle", 3, 9), ("needle", 20, 30)])
    run = ag.capture(tiny(tokenizer=word_tokenizer()), prompt, sparse(), store=tmp_path, progress=False)
    tokens, blocks = run.tokens().collect(), run.blocks().collect()
    assert tokens["token_id"].to_list() == list(prompt.token_ids)
    assert tokens["text"].to_list() == [f"w{token}" for token in prompt.token_ids]
    assert blocks.rows()[-1] == (3, 24, 30, words(prompt.token_ids[24:]))
    assert run.spans().collect().rows() == [(0, "needle", 3, 9), (1, "needle", 20, 30)]


def test_the_graph_of_a_run_can_be_asked(tmp_path) -> None:
    prompt = random_prompt(TOKENS, spans=SPANS)
    run = ag.capture(tiny("Gemma3Text"), prompt, sparse(5), store=tmp_path, progress=False)
    routes = ag.routes(run.graph(), source="needle", target="output", k=2).to_polars()
    assert routes.height > 0
