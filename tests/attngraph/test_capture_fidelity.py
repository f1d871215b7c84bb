"""Dense against sparse: greedy tokens, divergence, margins, and the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import attngraph as ag
from attngraph.capture.attention import _active, streamed_attention
from attngraph.capture.fidelity import agreeing, compare, dense_reference
from tests.attngraph.tiny_models import dense, random_prompt, tiny, word_tokenizer, words

TOKENS = 150


def settings(**changes) -> ag.StreamConfig:
    return ag.StreamConfig(**({"block_size": 8, "budget": "all"} | changes))


def greedy(lm: ag.LanguageModel, prompt: ag.Prompt, count: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt.token_ids])
    found = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tuple(found[0, len(prompt) :].tolist())


def passes(lm: ag.LanguageModel, prompt: ag.Prompt, config: ag.StreamConfig, store) -> tuple[ag.Run, list[str]]:
    """A run, and the attention that each forward pass of its capture used."""
    seen: list[object] = []
    hook = lm.model.register_forward_pre_hook(lambda *_: seen.append(_active.get()))
    run = ag.capture(lm, prompt, config, store=store, progress=False)
    hook.remove()
    return run, ["dense" if attention is streamed_attention else "sparse" for attention in seen]


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
@pytest.mark.parametrize("n_match", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_dense_tokens_are_those_that_generate_gives(kind: str, n_match: int, seed: int, tmp_path) -> None:
    lm, prompt = tiny(kind, seed=seed), random_prompt(TOKENS, seed=seed)
    fidelity = ag.capture(lm, prompt, settings(n_match=n_match), store=tmp_path, progress=False).fidelity
    assert fidelity.n_match == n_match
    assert fidelity.dense_tokens == greedy(lm, prompt, n_match)
    # All blocks are kept, so the sparse model is the dense one.
    assert fidelity.sparse_tokens == fidelity.dense_tokens
    assert fidelity.next_tokens_match
    assert fidelity.kl == pytest.approx(0, abs=1e-6)
    assert fidelity.sparse_margin == pytest.approx(fidelity.dense_margin, abs=1e-4)
    assert (fidelity.answer_tokens, fidelity.answer_tokens_kept, fidelity.dense_answer_tokens_kept) == (None,) * 3


def test_the_margin_is_in_nats(tmp_path) -> None:
    lm, prompt = tiny("Qwen2"), random_prompt(TOKENS)
    fidelity = ag.capture(lm, prompt, settings(), store=tmp_path, progress=False).fidelity
    first, second = dense(lm, prompt).logits[-1].sort(descending=True).values[:2].tolist()
    assert fidelity.dense_margin == pytest.approx(first - second, abs=1e-4)


def test_sparse_tokens_end_at_the_first_that_differs(tmp_path) -> None:
    found = set()
    for seed in range(12):
        lm, prompt = tiny("Llama", seed=seed, peak=2.5), random_prompt(TOKENS, seed=seed)
        tight = settings(budget=3, n_match=4)
        fidelity = ag.capture(lm, prompt, tight, store=tmp_path, progress=False).fidelity
        said, meant = fidelity.sparse_tokens, fidelity.dense_tokens
        assert said[:-1] == meant[: len(said) - 1]
        assert fidelity.next_tokens_match == (said == meant)
        if not fidelity.next_tokens_match:
            assert said[-1] != meant[len(said) - 1]
        assert fidelity.kl > 0
        found.add(len(said) if said != meant else "all")
    assert {1, 2} <= found  # a mismatch at once, and one after agreement, both came up


def test_kl_is_the_divergence_of_the_sparse_from_the_dense_model(tmp_path) -> None:
    lm, prompt = tiny("Llama", peak=2.5), random_prompt(TOKENS)
    logits = []
    hook = lm.model.register_forward_hook(
        lambda _, __, output: logits.append((_active.get(), output.logits[0, 0].double()))
    )
    fidelity = ag.capture(lm, prompt, settings(budget=3, n_match=1), store=tmp_path, progress=False).fidelity
    hook.remove()
    (first, dense_logits), (second, sparse_logits) = logits
    assert first is streamed_attention and second is not first
    p, q = dense_logits.softmax(-1), sparse_logits.softmax(-1)
    expected = float((p * (p / q).log()).sum())
    assert expected > 0.01
    assert fidelity.kl == pytest.approx(expected, rel=1e-4)
    best = sparse_logits.sort(descending=True).values
    assert fidelity.sparse_margin == pytest.approx(float(best[0] - best[1]), abs=1e-4)


def test_without_matching_there_is_no_fidelity_and_no_dense_pass(tmp_path) -> None:
    prompt = random_prompt(TOKENS, answer="w1 w2")
    run, seen = passes(tiny(tokenizer=word_tokenizer()), prompt, settings(n_match=0), tmp_path)
    assert run.fidelity is None
    assert (run.cost.dense_forward_seconds, run.cost.fidelity_seconds) == (None, None)
    assert seen == ["sparse"]


def test_one_matched_token_needs_one_dense_pass(tmp_path) -> None:
    run, seen = passes(tiny(), random_prompt(TOKENS), settings(n_match=1), tmp_path)
    assert run.fidelity.n_match == 1
    assert seen == ["dense", "sparse"]


def test_an_answer_that_the_dense_model_gives_costs_one_dense_and_one_sparse_pass(tmp_path) -> None:
    lm, prompt = tiny(tokenizer=word_tokenizer()), random_prompt(TOKENS)
    answer = greedy(lm, prompt, 3)
    run, seen = passes(lm, ag.Prompt(prompt.token_ids, answer=words(answer)), settings(), tmp_path)
    assert seen == ["dense", "sparse", "sparse"]
    assert run.fidelity.dense_tokens == answer[:2]
    assert (run.fidelity.answer_tokens, run.fidelity.answer_tokens_kept, run.fidelity.dense_answer_tokens_kept) == (
        3,
        3,
        3,
    )
    assert run.fidelity.dense_answer == run.fidelity.sparse_answer == answer


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_answer_tokens_are_counted_teacher_forced(wrong: int, tmp_path) -> None:
    lm, prompt = tiny(tokenizer=word_tokenizer()), random_prompt(TOKENS)
    answer = list(greedy(lm, prompt, 4))
    answer[wrong] = (answer[wrong] + 1) % 97
    run, _ = passes(lm, ag.Prompt(prompt.token_ids, answer=words(answer)), settings(n_match=3), tmp_path)
    # The truth by another way: eager logits of prompt and answer together.
    forced = ag.Prompt((*prompt.token_ids, *answer))
    choices = dense(lm, forced).logits.argmax(-1)[TOKENS - 1 : -1].tolist()
    kept = sum(a == b for a, b in zip(choices, answer, strict=True))
    assert kept < 4
    assert run.fidelity.dense_answer == tuple(choices)
    assert run.fidelity.dense_answer_tokens_kept == kept
    assert run.fidelity.answer_tokens_kept == kept
    assert run.fidelity.answer_tokens == 4
    assert run.fidelity.dense_tokens == greedy(lm, prompt, 3)
    assert run.fidelity.next_tokens_match


def test_an_answer_of_one_token(tmp_path) -> None:
    lm, prompt = tiny(tokenizer=word_tokenizer()), random_prompt(TOKENS)
    (answer,) = greedy(lm, prompt, 1)
    run, _ = passes(lm, ag.Prompt(prompt.token_ids, answer=words([answer])), settings(), tmp_path)
    assert (run.fidelity.answer_tokens, run.fidelity.answer_tokens_kept) == (1, 1)
    assert run.fidelity.dense_tokens == greedy(lm, prompt, 2)


def test_an_answer_without_a_tokenizer_is_not_checked(tmp_path) -> None:
    prompt = random_prompt(TOKENS, answer="w1 w2")
    assert ag.capture(tiny(), prompt, settings(), store=tmp_path, progress=False).fidelity.answer_tokens is None


class Chain:
    """A language model in which the next token depends on the last one alone: what follows `0` is known by hand."""

    def __init__(self, **following: int) -> None:
        self.following = {int(token[1:]): after for token, after in following.items()}
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        self.calls.append(tuple(tokens))
        return torch.eye(6)[[self.following[token] for token in (0, *tokens)]] * 3


DENSE = {"_0": 1, "_1": 2, "_2": 3, "_3": 4, "_4": 0, "_5": 5}


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ((1, 2, 3, 4), [(1, 2, 3)]),  # the answer is what the model says: one pass tells all
        ((1, 5, 3, 4), [(1, 5, 3), (1, 2), (1, 2, 3)]),  # it leaves the answer after one token
        ((), [(), (1,), (1, 2), (1, 2, 3)]),  # nothing to force: token by token
    ],
)
def test_dense_passes_are_repeated_only_where_the_answer_is_left(answer: tuple, calls: list) -> None:
    model = Chain(**DENSE)
    reference = dense_reference(model, 4, answer)
    assert reference.greedy == (1, 2, 3, 4)
    assert model.calls == calls
    assert len(reference.answer) == len(answer)


@pytest.mark.parametrize(
    ("change", "answer", "sparse", "kept"),
    [
        ({}, (1, 2, 3, 4), (1, 2, 3), 4),
        ({"_0": 4}, (1, 2, 3, 4), (4,), 3),
        ({"_1": 0}, (1, 2, 3, 4), (1, 0), 3),
        ({"_2": 5}, (1, 2, 3, 4), (1, 2, 5), 3),
        ({"_3": 5}, (1, 2, 3, 4), (1, 2, 3), 3),
        ({"_2": 5}, (), (1, 2, 5), None),
        ({"_2": 5}, (5, 5), (1, 2, 5), 1),
        ({"_0": 4}, (4,), (4,), 1),
    ],
)
def test_compare_by_hand(change: dict, answer: tuple, sparse: tuple, kept: int | None) -> None:
    reference = dense_reference(Chain(**DENSE), 3, answer)
    pruned = Chain(**(DENSE | change))
    fidelity = compare(reference, pruned(())[0], pruned, answer)
    assert fidelity.dense_tokens == (1, 2, 3)
    assert fidelity.sparse_tokens == sparse
    assert fidelity.next_tokens_match == (sparse == (1, 2, 3))
    assert fidelity.answer_tokens_kept == kept
    assert (fidelity.kl > 0.1) == ("_0" in change)


@pytest.mark.parametrize(
    ("choices", "tokens", "count"), [((), (), 0), ((1, 2), (1, 3), 1), ((1, 2), (1, 2, 3), 2), ((2,), (1,), 0)]
)
def test_agreeing(choices: tuple, tokens: tuple, count: int) -> None:
    assert agreeing(choices, tokens) == count
