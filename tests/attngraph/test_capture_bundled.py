"""The bundled models: with a budget of all blocks they are themselves, and their edges are their attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import attngraph as ag
from attngraph.capture.attention import replaced_attention
from attngraph.capture.sparse import SparseAttention
from tests.attngraph.tiny_models import as_array, by_block, implementation

pytestmark = pytest.mark.model
LAST = 64


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def lm(request: pytest.FixtureRequest) -> ag.LanguageModel:
    return ag.load_model(request.param, device="cpu")


def test_logits_and_edges_equal_eager_attention(lm: ag.LanguageModel, tmp_path) -> None:
    prompt = ag.tasks.needle(lm.tokenizer, length=520, seed=1, haystack="varied")
    config = ag.StreamConfig(budget="all", n_match=0)
    ids = {"input_ids": torch.tensor([prompt.token_ids]), "use_cache": False, "logits_to_keep": LAST}
    with torch.inference_mode():
        with implementation(lm.model, "eager"):
            truth = lm.model(**ids, output_attentions=True)
        with replaced_attention(lm.model, SparseAttention(config, (len(prompt) - 1,))):
            logits = lm.model(**ids).logits
    assert (logits - truth.logits).abs().max() <= 1e-3

    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    layers = len(truth.attentions)
    for layer in (0, layers // 2, layers - 1):
        expected = by_block(truth.attentions[layer], 16, rows=True)
        edges = run.edges().filter(layer=layer).with_columns(layer=0)
        found = as_array(edges, "query_block", expected.shape, "mass")
        np.testing.assert_array_equal(expected[np.isnan(found)], 0)
        np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=2.0**-12, atol=1e-5)
    assert ag.verify_run(run.path).ok
