"""Which words come most often: what is asked for is what a count of the prompt itself finds."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from attngraph.errors import PromptError
from attngraph.tasks import common_words, frequent_words, make
from attngraph.tasks.words import FREQUENT_INSTRUCTION, _clear
from tests.attngraph.byte_tokenizer import WORDS


@pytest.mark.parametrize(("length", "common"), [(1200, 3), (3000, 10), (8000, 20)])
def test_common_words_stand_out(length: int, common: int) -> None:
    prompt = common_words(WORDS, length=length, seed=common, common=common)
    assert prompt.text is not None
    counts = Counter(re.findall(r"\d+\. ([a-z]+)", prompt.text.split("\n")[1]))
    assert dict(counts) == prompt.metadata["counts"]
    best = {word for word, _ in counts.most_common(common)}
    assert prompt.answer.strip().split(", ") == prompt.metadata["words"]
    assert set(prompt.metadata["words"]) == best
    assert min(counts[word] for word in best) > max(count for word, count in counts.items() if word not in best)
    assert length - 15 < len(prompt) <= length


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5])
@pytest.mark.parametrize("seed", range(4))
def test_frequent_words_are_the_most_frequent_ones(seed: int, alpha: float) -> None:
    prompt = frequent_words(WORDS, length=2500, seed=seed, alpha=alpha)
    assert prompt.text is not None
    coded = prompt.text.split("\n")[0].removeprefix(FREQUENT_INSTRUCTION.rstrip("\n")).split()
    counts = Counter(word for word in coded if word != "....")
    assert all(re.fullmatch("[a-z]{6}", word) for word in counts)
    assert dict(counts) == prompt.metadata["counts"]
    first, second, third, *rest = counts.most_common()
    assert prompt.answer.strip() == f"{first[0]}, {second[0]}, and {third[0]}"
    assert first[1] > second[1] > third[1] > max((count for _, count in rest), default=0)
    assert coded.count("....") > len(coded) / 5
    assert len(prompt) <= 2500


def test_a_tie_among_the_first_four_is_no_clear_answer() -> None:
    assert _clear(["a"] * 3 + ["b"] * 2 + ["c"])
    assert not _clear(["a"] * 3 + ["b"] * 2 + ["c"] + ["d"])
    assert not _clear(["a"] * 2 + ["b"] * 2 + ["c"])
    assert _clear(["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d", "e", "...."])
    assert not _clear(["a"] * 2 + ["b"] + ["...."] * 9)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("common_words", {"common": 0}, "common=0 must be a whole number from 1 to 50"),
        ("common_words", {"length": 400}, "length=400 is too short: in the .* words that it holds"),
        ("common_words", {"length": 20}, "length=20 is too short"),
        ("frequent_words", {"alpha": 1.0}, "alpha=1.0 must be above 1"),
        ("frequent_words", {"alpha": "steep"}, "alpha='steep' must be above 1"),
        ("frequent_words", {"length": 360}, "length=360 is too short: no three words"),
    ],
)
def test_unusable_options_are_refused(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make(task, WORDS, **options)
