"""Whether a run solved its task: what was expected, what was said, and by what margin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import attngraph as ag
from attngraph.capture.outcome import answer_margin
from attngraph.errors import PromptError
from tests.attngraph.tiny_models import dense, random_prompt, tiny, word_tokenizer, words


def test_the_margin_is_between_the_token_and_the_best_other_one() -> None:
    logits = torch.tensor([1.0, 4.0, 2.5])
    assert answer_margin(logits, 1) == pytest.approx(1.5)
    assert answer_margin(logits, 2) == pytest.approx(-1.5)
    assert logits[1] == 4.0  # the logits are left alone


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("forward", ["sparse", "dense"])
def test_outcome_of_a_right_and_of_a_wrong_answer(right: bool, forward: str, tmp_path) -> None:
    tokenizer = word_tokenizer()
    lm = replace(tiny("Llama"), tokenizer=tokenizer)
    prompt = random_prompt(100)
    logits = dense(lm, prompt).logits[-1]
    order = logits.argsort(descending=True).tolist()
    answer = words([order[0] if right else order[1]])
    prompt = replace(prompt, answer=answer)
    config = ag.StreamConfig(block_size=8, budget="all", forward=forward)
    outcome = ag.capture(lm, prompt, config, store=tmp_path, progress=False).manifest.outcome
    assert outcome.expected == answer
    assert outcome.dense_answer == outcome.sparse_answer == words([order[0]])
    assert (outcome.dense_score, outcome.sparse_score, outcome.success) == (right, right, right)
    gap = float(logits[order[0]] - logits[order[1]])
    assert outcome.margin == pytest.approx(gap if right else -gap, abs=1e-4)


def test_without_an_answer_or_a_comparison_there_is_no_outcome(tmp_path) -> None:
    lm = replace(tiny("Llama"), tokenizer=word_tokenizer())
    prompt = random_prompt(100)
    for asked, n_match in [(prompt, 2), (replace(prompt, answer=words([3])), 0)]:
        config = ag.StreamConfig(block_size=8, n_match=n_match)
        assert ag.capture(lm, asked, config, store=tmp_path, progress=False).manifest.outcome is None


def test_tasks_are_made_and_scored_by_name() -> None:
    tokenizer = word_tokenizer()
    assert ag.tasks.score("needle", " 1234567", "1234567 ") == 1.0
    assert ag.tasks.score(None, "12", "13") == 0.0
    with pytest.raises(PromptError, match="task='haystack' is not one of needle, multikey"):
        ag.tasks.make("haystack", tokenizer)
    with pytest.raises(PromptError, match=r"'needle' can't be made with .*'depths': 1"):
        ag.tasks.make("needle", tokenizer, depths=1)
