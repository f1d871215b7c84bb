"""Needles among others like them: exact spans, ground truth, seeds, and what is refused."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from attngraph.errors import PromptError
from attngraph.tasks import TASKS, Prompt, make, multikey, multiquery, multivalue, needle, score
from tests.attngraph.byte_tokenizer import WORDS, span_text, span_texts, word_tokenizer

SENTENCE = "One of the special magic numbers for {key} is: {value}."
NEEDLES = re.compile(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: ([1-9]\d{6})\.")


def said_by(pair: dict[str, Any]) -> str:
    return SENTENCE.format(key=pair["key"], value=pair["value"])


def check_frame(prompt: Prompt, length: int) -> None:
    """Length, sink, and that the answer's first token follows the prompt."""
    assert length - 130 < len(prompt) <= length
    assert [(span.start, span.end) for span in prompt.named("sink")] == [(0, 1)]
    assert prompt.named("answer_prefix")[0].end == len(prompt)
    assert prompt.text is not None
    assert prompt.answer is not None
    whole = tuple(WORDS(prompt.text + prompt.answer).input_ids)
    assert whole == prompt.token_ids + prompt.answer_token_ids(WORDS)


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({"length": 700}, "baaf9b339ae6833a"),
        ({"length": 1024, "depth": 0.3, "seed": 7, "haystack": "varied"}, "2e6f54db29f2b7fe"),
        ({"length": 4096, "depth": 0.0, "seed": 3}, "ae0cc720ab6366fd"),
    ],
)
def test_needle_prompts_are_what_they_were_when_stores_were_written(settings: dict[str, Any], digest: str) -> None:
    prompt = needle(WORDS, **settings)
    parts = (prompt.text, prompt.spans, prompt.answer, dict(prompt.metadata))
    assert hashlib.sha256(repr(parts).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("haystack", ["noise", "varied", "needles"])
def test_multikey_has_one_needle_and_its_distractors(haystack: Any) -> None:
    prompt = multikey(WORDS, length=2500, depth=0.7, seed=2, haystack=haystack, distractors=5)
    check_frame(prompt, 2500)
    truth = prompt.metadata
    assert span_text(WORDS, prompt, "needle") == said_by(dict(truth))
    assert span_text(WORDS, prompt, "value") == truth["value"] == prompt.answer.strip()
    assert sorted(span_texts(WORDS, prompt, "distractor")) == sorted(map(said_by, truth["distractors"]))
    keys, values = zip(*NEEDLES.findall(prompt.text), strict=True)
    assert len(set(keys)) == len(keys)
    assert len(set(values)) == len(values)
    assert len(keys) == 6 if haystack != "needles" else len(keys) > 20
    place = prompt.named("needle")[0].start / len(prompt)
    assert place == pytest.approx(0.66, abs=0.12)


def test_multikey_without_distractors_asks_what_needle_asks() -> None:
    one = multikey(WORDS, length=900, seed=4, haystack="noise", distractors=0)
    assert one.token_ids == needle(WORDS, length=900, seed=4, haystack="noise").token_ids
    assert (one.task, one.metadata["distractors"]) == ("multikey", [])


def test_every_sentence_of_the_needle_haystack_is_a_needle() -> None:
    prompt = needle(WORDS, length=2000, seed=1, haystack="needles")
    assert prompt.text is not None
    context = prompt.text.split("\n")[1]
    assert NEEDLES.sub("", context).strip() == ""
    assert context.count(prompt.metadata["key"]) == context.count(prompt.metadata["value"]) == 1
    assert "distractor" not in {span.name for span in prompt.spans}


def test_multivalue_asks_for_all_values_of_one_key_in_their_order() -> None:
    prompt = multivalue(WORDS, length=2500, seed=3, values=3, distractors=2)
    check_frame(prompt, 2500)
    (key,) = prompt.metadata["keys"]
    values = prompt.metadata["values"]
    assert span_texts(WORDS, prompt, "needle") == [SENTENCE.format(key=key, value=value) for value in values]
    assert span_texts(WORDS, prompt, "value") == values
    assert prompt.answer.strip() == ", ".join(values)
    assert len(prompt.named("distractor")) == 2
    assert f"all the special magic numbers for {key} mentioned" in span_text(WORDS, prompt, "question")


def test_multiquery_asks_for_several_keys_and_answers_in_that_order() -> None:
    prompt = multiquery(WORDS, length=2500, seed=5, queries=3, haystack="noise")
    check_frame(prompt, 2500)
    keys, values = prompt.metadata["keys"], prompt.metadata["values"]
    expected = {SENTENCE.format(key=key, value=value) for key, value in zip(keys, values, strict=True)}
    assert set(span_texts(WORDS, prompt, "needle")) == expected
    assert f"{keys[0]}, {keys[1]}, and {keys[2]}" in span_text(WORDS, prompt, "question")
    assert prompt.answer.strip() == ", ".join(values)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "reasoning"])
def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(task: str) -> None:
    one = make(task, WORDS, length=3000, seed=3)
    assert one == make(task, WORDS, length=3000, seed=3)
    other = make(task, WORDS, length=3000, seed=4)
    assert other.answer != one.answer
    assert one.task == task
    assert len(one) <= 3000
    assert (one.metadata["seed"], one.metadata["length"]) == (3, 3000)
    assert score(task, one.answer, one.answer) == 1
    assert score(task, one.answer, "nothing") == 0


@pytest.mark.parametrize("task", [name for name in TASKS if name != "reasoning"])
def test_prompts_end_where_the_answer_begins_also_where_spaces_stick_to_digits(task: str) -> None:
    joined = word_tokenizer(space_sticks_to_digits=True)
    prompt = make(task, joined, length=3000)
    first = joined.decode(prompt.answer_token_ids(joined)[:1])
    assert first.strip()[:1] == prompt.answer.strip()[0]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("multikey", {"distractors": -1}, "distractors=-1 must be a whole number from 0 to 1000"),
        ("multikey", {"distractors": 2.5}, "distractors=2.5 must be a whole number"),
        ("multikey", {"distractors": "many"}, "distractors='many' must be a whole number"),
        ("multikey", {"haystack": "wikipedia"}, "haystack='wikipedia' is not one of noise, varied, needles"),
        ("multikey", {"depth": 1.5}, "depth=1.5 must be between 0"),
        ("multikey", {"depth": "deep"}, "depth='deep' must be between 0"),
        ("multikey", {"length": 900, "distractors": 40}, r"length=900 is too short: .* give at least \d{4}"),
        ("multivalue", {"values": 0}, "values=0 must be a whole number from 1 to 100"),
        ("multivalue", {"depth": 0.5}, "'multivalue' can't be made with .*depth"),
        ("multiquery", {"queries": 101}, "queries=101 must be a whole number from 1 to 100"),
        ("multiquery", {"haystack": "hay"}, "haystack='hay' is not one of"),
    ],
)
def test_unusable_options_are_refused(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make(task, WORDS, **options)


@pytest.mark.parametrize(
    ("expected", "said", "share"),
    [
        (" 1234567, 7654321", "7654321 and 1234567", 1.0),
        (" 1234567, 7654321", "1234567, 7654322", 0.5),
        ("12, 34, 56, 78", "123, 34", 0.25),
        ("abc, def, and ghi", "def, abc, and and", 2 / 3),
        ("1234567", "", 0.0),
    ],
)
def test_the_score_is_the_share_of_values_found(expected: str, said: str, share: float) -> None:
    assert score("multivalue", expected, said) == pytest.approx(share)
