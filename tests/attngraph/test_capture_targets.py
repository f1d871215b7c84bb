"""Many targets and completions: what a run keeps of them, and what the graph and the fidelity make of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import attngraph as ag
from attngraph.capture.attention import replaced_attention
from attngraph.capture.completion import States, agreement
from attngraph.capture.sparse import EXACT_TARGET_BLOCKS, SparseAttention, selector_for
from attngraph.capture.targets import target_positions
from attngraph.errors import ConfigError, PromptError, UnknownNodeError
from attngraph_kernels import BlockGrid
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

TOKENS, SIZE, START = 203, 8, 60
BLOCKS = 26
SPANS = [("needle", 33, 41), ("completion", START, TOKENS)]
REASONING = Path(os.environ.get("ATTNGRAPH_REASONING", Path(__file__).parents[3] / "shared" / "data" / "reasoning"))


def sparse(budget: int | str = 5, **changes) -> ag.StreamConfig:
    given = {"block_size": SIZE, "first_layers": 0, "n_match": 0, "exact_tail": 0, "start_nodes": 4, "candidates": 2}
    return ag.StreamConfig(budget=budget, **given | changes)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_target_has_its_edges_and_shares(kind: str, tmp_path) -> None:
    lm, prompt = tiny(kind), random_prompt(TOKENS, spans=SPANS)
    config = sparse(targets=("span:completion", "token:7", "output"))
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    assert ag.verify_run(run.path).problems == ()
    targets = [7, *range(START, TOKENS)]
    assert run.manifest.prompt.targets == tuple(targets)
    assert run.manifest.config.targets == config.targets
    heads = lm.model.config.num_attention_heads
    counts = [available(TOKENS, SIZE, window) for window in windows(lm)]
    edges = run.target_edges().collect()
    assert edges.height == heads * sum(min(5, layer[target // SIZE]) for layer in counts for target in targets)
    assert sorted(set(edges["target"])) == targets
    shares = run.shares().collect().drop_nulls("position")
    assert shares.filter(layer=0)["position"].to_list() == targets


def test_every_target_keeps_the_blocks_of_its_own_row(tmp_path) -> None:
    lm, prompt = tiny("Llama", peak=2.5), random_prompt(TOKENS, spans=SPANS)
    run = ag.capture(lm, prompt, sparse(targets=("span:completion",)), store=tmp_path, progress=False)
    masses = by_block(dense(lm, prompt).attention[:1], SIZE, rows=False)
    found = as_array(run.target_edges().filter(layer=0), "target", masses.shape, "mass")
    for target in range(START, TOKENS, 17):
        own = target // SIZE
        for head, row in enumerate(masses[0, :, target]):
            others = sorted(set(range(1, own - 1)), key=lambda key: -row[key])
            kept = sorted({0, own - 1, own, *others[: 5 - 3]})
            np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found[0, head, target])), kept)
            np.testing.assert_allclose(
                found[0, head, target, kept], row[kept] / row[kept].sum(), rtol=2.0**-12, atol=1e-6
            )


def test_names_of_targets() -> None:
    prompt = random_prompt(100, spans=[("a", 3, 6), ("a", 50, 52), ("b", 5, 7)])
    assert target_positions(prompt, ("output",)) == (99,)
    assert target_positions(prompt, ()) == (99,)
    assert target_positions(prompt, ("span:b", "span:a", "token:4", "token:99")) == (3, 4, 5, 6, 50, 51, 99)
    with pytest.raises(PromptError, match=r"no span 'c'; its spans are: a, b"):
        target_positions(prompt, ("span:c",))
    with pytest.raises(PromptError, match=r"'token:100' is not among the prompt's 100 tokens: .* 0 to 99"):
        target_positions(prompt, ("token:100",))


@pytest.mark.parametrize("targets", ["output", ("output", "needle"), ("token:x",), ("token:-1",), ("span:",), (3,)])
def test_other_names_are_refused(targets) -> None:
    with pytest.raises(ConfigError, match=r"is not one of 'output', 'token:N', 'span:NAME'; give a tuple"):
        ag.StreamConfig(targets=targets)


def test_targets_make_another_task(tmp_path) -> None:
    prompt = random_prompt(60)
    keys = {
        ag.capture(tiny(), prompt, sparse(4, targets=targets), store=tmp_path, progress=False).manifest.key
        for targets in [("output",), ("token:30",)]
    }
    assert len(keys) == 2


def test_blocks_of_few_targets_are_exact_and_those_of_many_are_searched() -> None:
    grid, config = BlockGrid(16 * 200, 16), ag.StreamConfig()
    few = range(16 * 100, 16 * (100 + EXACT_TARGET_BLOCKS))
    assert selector_for(config, grid, few, layer=0).exact_blocks == set(range(100, 100 + EXACT_TARGET_BLOCKS))
    assert selector_for(config, grid, range(16 * 99, few.stop), layer=0).exact_blocks == frozenset()


def test_graph_questions_about_one_target_and_about_a_span_of_them(tmp_path) -> None:
    prompt = random_prompt(TOKENS, spans=[*SPANS, ("thought", 100, 110), ("half", 55, 65)])
    run = ag.capture(tiny("Qwen3"), prompt, sparse(targets=("span:completion",)), store=tmp_path, progress=False)
    graph = run.graph()
    assert graph.nodes == BLOCKS + TOKENS - START
    alone = [ag.influence(graph, f"token:{token}").influence for token in range(100, 110)]
    np.testing.assert_allclose(ag.influence(graph, "thought").influence, np.mean(alone, axis=0), atol=1e-12)
    # Only half of this span's tokens are targets, so its blocks are asked.
    blocks = [ag.influence(graph, f"block:{block}").influence for block in range(6, 9)]
    np.testing.assert_allclose(ag.influence(graph, "half").influence, np.mean(blocks, axis=0), atol=1e-12)
    np.testing.assert_array_equal(ag.influence(graph).influence, ag.influence(graph, f"token:{TOKENS - 1}").influence)
    total = ag.throughput(graph, "needle", "token:105").total
    routes = ag.routes(graph, "needle", "token:105", k=3)
    assert 0 < sum(route.weight for route in routes.routes) <= total
    with pytest.raises(
        UnknownNodeError, match=r"'token:5' is not a target.*Targets: token:60, .*token:69 and 133 more"
    ):
        ag.influence(graph, "token:5")


def logits_of(lm: ag.LanguageModel, prompt: ag.Prompt) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(torch.tensor([prompt.token_ids]), use_cache=False).logits[0].double()


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_agreement_along_a_completion(kind: str, tmp_path) -> None:
    lm, prompt = tiny(kind, peak=2.5), random_prompt(TOKENS, spans=SPANS)
    config = sparse(3, n_match=1)
    fidelity = ag.capture(lm, prompt, config, store=tmp_path, progress=False).fidelity
    with replaced_attention(lm.model, SparseAttention(config, (TOKENS - 1,))):
        pruned = logits_of(lm, prompt)
    predictions = slice(START - 1, TOKENS - 1)
    p, q = (logits[predictions].log_softmax(-1) for logits in (logits_of(lm, prompt), pruned))
    assert fidelity.completion_tokens == TOKENS - START
    same = float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert 0 < same < 1
    assert fidelity.completion_agreement == pytest.approx(same)
    assert fidelity.completion_kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_beside_a_dense_pass_the_agreement_is_still_the_pruned_models(tmp_path) -> None:
    lm, prompt = tiny(peak=2.5), random_prompt(TOKENS, spans=SPANS)
    pruned, observed = (
        ag.capture(lm, prompt, sparse(3, n_match=1, forward=forward), store=tmp_path, progress=False).fidelity
        for forward in ("sparse", "dense")
    )
    assert pruned.completion_agreement < 1
    assert observed.completion_agreement == pruned.completion_agreement
    assert observed.completion_kl == pytest.approx(pruned.completion_kl)


def test_all_blocks_agree_along_the_completion_and_a_prompt_without_one_has_none(tmp_path) -> None:
    lm, config = tiny("Qwen2"), sparse("all", n_match=2, targets=("token:100",))
    fidelity = ag.capture(lm, random_prompt(TOKENS, spans=SPANS), config, store=tmp_path, progress=False).fidelity
    assert fidelity.completion_agreement == 1
    assert fidelity.completion_kl == pytest.approx(0, abs=1e-6)
    assert fidelity.next_tokens_match
    fidelity = ag.capture(lm, random_prompt(TOKENS), config, store=tmp_path, progress=False).fidelity
    assert (fidelity.completion_tokens, fidelity.completion_agreement, fidelity.completion_kl) == (None, None, None)


def test_logits_are_made_a_few_at_a_time_by_the_models_own_head() -> None:
    # A soft-capped head: the logits are not linear in the hidden states.
    lm, prompt = tiny("Gemma3Text", final_logit_softcapping=1.5), random_prompt(TOKENS)
    states = States(lm.model, range(20, 160))
    with states.kept():
        whole = logits_of(lm, prompt)[20:160]
    assert whole.abs().max() < 1.5
    sizes = []
    hook = lm.model.lm_head.register_forward_hook(lambda _, __, output: sizes.append(output.shape[1]))
    found = agreement(states, states, 97, elements=97 * 9)
    hook.remove()
    assert max(sizes) == 9 and sum(sizes) == 2 * 140
    assert found == (140, 1.0, pytest.approx(0, abs=1e-7))
    torch.testing.assert_close(states.logits(slice(30, 40)).double(), whole[30:40], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(lm, prompt)[20:160], whole)  # the model's own decoder is back


def test_the_command_line_captures_completions_and_targets(command, tiny_folder, tmp_path) -> None:
    text, completion = "Q: what is two and two? " * 5, "It is four. " * 6
    spans = [{"name": "step", "start": len(text), "end": len(text) + 11}]
    (tmp_path / "p.json").write_text(json.dumps({"text": text, "completion": completion, "spans": spans}))
    flags = ("--prompt", tmp_path / "p.json", "--target", "span:step", "--target", "token:3", "--store", tmp_path / "s")
    result = command("capture", "--model", tiny_folder, *flags, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["prompt"]["targets"] == [3, *range(len(text), len(text) + 11), len(text + completion) - 1]
    assert document["fidelity"]["completion_tokens"] == len(completion)
    for target in ("token:3", "step", "output"):
        asked = command("influence", document["run"], "--target", target, "--json")
        assert asked.code == 0, asked.stderr
        assert sum(block["influence"] for block in json.loads(asked.stdout)["blocks"]) == pytest.approx(1)
    assert f"of {len(completion)} tokens same" in command("capture", "--model", tiny_folder, *flags).stdout
    refused = command("capture", "--model", "./gone", *flags, "--target", "step")
    assert refused.code == 2 and "targets: 'step' is not one of" in refused.stderr


def test_an_answer_follows_the_completion(tmp_path) -> None:
    lm, prompt = tiny(tokenizer=word_tokenizer()), random_prompt(100)
    whole = prompt.with_completion([5, 6, 7] * 10, answer=words([8, 9]))
    assert whole.completion == ag.Span("completion", 100, 130)
    fidelity = ag.capture(lm, whole, sparse("all", n_match=2), store=tmp_path, progress=False).fidelity
    assert (fidelity.completion_tokens, fidelity.answer_tokens) == (30, 2)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(not REASONING.is_dir(), reason="no reasoning traces here")
def test_a_reasoning_trace_with_every_token_of_a_sentence_as_a_target(tmp_path) -> None:
    trace = json.loads((REASONING / "llama-8b_problem_330_incorrect.json").read_text())
    lm = ag.load_model("smollm2-135m")
    text, spans, position = trace["prompt"] + trace["solution"], {}, 0
    for number, sentence in enumerate(trace["sentences"]):
        position = text.index(sentence["text"], position)
        spans[f"sentence:{number}"] = (position, position + len(sentence["text"]))
    prompt = ag.Prompt.from_text(lm.tokenizer, trace["prompt"], spans, completion=trace["solution"])
    config = ag.StreamConfig(targets=("span:sentence:20",))
    run = ag.capture(lm, prompt, config, store=tmp_path, progress=False)
    assert ag.verify_run(run.path).problems == ()
    (sentence,) = prompt.named("sentence:20")
    assert run.manifest.prompt.targets == (*range(sentence.start, sentence.end), len(prompt) - 1)
    assert run.fidelity.completion_tokens == len(prompt) - prompt.completion.start
    assert run.fidelity.completion_agreement > 0.9
    found = ag.influence(run.graph(), "sentence:20")
    assert found.influence.sum() == pytest.approx(1)
    assert not found.influence[-1]  # nothing after the sentence reaches it
