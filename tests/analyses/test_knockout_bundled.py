"""On a real model: the edges that the graph points at carry the answer, edges of the same mass don't."""

from __future__ import annotations

from typing import Any

import pytest

import attngraph as ag


@pytest.mark.model
def test_the_best_edges_matter_more_than_edges_of_their_mass(tmp_path: Any) -> None:
    lm = ag.load_model("smollm2-135m", device="cpu")
    prompt = ag.tasks.needle(lm.tokenizer, length=1024, seed=0, haystack="varied")
    run = ag.capture(lm, prompt, store=tmp_path, progress=False)
    found = ag.knockout(lm, run, 30, controls=("mass_matched",), draws=3, progress=False)
    control = found.controls["mass_matched"]
    assert run.manifest.outcome.success
    assert found.drift == pytest.approx(0, abs=1e-3)
    assert control.mass == pytest.approx(found.edges["mass"].sum(), rel=0.1)
    assert found.effect > 1
    assert abs(found.base - control.log_probability).max() < 0.2
