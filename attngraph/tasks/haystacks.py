"""The words that prompts are made of: haystacks, and the keys of needles."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Literal

Prose = Literal["noise", "varied"]
"""Haystacks that say nothing of what is hidden in them."""

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
"""RULER's noise (Mohtashami and Jaggi 2023, arXiv 2305.16300), repeated line by line."""


@cache
def varied_sentences() -> tuple[str, ...]:
    """Sentences of plain expository prose, written for attngraph: each stands on its own, without digits."""
    return _lines("varied.txt")


@cache
def key_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Adjectives and nouns; a needle's key is one of each, as RULER's keys are."""
    return _lines("adjectives.txt"), _lines("nouns.txt")


def endless(haystack: Prose, draw: random.Random) -> Iterator[str]:
    """The sentences of a haystack without end; varied ones in an order of their own each time round."""
    while True:
        sentences = list(NOISE if haystack == "noise" else varied_sentences())
        if haystack == "varied":
            draw.shuffle(sentences)
        yield from sentences


def _lines(name: str) -> tuple[str, ...]:
    return tuple((files("attngraph.tasks") / "data" / name).read_text(encoding="utf-8").split("\n")[:-1])
