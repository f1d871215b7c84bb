"""The needle task: exact spans, length, determinism, and that the next token is the answer's first digit."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from attngraph.errors import PromptError
from attngraph.models import BUNDLED, load_model
from attngraph.tasks import Prompt, needle
from attngraph.tasks.haystacks import NOISE, key_words, varied_sentences
from attngraph.tasks.needles import INSTRUCTION
from tests.attngraph.byte_tokenizer import WORDS, span_text, word_tokenizer

HAYSTACKS = ("noise", "varied")


def check_needle(tokenizer: Any, prompt: Prompt, *, length: int, longest_sentence: int) -> None:
    key, value = prompt.metadata["key"], prompt.metadata["value"]
    assert length - longest_sentence < len(prompt) <= length
    assert re.fullmatch(r"[1-9]\d{6}", value)
    assert prompt.text is not None
    assert prompt.text.startswith(INSTRUCTION)
    assert prompt.text.count(value) == 1
    (sink,) = prompt.named("sink")
    assert (sink.start, sink.end) == (0, 1)
    assert span_text(tokenizer, prompt, "needle").strip() == f"One of the special magic numbers for {key} is: {value}."
    assert span_text(tokenizer, prompt, "value").strip() == value
    question = f"What is the special magic number for {key} mentioned in the provided text?"
    assert span_text(tokenizer, prompt, "question").strip() == question
    prefix = f"The special magic number for {key} mentioned in the provided text is"
    assert span_text(tokenizer, prompt, "answer_prefix").strip() == f"{prefix}:"
    assert prompt.named("answer_prefix")[0].end == len(prompt)
    assert prompt.answer is not None
    assert prompt.answer.strip() == value
    # The token after the prompt holds the value's first digit.
    assert tokenizer.decode(prompt.answer_token_ids(tokenizer)[:1]).strip()[:1] == value[0]
    assert tuple(tokenizer(prompt.text + prompt.answer).input_ids) == prompt.token_ids + prompt.answer_token_ids(
        tokenizer
    )


@pytest.mark.parametrize("haystack", HAYSTACKS)
@pytest.mark.parametrize("length", [600, 1024, 4096])
def test_length_spans_and_answer(haystack: Any, length: int) -> None:
    prompt = needle(WORDS, length=length, haystack=haystack, seed=length)
    check_needle(WORDS, prompt, length=length, longest_sentence=130)


def test_one_more_sentence_would_be_too_long() -> None:
    shortest = needle(WORDS, length=2000)
    assert len(shortest) > 2000 - max(len(WORDS(sentence).input_ids) for sentence in NOISE) - 1


def test_where_space_and_digit_are_one_token_the_prompt_ends_before_the_space() -> None:
    joined = word_tokenizer(space_sticks_to_digits=True)
    prompt = needle(joined, length=800)
    assert prompt.text is not None
    assert prompt.text.endswith("is:")
    assert prompt.answer == " " + prompt.metadata["value"]
    check_needle(joined, prompt, length=800, longest_sentence=130)


@pytest.mark.parametrize("haystack", HAYSTACKS)
def test_depth_places_the_needle_between_sentences(haystack: Any) -> None:
    places = []
    for depth in (0.0, 0.25, 0.5, 1.0):
        prompt = needle(WORDS, length=3000, depth=depth, haystack=haystack)
        places.append(prompt.named("needle")[0].start / len(prompt))
        assert prompt.text is not None
        before, _, after = prompt.text.partition("One of the special magic numbers")
        assert before.endswith((". ", "afterwards.\n"))
        assert after[after.index(".") + 1] in " \n"
    assert places == sorted(places)
    assert places[0] < 0.06
    assert places[2] == pytest.approx(0.47, abs=0.05)
    assert places[3] > 0.85


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another() -> None:
    one = needle(WORDS, length=900, seed=3, haystack="varied")
    assert one == needle(WORDS, length=900, seed=3, haystack="varied")
    assert one.answer != needle(WORDS, length=900, seed=4, haystack="varied").answer


def test_a_seed_means_the_same_in_another_process() -> None:
    code = (
        "import random; from attngraph.tasks.haystacks import endless, key_words;"
        "draw = random.Random(5); print(*(draw.choice(words) for words in key_words()));"
        "print(next(endless('varied', draw)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 100}, r"length=100 is too short: .* has \d+ tokens; give at least \d+"),
        ({"depth": 1.5}, "depth=1.5 must be between 0"),
        ({"depth": float("nan")}, "depth=nan"),
        ({"haystack": "wikipedia"}, "haystack='wikipedia' is not one of noise, varied"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        needle(WORDS, **settings)


def test_the_shortest_length_named_by_the_error_works() -> None:
    with pytest.raises(PromptError) as refused:
        needle(WORDS, length=1)
    shortest = int(str(refused.value).rstrip(".").split()[-1])
    assert len(needle(WORDS, length=shortest)) == shortest


def test_the_varied_haystack_is_varied_and_gives_nothing_away() -> None:
    sentences = varied_sentences()
    assert len(sentences) == len(set(sentences)) >= 500
    assert not [text for text in sentences if re.search(r"\d|magic|special|number", text, re.IGNORECASE)]
    assert all(text.endswith(".") and text == text.strip() for text in sentences)


def test_keys_are_words() -> None:
    for words in key_words():
        assert len(words) == len(set(words)) > 100
        assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_varied_sentences_repeat_only_when_all_have_been_used() -> None:
    prompt = needle(WORDS, length=30_000, haystack="varied")
    assert prompt.text is not None
    used = [sentence for sentence in varied_sentences() if sentence in prompt.text]
    assert all(prompt.text.count(sentence) == 1 for sentence in used)
    assert len(used) > 300


@pytest.mark.model
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_answer_and_their_tokenizers_split_before_the_first_digit(name: str) -> None:
    torch = pytest.importorskip("torch")
    lm = load_model(name)
    for haystack in HAYSTACKS:
        prompt = needle(lm.tokenizer, length=1024, haystack=haystack, seed=1)  # type: ignore[arg-type]
        check_needle(lm.tokenizer, prompt, length=1024, longest_sentence=30)
        assert prompt.text is not None
        assert prompt.text.endswith("is: ")
        answer = prompt.answer_token_ids(lm.tokenizer)  # type: ignore[arg-type]
        assert len(answer) == 7
        with torch.inference_mode():
            logits = lm.model(torch.tensor([prompt.token_ids + answer]), logits_to_keep=8, use_cache=False).logits[0]
        assert tuple(logits[:-1].argmax(-1).tolist()) == answer
