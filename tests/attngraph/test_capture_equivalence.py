"""With a budget of all blocks a captured pass is the model's own eager attention, in logits, edges and targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import attngraph as ag
from attngraph.capture.attention import replaced_attention
from attngraph.capture.fidelity import logits_after
from attngraph.capture.sparse import SparseAttention
from tests.attngraph.tiny_models import ARCHITECTURES, WINDOW, as_array, by_block, dense, random_prompt, tiny, windows

ROUNDING = 2.0**-12
ALL = ag.StreamConfig(block_size=8, budget="all", n_match=0)
CASES = [
    *ARCHITECTURES,
    "Qwen2 with windows above",
    "Llama with one query group",
    "GPTNeoX one after the other",
    "GPT2 with scales by layer",
]


def model(case: str, seed: int = 0) -> ag.LanguageModel:
    if case == "Qwen2 with windows above":
        kinds = ["full_attention", "sliding_attention", "sliding_attention"]
        return tiny("Qwen2", seed=seed, use_sliding_window=True, sliding_window=WINDOW, layer_types=kinds)
    if case == "Llama with one query group":
        return tiny("Llama", seed=seed, num_key_value_heads=4, attention_bias=True)
    if case == "GPTNeoX one after the other":
        return tiny("GPTNeoX", seed=seed, use_parallel_residual=False)
    if case == "GPT2 with scales by layer":
        return tiny("GPT2", seed=seed, peak=3.0, scale_attn_by_inverse_layer_idx=True)
    return tiny(case, seed=seed)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [157, 193])
def test_all_logits_equal_eager_attention(case: str, tokens: int) -> None:
    lm, prompt = model(case, seed=tokens), random_prompt(tokens)
    truth = dense(lm, prompt)
    # Attention must be sharp, or a wrong one would hardly show: flat rows would have a largest weight of 1/T.
    assert truth.attention[:, :, -1].amax(dim=-1).mean() > 0.15
    with replaced_attention(lm.model, SparseAttention(ALL, (tokens - 1, tokens // 2))), torch.inference_mode():
        logits = lm.model(torch.tensor([prompt.token_ids]), use_cache=False).logits[0]
    assert (logits - truth.logits).abs().max() <= 1e-4
    assert truth.logits.std() > 0.5


def test_the_last_logits_come_without_the_others() -> None:
    lm, prompt = tiny("Llama"), random_prompt(100)
    longer = ag.Prompt((*prompt.token_ids, 5, 6))
    found = logits_after(lm.model, prompt.token_ids, (5, 6))
    torch.testing.assert_close(found, dense(lm, longer).logits[-3:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_edges_and_target_rows_equal_dense_block_masses_and_contributions(case: str, tmp_path) -> None:
    lm, prompt = model(case), random_prompt(171)
    truth = dense(lm, prompt)
    run = ag.capture(lm, prompt, ALL, store=tmp_path, progress=False)
    weighted = truth.attention * truth.lengths.unsqueeze(2)
    for column, weights in (("mass", truth.attention), ("contribution", weighted)):
        expected = by_block(weights, 8, rows=True)
        found = as_array(run.edges(), "query_block", expected.shape, column)
        # An edge is missing only where nothing is visible.
        np.testing.assert_array_equal(expected[np.isnan(found)], 0)
        np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=ROUNDING, atol=1e-6)

        expected = by_block(weights[:, :, 170:], 8, rows=False)
        table = run.target_edges().with_columns(row=0)
        assert set(table.collect()["target"]) == {170}
        found = as_array(table, "row", expected.shape, column)
        np.testing.assert_array_equal(expected[np.isnan(found)], 0)
        np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=ROUNDING, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_manifest_names_every_layers_window(case: str, tmp_path) -> None:
    lm = model(case)
    run = ag.capture(lm, random_prompt(60), ALL, store=tmp_path, progress=False)
    assert list(run.manifest.model.windows) == windows(lm)
