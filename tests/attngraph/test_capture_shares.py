"""Shares of residual, attention and MLP, against the formula written out with the model's own modules."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import attngraph as ag
from attngraph.capture.shares import l1, proximity_shares
from tests.attngraph.tiny_models import implementation, kind_of, layers_of, projection_of, random_prompt, tiny

TOKENS, SIZE = 85, 8


def branches(lm: ag.LanguageModel, prompt: ag.Prompt) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per layer the stream before it, the attention branch and the MLP branch, [T, d] each."""
    outputs: list[Tensor] = []
    layers = layers_of(lm.model)
    projections = [projection_of(lm.model, layer) for layer in layers]
    hooks = [module.register_forward_hook(lambda _, __, output: outputs.append(output)) for module in projections]
    with torch.no_grad(), implementation(lm.model, "eager"):
        ids = torch.tensor([prompt.token_ids])
        streams = lm.model(ids, use_cache=False, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    found = []
    with torch.no_grad():
        for layer, stream, attention in zip(layers, streams, outputs, strict=False):
            if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma 3: a norm before and after each branch
                attention = layer.post_attention_layernorm(attention)
                between = layer.mlp(layer.pre_feedforward_layernorm(stream + attention))
                mlp = layer.post_feedforward_layernorm(between)
            elif hasattr(layer, "post_feedforward_layernorm"):  # OLMo 2, EXAONE 4: a norm after each branch alone
                attention = layer.post_attention_layernorm(attention)
                mlp = layer.post_feedforward_layernorm(layer.mlp(stream + attention))
            elif kind_of(lm.model) == "GPTNeoX":
                mlp = layer.mlp(layer.post_attention_layernorm(stream))
            elif kind_of(lm.model) in ("Phi", "Cohere"):
                mlp = layer.mlp(layer.input_layernorm(stream))
            elif kind_of(lm.model) == "GPT2":
                mlp = layer.mlp(layer.ln_2(stream + attention))
            else:
                mlp = layer.mlp(layer.post_attention_layernorm(stream + attention))
            found.append((stream[0].double(), attention[0].double(), mlp[0].double()))
    return found


def proximity(part: Tensor, other: Tensor) -> np.ndarray:
    def closeness(x: Tensor, y: Tensor) -> Tensor:
        return torch.clamp(y.abs().sum(-1) - (y - x).abs().sum(-1), min=1e-5)

    total = part + other
    return (closeness(part, total) / (closeness(part, total) + closeness(other, total))).numpy()


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma3Text", "Olmo2", "Exaone4", "GPT2"])
def test_shares_of_blocks_and_targets(kind: str, tmp_path) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS)
    config = ag.StreamConfig(block_size=SIZE, budget="all", n_match=0)
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    shares = run.shares().collect()
    starts = range(0, TOKENS, SIZE)
    for layer, (stream, attention, mlp) in enumerate(branches(lm, prompt)):
        of_attention, of_mlp = proximity(attention, stream), proximity(mlp, stream + attention)
        assert 0.05 < of_attention.mean() < 0.95  # neither part may be negligible, or nothing is tested
        rows = shares.filter(layer=layer)
        blocks = rows.drop_nulls("block").sort("block")
        target = rows.filter(position=TOKENS - 1)
        for name, values in (("attention", of_attention), ("residual", 1 - of_attention), ("mlp", of_mlp)):
            means = [values[start : start + SIZE].mean() for start in starts]
            np.testing.assert_allclose(blocks[name], means, atol=1e-4)
            np.testing.assert_allclose(target[name], values[-1:], atol=1e-4)


@pytest.mark.parametrize("kind", ["GPTNeoX", "Phi", "Cohere"])
def test_shares_of_parallel_blocks(kind: str, tmp_path) -> None:
    """Three parts of one sum; the residual share is all but attention."""
    lm, prompt = tiny(kind), random_prompt(TOKENS)
    config = ag.StreamConfig(block_size=SIZE, budget="all", n_match=0)
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    target = run.shares().filter(pl.col("position") == TOKENS - 1).sort("layer").collect()
    seen: list[list[float]] = []
    for layer, parts in enumerate(branches(lm, prompt)):
        stream, attention, mlp = (part[-1] for part in parts)
        total = stream + attention + mlp
        near = [max(total.abs().sum() - (total - part).abs().sum(), 1e-5) for part in (stream, attention, mlp)]
        share = [float(part / sum(near)) for part in near]
        row = target.row(layer, named=True)
        seen.append(share)
        assert row["attention"] == pytest.approx(share[1], abs=1e-4)
        assert row["mlp"] == pytest.approx(share[2], abs=1e-4)
        assert row["residual"] == pytest.approx(share[0] + share[2], abs=1e-4)
    assert np.max(seen, axis=0).min() > 0.02  # no part may be negligible in all layers, or nothing is tested


def shares_of(*parts: torch.Tensor) -> list[float]:
    """Of the one row of each part."""
    total = sum(parts[1:], start=parts[0])
    return [share.item() for share in proximity_shares(l1(total), *(l1(total - part) for part in parts))]


def test_proximity_of_three_parts_by_hand() -> None:
    # y = (2, 3), ‖y‖ = 5; without each part (1, 3), (2, 1) and (1, 2): 5 - 4 = 1, 5 - 3 = 2 and 5 - 3 = 2.
    parts = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
    assert shares_of(*parts) == pytest.approx([1 / 5, 2 / 5, 2 / 5])


def test_proximity_by_hand() -> None:
    # y = (3, 1): ‖y‖ = 4; without the branch (1, 2) it is (2, -1), 3 away from 0, so the branch's part is 4 - 3 = 1;
    # the stream (2, -1) leaves (1, 2), also 3, so its part is 1 too.
    stream, branch = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 2.0]])
    assert shares_of(stream, branch)[1] == pytest.approx(1 / 2)
    # y = (4, 0): the branch (1, 0) is 4 - 3 = 1 close, the stream (3, 0) 4 - 1 = 3.
    stream, branch = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert shares_of(stream, branch)[1] == pytest.approx(1 / 4)


@pytest.mark.parametrize(("stream", "branch", "share"), [((1.0, 1.0), (0.0, 0.0), 0), ((0.0, 0.0), (1.0, -2.0), 1)])
def test_an_empty_part_has_no_share(stream: tuple, branch: tuple, share: int) -> None:
    found = shares_of(torch.tensor([stream]), torch.tensor([branch]))[1]
    assert found == pytest.approx(share, abs=1e-4)


def test_parts_that_cancel_share_equally() -> None:
    stream = torch.tensor([[1.0, -2.0]])
    assert shares_of(stream, -stream) == [0.5, 0.5]
