"""Anchors of captured traces: with all blocks kept the dense scores; with few, the interval holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import attngraph as ag


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ag.Run]:
    """One trace captured in three ways: dense, pruned with all blocks, and dense with few blocks observed."""
    lm = ag.load_model(str(tiny_folder))
    prompt = ag.tasks.reasoning.trace(lm.tokenizer, trace="coins", length=1_000)
    store = tmp_path_factory.mktemp("store")
    settings = {
        "dense": ag.StreamConfig(budget="all", forward="dense", n_match=0),
        "all": ag.StreamConfig(budget="all", n_match=0),
        "few": ag.StreamConfig(budget=5, forward="dense", n_match=0),
    }
    return {name: ag.capture(lm, prompt, config, store=store, progress=False) for name, config in settings.items()}


def test_all_blocks_give_the_dense_scores(runs: dict[str, ag.Run]):
    dense, kept = ag.anchors(runs["dense"], top=2), ag.anchors(runs["all"], top=2)
    np.testing.assert_allclose(kept.score, dense.score, rtol=1e-3)
    agreement = ag.compare_anchors(kept, dense)
    assert (agreement.overlap, agreement.kurtosis_spearman) == (1.0, None), "four heads are too few to correlate"
    assert (dense.dropped_source, dense.dropped.max()) == ("audited", pytest.approx(0, abs=1e-5))
    np.testing.assert_allclose(dense.upper, dense.score, rtol=1e-2)


def test_what_was_dropped_lies_in_the_interval(runs: dict[str, ag.Run]):
    dense, few = ag.anchors(runs["dense"], top=2), ag.anchors(runs["few"], top=2)
    assert few.dropped_source == "audited"
    assert few.dropped.mean() > 0.05
    truth = dense.score_of(few.receiver_heads)
    known = np.isfinite(truth)
    assert (few.lower[known] <= truth[known] * (1 + 1e-3)).all()
    assert (truth[known] <= few.upper[known] * (1 + 1e-3)).all()
    assert (few.lower[known] < truth[known]).any(), "something was dropped"


def test_labels_come_with_the_trace(runs: dict[str, ag.Run]):
    found = ag.anchors(runs["dense"], top=2)
    assert set(ag.category_profile(found, permutations=19)["category"]) <= set(found.sentences.categories)
    assert None not in found.sentences.categories
