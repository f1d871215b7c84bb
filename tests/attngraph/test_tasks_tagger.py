"""The tagger: sentences whose part is plain, and its agreement with labels that a person gave."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngraph.tasks.reasoning import TRACES
from attngraph.tasks.tagger import CATEGORIES, tag
from tests.benchmarks.tagger import Agreement, agreement, traces

SHARED = Path(os.environ.get("ATTNGRAPH_TRACES", Path(__file__).parents[3] / "shared/data/reasoning"))


def own_traces() -> list[dict[str, Any]]:
    folder = Path(__file__).parents[2] / "attngraph/tasks/data"
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TRACES]


@pytest.mark.parametrize(
    ("sentence", "category"),
    [
        ("Okay, so I have this problem about a train.", "problem_setup"),
        ("Let me try to solve this step by step.", "plan_generation"),
        ("Alternatively, I could draw a picture.", "plan_generation"),
        ("I remember that the area of a circle is known by a formula.", "fact_retrieval"),
        ("12 * 3 = 36, and 36 + 4 = 40.", "active_computation"),
        ("So the number of apples is 40.", "result_consolidation"),
        ("Wait, that doesn't make sense.", "uncertainty_management"),
        ("Let me double-check the sum.", "self_checking"),
        ("**Final Answer**\nIt is \\boxed{40}.", "final_answer_emission"),
    ],
)
def test_plain_cases(sentence: str, category: str) -> None:
    around = ["The sea is wide and calm here."] * 4
    assert tag([*around, sentence, *around])[4] == category


def test_a_check_goes_on_until_something_else_is_announced() -> None:
    found = tag(["12 * 3 = 36.", "Let me verify that.", "36 / 3 = 12.", "Wait, what about zero?", "0 * 3 = 0."])
    assert found == [
        "active_computation",
        "self_checking",
        "self_checking",
        "uncertainty_management",
        "active_computation",
    ]


@given(st.lists(st.text(max_size=40), max_size=12))
def test_every_sentence_of_any_text_has_a_category(sentences: list[str]) -> None:
    found = tag(sentences)
    assert len(found) == len(sentences)
    assert set(found) <= set(CATEGORIES)


def test_agreement_by_hand() -> None:
    """Five of eight agree; by chance (4·5 + 3·2 + 1·1)/64 would, so kappa is (5·8 − 27)/(64 − 27)."""
    labels = ["a"] * 4 + ["b"] * 3 + ["c"]
    found = ["a"] * 4 + ["a"] + ["b"] + ["c"] + ["b"]
    known = agreement(list(zip(labels, found, strict=True)))
    assert known.accuracy == pytest.approx(5 / 8)
    assert known.majority == pytest.approx(4 / 8)
    assert known.kappa == pytest.approx((5 * 8 - 27) / (64 - 27))
    assert known.recall == pytest.approx({"a": 1.0, "b": 1 / 3, "c": 0.0})
    assert known.precision == pytest.approx({"a": 0.8, "b": 0.5, "c": 0.0})


def check_better_than_chance(known: Agreement) -> None:
    assert known.accuracy > known.majority + 0.1
    assert known.kappa > 0.4


def test_agreement_with_the_projects_own_traces() -> None:
    pairs = []
    for content in own_traces():
        labels = [sentence["tags"][0] for sentence in content["sentences"]]
        pairs += zip(labels, tag([sentence["text"] for sentence in content["sentences"]]), strict=True)
    assert len(Counter(label for label, _ in pairs)) == len(CATEGORIES)
    check_better_than_chance(agreement(pairs))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of labelled traces isn't there (ATTNGRAPH_TRACES)")
def test_agreement_with_labelled_traces() -> None:
    check_better_than_chance(agreement([pair for pairs in traces(SHARED).values() for pair in pairs]))
