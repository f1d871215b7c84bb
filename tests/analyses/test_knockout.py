"""Knockout and its curves on tiny models: which passes are made, what is reported of them, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

import attngraph as ag
from attngraph.capture import Removal, predictions
from attngraph.errors import ConfigError, GraphError, NoRouteError
from attngraph.graph.edge_set import edge_set, joined
from tests.attngraph.tiny_models import random_prompt, tiny, word_tokenizer

COLUMNS = ["layer", "head", "key_block", "query_block", "target"]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ag.LanguageModel, ag.Run]:
    lm = tiny("Qwen3", tokenizer=word_tokenizer())
    prompt = random_prompt(203, spans=[("needle", 64, 72), ("question", 190, 203)], answer="w5")
    config = ag.StreamConfig(block_size=8, budget=6, first_layers=0)
    return lm, ag.capture(lm, prompt, config, store=tmp_path_factory.mktemp("store"), progress=False)


def test_the_best_edges_are_those_of_greatest_throughput(captured: Any) -> None:
    lm, run = captured
    found = ag.knockout(lm, run, 12, controls=(), progress=False)
    best = ag.throughput(run.graph(), "needle").to_polars().filter(pl.col.key_block != pl.col.query_block).head(12)
    assert found.edges.select(COLUMNS).rows() == best.select(COLUMNS).rows()
    assert set(best["target"]) == {202, None}  # edges into blocks and into the target
    removal = Removal(edge_set(run.graph(), best))
    base, (knocked_out,) = predictions(lm, run, [removal], forward="sparse", progress=False)
    assert (found.base, found.base_margin) == base[:2]
    assert (found.knocked_out, found.margin) == knocked_out[:2]
    assert found.effect == base.log_probability - knocked_out.log_probability != 0
    assert (found.forward, found.answer, found.survives) == ("sparse", "w5", found.margin > 0)
    assert found.drift == pytest.approx(0, abs=1e-4)
    assert found.controls == {}
    assert found.completeness == ag.throughput(run.graph(), "needle").completeness is not None
    masses = pl.concat(
        [
            run.edges().select("layer", "head", "key_block", "query_block", "mass", target=pl.lit(None, pl.Int64)),
            run.target_edges().select(
                "layer", "head", "key_block", pl.col("target").cast(pl.Int64), "mass", query_block=pl.lit(25)
            ),
        ],
        how="diagonal_relaxed",
    ).collect()
    joined_masses = found.edges.join(masses, on=COLUMNS, nulls_equal=True, how="left", maintain_order="left")
    assert found.edges["mass"].to_list() == pytest.approx(joined_masses["mass_right"].to_list())


def test_edges_that_are_given_as_a_table_or_as_an_answer(captured: Any) -> None:
    lm, run = captured
    by_count = ag.knockout(lm, run, 12, controls=(), progress=False)
    by_table = ag.knockout(lm, run, by_count.edges, source=None, controls=("random",), draws=1, progress=False)
    assert (by_table.knocked_out, by_table.source) == (by_count.knocked_out, None)
    routes = ag.routes(run.graph(), "needle", k=3)
    by_routes = ag.knockout(lm, run, routes, controls=(), progress=False)
    assert by_routes.edges.select(COLUMNS).rows() == edge_set(run.graph(), routes).to_polars(run.graph()).rows()


def test_keeping_nothing_but_edges_is_the_other_way_round(captured: Any) -> None:
    lm, run = captured
    found = ag.knockout(lm, run, 20, keep=True, controls=("mass_matched",), draws=2, progress=False)
    assert found.keep
    removal = Removal(edge_set(run.graph(), found.edges), keep=True)
    _, (kept,) = predictions(lm, run, [removal], forward="sparse", progress=False)
    assert (found.knocked_out, found.margin) == kept[:2]
    assert found.controls["mass_matched"].edges.tolist() == [20, 20]
    assert found.forwards == 4  # the first layer changes in all of them


@pytest.mark.parametrize("forward", ["sparse", "dense"])
def test_controls_are_passes_of_their_own(captured: Any, forward: str) -> None:
    lm, run = captured
    every = ("mass_matched", "random", "distance_matched", "row_matched")
    found = ag.knockout(lm, run, 6, controls=every, draws=3, forward=forward, progress=False)
    assert list(found.controls) == list(every)
    for control in found.controls.values():
        assert len(control.edges) == len(control.mass) == len(control.log_probability) == 3
        assert (control.edges <= 6).all()
        assert control.median == np.median(control.log_probability)
        low, high = control.interval
        assert min(control.log_probability) <= low <= control.median <= high <= max(control.log_probability)
    assert len(set(found.controls["random"].log_probability)) > 1
    assert found.controls["mass_matched"].mass == pytest.approx(found.edges["mass"].sum(), rel=0.2)
    table = found.to_polars()
    assert table["removed"].to_list() == ["base", "edges", *(name for name in every for _ in range(3))]
    assert table["effect"].to_list()[:2] == [0, found.effect]
    assert table.filter(removed="random")["log_probability"].to_list() == list(found.controls["random"].log_probability)
    # Layers before the first change are not computed again.
    assert 1 < found.forwards < 1 + 1 + 12
    if forward == "dense":
        assert found.drift is None  # the run shows the sparse pass
    again = ag.knockout(lm, run, 6, controls=every, draws=3, forward=forward, progress=False)
    assert again.to_dict() == found.to_dict()


def test_a_control_without_anything_to_draw_has_no_median(captured: Any) -> None:
    lm, run = captured
    row = run.edges().filter(layer=1, head=2, query_block=20).collect().filter(pl.col.key_block != 20)
    found = ag.knockout(lm, run, row, source=None, controls=("distance_matched",), draws=2, progress=False)
    control = found.controls["distance_matched"]
    assert len(control.edges) == 0
    assert np.isnan([control.median, *control.interval]).all()


def test_necessity_removes_more_and_more_of_the_best(captured: Any) -> None:
    lm, run = captured
    curve = ag.necessity(lm, run, (5, 1, 10_000), draws=2, control="random", progress=False)
    assert (curve.kind, curve.forward) == ("necessity", "sparse")
    everything = ag.throughput(run.graph(), "needle").to_polars().filter(pl.col.key_block != pl.col.query_block).height
    assert [point.edges for point in curve.points] == [1, 5, everything]
    for point in curve.points[:2]:
        alone = ag.knockout(lm, run, point.edges, controls=("random",), draws=2, progress=False)
        assert (point.log_probability, point.margin) == (alone.knocked_out, alone.margin)
        assert point.control.log_probability.tolist() == alone.controls["random"].log_probability.tolist()
    table = curve.to_polars()
    assert table["effect"].to_list() == [curve.base - point.log_probability for point in curve.points]
    assert table["carried"].null_count() == 3


@pytest.mark.parametrize("forward", ["sparse", "dense"])
def test_sufficiency_keeps_the_subgraph_that_carries_the_share(captured: Any, forward: str) -> None:
    lm, run = captured
    curve = ag.sufficiency(lm, run, (0.9, 0.5), forward=forward, progress=False)
    assert curve.points[0][:2] == (0, 0.0)
    assert curve.points[0].control is None
    shares = [point.carried for point in curve.points[1:]]
    assert 0.5 <= shares[0] < shares[1]
    assert shares[1] >= 0.9
    graph = run.graph()
    kept = [joined([]), *(edge_set(graph, ag.carrying(graph, "needle", share=share)) for share in (0.5, 0.9))]
    base, found = predictions(lm, run, [Removal(one, keep=True) for one in kept], forward=forward, progress=False)
    assert (curve.base, curve.base_margin) == base[:2]
    assert [(point.edges, point.log_probability) for point in curve.points] == [
        (one.size, said.log_probability) for one, said in zip(kept, found, strict=True)
    ]
    assert curve.points[1].control.edges.tolist() == [kept[1].size]
    assert curve.to_polars()["control"].null_count() == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lm, run: ag.knockout(lm, run, 0), "edges=0 must be at least 1, or the edges themselves"),
        (lambda lm, run: ag.knockout(lm, run, 5, source=None), "The 5 best edges lead from a source; name it"),
        (lambda lm, run: ag.knockout(lm, run, 5, draws=0), "draws=0 sets of edges were asked for"),
        (lambda lm, run: ag.knockout(lm, run, 5, controls=("mass",)), "The control 'mass' is not one of mass_matched"),
        (lambda lm, run: ag.knockout(lm, run, 5, forward="both"), "forward='both' is not one of sparse, dense"),
        (lambda lm, run: ag.necessity(lm, run, (3, 0)), r"counts=\(3, 0\) are numbers of edges"),
        (lambda lm, run: ag.necessity(lm, run, ()), r"counts=\(\) are numbers of edges"),
        (lambda lm, run: ag.sufficiency(lm, run, (1.5,)), "share=1.5 is not above 0 and at most 1"),
        (lambda lm, run: ag.sufficiency(lm, run, draws=0), "draws=0 sets"),
        (lambda lm, run: ag.knockout(lm, run, [(0, 0, 5, 5)]), "leads from the row's own block"),
        (lambda lm, run: ag.knockout(lm, run, source="output", target="block:1"), "No path of positive weight"),
        (lambda lm, run: ag.knockout(lm, run, source="block:0", target="block:0"), "No edge between blocks leads from"),
    ],
)
def test_questions_without_an_answer_are_refused(captured: Any, ask: Any, message: str) -> None:
    with pytest.raises((ConfigError, GraphError, NoRouteError), match=message):
        ask(*captured)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99, 1.0])
def test_the_subgraph_that_carries_a_share_is_small(captured: Any, share: float) -> None:
    graph = captured[1].graph()
    found = ag.carrying(graph, "needle", share=share)
    assert found.carried >= share - 1e-9
    assert found.edge_share <= 1.0
    if share < 1:
        # A little less of every layer would not do: what is left out grew by a tenth.
        edge_share = max(1 - 1.1 * (1 - found.edge_share), 1e-9)
        less = ag.prune(graph, "needle", node_share=1.0, edge_share=edge_share)
        assert less.carried < share or less.edges == found.edges
