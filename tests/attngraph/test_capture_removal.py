"""Passes with edges removed, against the model's own eager attention under an explicit mask of -inf."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers

import attngraph as ag
from attngraph.capture import Removal, predictions
from attngraph.capture.resumed import spread
from attngraph.errors import GraphError, ModelError, PromptError
from attngraph.graph.edge_set import edge_set, joined
from tests.attngraph.tiny_models import (
    hook_count,
    implementation,
    layers_of,
    random_prompt,
    tiny,
    windows,
    word_tokenizer,
)

TOKENS, SIZE, ANSWER = 147, 8, 5
KINDS = ("Llama", "Qwen2", "Gemma3Text", "Gemma2", "GptOss", "GPTNeoX", "GPT2")


def captured(kind: str, folder: Any, *, budget: int | str = 4, **settings: Any) -> tuple[ag.LanguageModel, ag.Run]:
    lm = tiny(kind, tokenizer=word_tokenizer())
    # One target in the middle of the prompt, and a few tokens before the end of it.
    given = {"block_size": SIZE, "first_layers": 0, "targets": ("token:99", "output"), "exact_tail": 0}
    config = ag.StreamConfig(budget=budget, **given | settings)
    prompt = random_prompt(TOKENS, spans=[("needle", 40, 50)], answer=f"w{ANSWER}")
    return lm, ag.capture(lm, prompt, config, store=folder, progress=False)


def tables(run: ag.Run) -> pl.DataFrame:
    """All edges, into blocks and into targets."""
    columns = ["layer", "head", "query_block", "key_block", "target"]
    blocks = run.edges().collect().with_columns(target=pl.lit(None, pl.UInt32)).select(columns)
    targets = run.target_edges().collect().with_columns(query_block=pl.col("target") // SIZE).select(columns)
    return pl.concat([blocks, targets])


def sampled(edges: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """Some that can be removed, half of them into targets."""
    some = edges.filter(pl.col("key_block") != pl.col("query_block"))
    into = pl.col("target").is_not_null()
    return pl.concat([some.filter(kind).sample(count // 2, seed=seed) for kind in (into, ~into)])


def allowed(edges: pl.DataFrame, run: ag.Run) -> torch.Tensor:
    """[layers, H, T, T]: the pairs of query and key that the edges hold."""
    model = run.manifest.model
    mask = torch.zeros(model.layers, model.heads, TOKENS, TOKENS, dtype=torch.bool)
    for layer, head, query, key, target in edges.iter_rows():
        rows = [target] if target is not None else range(query * SIZE, min(TOKENS, (query + 1) * SIZE))
        rows = [row for row in rows if target is not None or row not in run.manifest.prompt.targets]
        mask[layer, head, rows, key * SIZE : (key + 1) * SIZE] = True
    return mask


@torch.no_grad()
def truth(lm: ag.LanguageModel, run: ag.Run, mask: torch.Tensor) -> tuple[float, float]:
    """Log-probability and margin of the answer by eager attention, all pairs outside `mask` at -inf."""
    layers = iter(mask)

    def masked(module: Any, q: Any, k: Any, v: Any, attention_mask: torch.Tensor, **settings: Any) -> Any:
        eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        gone = torch.zeros(mask.shape[1:]).masked_fill(~next(layers), -torch.inf)
        return eager(module, q, k, v, attention_mask + gone, **settings)

    transformers.AttentionInterface.register("masked", masked)
    transformers.masking_utils.AttentionMaskInterface.register("masked", transformers.masking_utils.eager_mask)
    ids = run.tokens().collect()["token_id"].to_list()
    with implementation(lm.model, "masked"):
        logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    said = logits.log_softmax(-1)
    others = torch.cat([said[:ANSWER], said[ANSWER + 1 :]])
    return float(said[ANSWER]), float(said[ANSWER] - others.max())


@pytest.mark.parametrize("kind", KINDS)
def test_without_some_edges_both_passes_are_eager_attention_under_a_mask(kind: str, tmp_path: Any) -> None:
    lm, run = captured(kind, tmp_path)
    edges = tables(run)
    everything = torch.ones(run.manifest.model.layers, run.manifest.model.heads, TOKENS, TOKENS, dtype=torch.bool)
    removed = [sampled(edges, 60, seed) for seed in range(2)]
    sets = [Removal(edge_set(run.graph(), one)) for one in removed]
    for forward, whole in (("sparse", allowed(edges, run)), ("dense", everything)):
        base, found = predictions(lm, run, sets, forward=forward, progress=False)
        assert base[:2] == pytest.approx(truth(lm, run, whole), abs=2e-4)
        for table, said in zip(removed, found, strict=True):
            expected = truth(lm, run, whole & ~allowed(table, run))
            assert said[:2] == pytest.approx(expected, abs=2e-4)
            assert said[:2] != pytest.approx(base[:2], abs=2e-3)


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text", "GptOss"])
def test_what_is_kept_alone_stands_beside_the_forced_blocks(kind: str, tmp_path: Any) -> None:
    lm, run = captured(kind, tmp_path, budget=6)
    edges, kept = tables(run), sampled(tables(run), 80, seed=0)
    whole = pl.Series([window is None for window in windows(lm)])
    forced = edges.filter(
        (pl.col("query_block") - pl.col("key_block") <= 1)
        | ((pl.col("key_block") == 0) & pl.col("layer").replace_strict(range(len(whole)), whole))
    )
    sets = [Removal(edge_set(run.graph(), kept), keep=True), Removal(joined([]), keep=True)]
    for forward in ("sparse", "dense"):
        base, found = predictions(lm, run, sets, forward=forward, progress=False)
        for said, remaining in zip(found, (pl.concat([kept, forced]), forced), strict=True):
            assert said[:2] == pytest.approx(truth(lm, run, allowed(remaining, run)), abs=2e-4)
            assert said[:2] != pytest.approx(base[:2], abs=2e-3)


@pytest.mark.parametrize("forward", ["sparse", "dense"])
def test_removing_nothing_is_the_captured_pass(forward: str, tmp_path: Any) -> None:
    lm, run = captured("Gemma3Text", tmp_path, forward=forward)
    nothing = Removal(joined([]))
    base, (again,) = predictions(lm, run, [nothing], forward=forward, progress=False)
    assert base.margin == pytest.approx(run.manifest.outcome.margin, abs=1e-4)
    assert (again.log_probability, again.layers) == (base.log_probability, 0)
    everything = Removal(edge_set(run.graph(), tables(run)), keep=True)
    _, (kept,) = predictions(lm, run, [everything], forward="sparse", progress=False)
    sparse, _ = predictions(lm, run, [], forward="sparse", progress=False)
    assert kept.log_probability == pytest.approx(sparse.log_probability, abs=1e-5)


@pytest.mark.parametrize("kind", ["Qwen3", "GPTNeoX"])
def test_neither_order_nor_company_changes_what_a_pass_says(kind: str, tmp_path: Any) -> None:
    lm, run = captured(kind, tmp_path)
    edges, layers = tables(run), len(layers_of(lm.model))
    late = edges.filter(pl.col("layer") >= layers - 2)
    removed = [sampled(table, 20, seed) for seed, table in enumerate((edges, late, edges.filter(layer=layers - 1)))]
    sets = [Removal(edge_set(run.graph(), one)) for one in removed]
    for forward in ("sparse", "dense"):
        _, together = predictions(lm, run, sets, forward=forward, progress=False)
        _, turned = predictions(lm, run, sets[::-1], forward=forward, progress=False)
        alone = [predictions(lm, run, [one], forward=forward, progress=False)[1][0] for one in sets]
        assert together == turned[::-1] == alone
        # Layers before the first one that loses an edge aren't computed again.
        assert [said.layers for said in together] == [layers - int(one["layer"].min()) for one in removed]
        shuffled = Removal(sets[0].edges.only(np.random.default_rng(0).permutation(sets[0].edges.size)))
        assert predictions(lm, run, [shuffled], forward=forward, progress=False)[1] == [alone[0]]


def test_the_model_is_left_as_it_was(tmp_path: Any) -> None:
    lm, run = captured("Llama", tmp_path)
    layers = layers_of(lm.model)
    own = layers[0].forward
    layers[0].forward = lambda *args, **kwargs: own(*args, **kwargs)  # as libraries that move weights about do
    set_by_others, hooks = layers[0].forward, hook_count(lm.model)
    late = Removal(edge_set(run.graph(), tables(run).filter(pl.col("layer") == 1).pipe(sampled, 4, 0)))
    predictions(lm, run, [late], forward="sparse", progress=False)
    assert layers[0].forward is set_by_others
    assert "forward" not in vars(layers[1])
    assert hook_count(lm.model) == hooks
    assert lm.model.config._attn_implementation != "attngraph"


@pytest.mark.parametrize(
    ("most", "expected"), [(None, [2, 3, 5, 9]), (4, [2, 3, 5, 9]), (3, [2, 5]), (1, [2]), (0, [])]
)
def test_starts_that_fit_into_memory_are_spread_evenly(most: int | None, expected: list[int]) -> None:
    assert spread([2, 3, 5, 9], most) == expected
    assert spread([], most) == []


def test_edges_that_cannot_be_removed_are_named(tmp_path: Any) -> None:
    lm, run = captured("Gemma3Text", tmp_path)
    graph, missing = run.graph(), None
    recorded = set(tables(run).filter(pl.col("target").is_null(), layer=2, head=1, query_block=15)["key_block"])
    missing = min(set(range(15)) - recorded)

    def ask(edge: tuple[int, ...], forward: str, *, keep: bool = False) -> None:
        predictions(lm, run, [Removal(edge_set(graph, [edge]), keep)], forward=forward, progress=False)

    named = f"layer 2, head 1 from key block {missing} to query block 15 is not among the run's recorded edges"
    for forward, keep in (("sparse", False), ("sparse", True), ("dense", True)):
        with pytest.raises(GraphError, match=named):
            ask((2, 1, 15, missing), forward, keep=keep)
    ask((2, 1, 15, missing), "dense")  # the dense pass attends to it all the same
    with pytest.raises(GraphError, match=r"to query block 15 leads from the row's own block"):
        ask((2, 1, 15, 15), "dense")
    with pytest.raises(GraphError, match=r"to token 99 leads from the row's own block"):
        ask((0, 0, 12, 12, 99), "sparse")
    with pytest.raises(GraphError, match="leads from a block that the row doesn't see"):
        ask((2, 1, 5, 6), "dense")
    with pytest.raises(GraphError, match="leads from a block that the row doesn't see"):
        ask((0, 1, 15, 0), "dense")  # outside the window of the first layer


def test_runs_without_an_answer_and_other_models_are_refused(tmp_path: Any) -> None:
    lm, run = captured("Llama", tmp_path)
    with pytest.raises(ModelError, match=r"This run is of 'tiny' .* the model given is 'tiny'"):
        predictions(tiny("Llama", seed=1), run, [], forward="sparse")
    silent = ag.capture(lm, random_prompt(60), ag.StreamConfig(block_size=8), store=tmp_path, progress=False)
    with pytest.raises(PromptError, match="has no answer whose log-probability"):
        predictions(lm, silent, [], forward="sparse")

    def without_tokens(run: ag.Run) -> ag.Run:
        prompt = run.manifest.prompt
        older = {name: getattr(prompt, name) for name in prompt.__struct_fields__} | {"answer_tokens": ()}
        fields = {name: getattr(run.manifest, name) for name in run.manifest.__struct_fields__}
        return replace(run, manifest=type(run.manifest)(**fields | {"prompt": type(prompt)(**older)}))

    base, _ = predictions(lm, run, [], forward="sparse", progress=False)
    assert predictions(lm, without_tokens(run), [], forward="sparse", progress=False)[0] == base
    mute = tiny("Llama")
    unread = ag.capture(
        mute, random_prompt(60, answer="w5"), ag.StreamConfig(block_size=8), store=tmp_path, progress=False
    )
    with pytest.raises(PromptError, match="'w5' can't be read: the model 'tiny' has no tokenizer"):
        predictions(mute, unread, [], forward="sparse")


def test_the_manifest_has_the_answers_tokens(tmp_path: Any) -> None:
    _, run = captured("Llama", tmp_path)
    assert ag.open_run(run.path).manifest.prompt.answer_tokens == (ANSWER,)
