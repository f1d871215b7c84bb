"""Knockout as a study asks it, on a tiny model."""

from __future__ import annotations

from typing import Any

import pytest

import attngraph as ag
from attngraph_analyses.registry import ANALYSES
from tests.attngraph.tiny_models import random_prompt, tiny, word_tokenizer


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ag.LanguageModel, ag.Run]:
    lm = tiny("Qwen3", tokenizer=word_tokenizer())
    prompt = random_prompt(203, spans=[("needle", 64, 72), ("question", 190, 203)], answer="w5")
    config = ag.StreamConfig(block_size=8, budget=6, first_layers=0)
    return lm, ag.capture(lm, prompt, config, store=tmp_path_factory.mktemp("store"), progress=False)


def ask(name: str, *given: Any, **options: Any) -> Any:
    return ANALYSES[name].function(*given, **options)


def test_tables_are_those_of_the_functions(captured: Any) -> None:
    lm, run = captured
    table = ask("knockout", lm, run, edges=8, controls=("random",), draws=2)
    assert table.equals(ag.knockout(lm, run, 8, controls=("random",), draws=2, progress=False).to_polars())
    assert table["removed"].to_list() == ["base", "edges", "random", "random"]
    dense = ask("knockout", lm, run, edges=8, controls=(), forward="dense")
    assert dense["log_probability"][0] != table["log_probability"][0]

    found = ag.necessity(lm, run, (1, 4), draws=2, progress=False)
    curve = ask("necessity", lm, run, counts=(1, 4), draws=2)
    assert curve.drop("control_effect").equals(found.to_polars())
    assert curve["control_effect"].to_list() == pytest.approx([found.base - x for x in curve["control"]])

    kept = ask("sufficiency", lm, run, shares=(0.9, 0.5))
    assert kept["share"].to_list() == [0.0, 0.5, 0.9]
    assert kept.select("edges").equals(ag.sufficiency(lm, run, (0.9, 0.5), progress=False).to_polars().select("edges"))
    assert (kept["carried"] >= kept["share"]).all()


def test_no_route_is_no_rows(captured: Any) -> None:
    ends = {"source": "block:5", "target": "block:2"}
    for name in ("knockout", "necessity", "sufficiency"):
        assert len(ask(name, *captured, **ends)) == 0
