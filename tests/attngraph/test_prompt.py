"""Prompts: validation, character ranges to tokens, files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attngraph.errors import PromptError
from attngraph.tasks import Prompt, Span


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """One token per byte, plus the given merges ("Ġ" is a space)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = byte_tokenizer()


def test_a_prompt_is_frozen_and_holds_plain_ints() -> None:
    prompt = Prompt(np.array([3, 1, 2]), [Span("all", 0, 3)], metadata={"a": 1})  # type: ignore[arg-type]
    assert prompt.token_ids == (3, 1, 2)
    assert type(prompt.token_ids[0]) is int
    assert len(prompt) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.token_ids = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        prompt.metadata["a"] = 2  # type: ignore[index]


def test_the_hash_depends_on_the_token_ids_alone() -> None:
    assert Prompt((1, 2)).sha256 == Prompt((1, 2), (Span("x", 0, 1),), answer="y").sha256
    assert Prompt((1, 2)).sha256 != Prompt((2, 1)).sha256
    # sha256 of bytes 01 00 00 00 00 00 00 00
    assert Prompt((1,)).sha256 == "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8"


@pytest.mark.parametrize(
    ("token_ids", "spans", "message"),
    [
        ((), (), "no tokens"),
        ((1, -5), (), "Token id -5 at position 1 is negative"),
        ((1, 2), (Span("needle", 1, 1),), "Span 'needle' is empty: tokens 1 to 1 .* prompt of 2 tokens"),
        ((1, 2), (Span("needle", 2, 1),), "Span 'needle' is empty"),
        ((1, 2), (Span("needle", 1, 3),), "Span 'needle' covers tokens 1 to 3 .* outside the prompt of 2 tokens"),
        ((1, 2), (Span("needle", -1, 1),), "Span 'needle' covers tokens -1 to 1"),
    ],
)
def test_unusable_prompts_are_refused(token_ids: tuple[int, ...], spans: tuple[Span, ...], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt(token_ids, spans)


def test_named_spans_come_in_order_and_unknown_names_list_the_others() -> None:
    prompt = Prompt((0,) * 9, (Span("fact", 5, 7), Span("fact", 1, 2), Span("question", 8, 9)))
    assert prompt.named("fact") == (Span("fact", 1, 2), Span("fact", 5, 7))
    with pytest.raises(PromptError, match="no span 'needle'; its spans are: fact, question"):
        prompt.named("needle")


def test_ids_outside_the_vocabulary_are_refused() -> None:
    Prompt((0, 9)).check_vocabulary(10)
    with pytest.raises(PromptError, match=r"Token id 10 at position 1 .* vocabulary of 10 \(0 to 9\)"):
        Prompt((0, 10)).check_vocabulary(10)


def test_tokens_that_reach_over_the_edge_of_a_range_belong_to_it() -> None:
    tokenizer = byte_tokenizer((("c", "d"), ("e", "f")))
    # Tokens of "abcdefg": a, b, cd, ef, g.
    prompt = Prompt.from_text(tokenizer, "abcdefg", {"across": (3, 5), "exact": (2, 4)})
    assert prompt.spans == (Span("across", 2, 4), Span("exact", 2, 3))


def test_several_tokens_of_one_character_all_belong_to_its_range() -> None:
    prompt = Prompt.from_text(BYTES, "aéb", {"accent": (1, 2)})  # é is two bytes
    assert prompt.spans == (Span("accent", 1, 3),)


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1), st.data())
def test_one_byte_per_token_makes_token_ranges_equal_character_ranges(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    prompt = Prompt.from_text(BYTES, text, [{"name": "range", "start": start, "end": end}])
    assert prompt.spans == (Span("range", start, end),)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"x": (2, 2)}, r"Span 'x' covers characters 2 to 2 .* the text has 3"),
        ({"x": (1, 4)}, r"Span 'x' covers characters 1 to 4 .* give 0 <= start < end <= 3"),
        ({"x": (-1, 2)}, "Span 'x' covers characters -1 to 2"),
        ({"x": 3}, "pair"),
        ([{"name": "x", "start": 0}], 'A span needs "name", "start" and "end"'),
        ([{"name": "x", "start": 0.5, "end": 2}], "whole numbers"),
        (["x"], 'A span needs "name"'),
    ],
)
def test_unusable_character_ranges_are_refused(spans: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt.from_text(BYTES, "abc", spans)  # type: ignore[arg-type]


def test_an_empty_text_and_a_tokenizer_without_offsets_are_refused() -> None:
    with pytest.raises(PromptError, match="no tokens"):
        Prompt.from_text(BYTES, "")
    with pytest.raises(PromptError, match="need a fast tokenizer"):
        Prompt.from_text(None, "abc")  # type: ignore[arg-type]


def test_answer_tokens_are_those_that_follow_the_prompt() -> None:
    tokenizer = byte_tokenizer((("a", "b"),))
    assert Prompt.from_text(tokenizer, "x", answer="ab").answer_token_ids(tokenizer) == tuple(tokenizer("ab").input_ids)
    assert Prompt.from_text(tokenizer, "x").answer_token_ids(tokenizer) == ()
    # "a" + "b" would merge into one token across the edge.
    assert Prompt.from_text(tokenizer, "a", answer="b").answer_token_ids(tokenizer) == tuple(tokenizer("b").input_ids)


def test_a_prompt_file_holds_text_spans_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    spans = [{"name": "fact", "start": 0, "end": 2}, {"name": "fact", "start": 3, "end": 5}]
    path.write_text(json.dumps({"text": "ab cd?", "spans": spans, "answer": "e"}), encoding="utf-8")
    prompt = Prompt.from_file(BYTES, path)
    assert (prompt.text, prompt.answer) == ("ab cd?", "e")
    assert prompt.spans == (Span("fact", 0, 2), Span("fact", 3, 5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "isn't valid JSON"),
        ("[]", 'needs an object with a string "text"'),
        ('{"text": 3}', 'needs an object with a string "text"'),
        ('{"text": "abc", "spans": {"x": [0, 1]}}', '"spans" .* must be a list'),
        ('{"text": "abc", "answer": 3}', '"answer" .* must be a str'),
        ('{"text": "abc", "spans": [{"name": "x", "start": 1, "end": 9}]}', "Span 'x' covers characters 1 to 9"),
    ],
)
def test_malformed_prompt_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        Prompt.from_file(BYTES, path)


def test_a_missing_prompt_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"Can't read the prompt file .*none\.json"):
        Prompt.from_file(BYTES, tmp_path / "none.json")
