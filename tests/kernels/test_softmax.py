"""Soft caps, learned sinks, and attention observed beside a dense pass, against the textbook."""

from __future__ import annotations

import pytest
import torch

from attngraph_kernels import BlockGrid, Exact, Softmax, Stream, attend, dense_attention, select
from tests.kernels import reference
from tests.kernels.reference import (
    block_mass,
    kept_keys,
    kept_pairs,
    over_blocks,
    random_attention,
    spread_over_blocks,
)

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
TOKENS, TARGETS = 515, [514, 200, 0]
RULES = {
    "capped": Softmax(4.0),
    "sinks": Softmax(sinks=torch.tensor([0.0, 3.0, -2.0, 8.0])),
    "both": Softmax(4.0, torch.tensor([0.0, 3.0, -2.0, 6.0])),
}
SELECTORS = [
    Exact(budget=4),
    Stream(budget=4, exact_tail=0, start_nodes=8, candidates=2),
    Stream(budget=1000),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_capped_scores_and_sinks(rule: Softmax, window: int | None, selector) -> None:
    grid = BlockGrid(TOKENS, 16, window)
    q, k, v = random_attention(4, 2, TOKENS, 12, seed=0)
    spans = [(3, 40), (400, 515)]
    found = attend(q, k, v, grid, selector, scale=0.4, softmax=rule, targets=TARGETS, spans=spans)
    kept = kept_pairs(found.edges.blocks, grid)
    rows = reference.dense_attention(q, k, v, grid, 0.4, kept, rule).probability
    mass = spread_over_blocks(found.edges.blocks, found.edges.mass, grid.count)
    torch.testing.assert_close(mass, block_mass(rows, grid), **CLOSE)
    for i, (start, end) in enumerate(spans):
        for j, (first, last) in enumerate(spans):
            share = rows[:, start:end, first:last].sum(-1).mean(-1)
            torch.testing.assert_close(found.span_mass[:, i, j], share, **CLOSE)

    kept[:, TARGETS] = kept_keys(found.targets.blocks, grid)
    truth = reference.dense_attention(q, k, v, grid, 0.4, kept, rule)
    torch.testing.assert_close(found.output, truth.output, **CLOSE)
    torch.testing.assert_close(found.log_sum_exp, truth.log_sum_exp, **CLOSE)
    mass = spread_over_blocks(found.targets.blocks, found.targets.mass, grid.count)
    torch.testing.assert_close(mass, over_blocks(truth.probability[:, TARGETS], grid), **CLOSE)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_exact_selection_goes_by_the_models_own_probabilities(rule: Softmax, window: int | None) -> None:
    grid = BlockGrid(TOKENS, 16, window)
    # Rows of very unequal scores: without the cap, and without the sinks, a block's rows would be weighed otherwise.
    q, k, v = random_attention(4, 2, TOKENS, 12, seed=1)
    q *= torch.linspace(0.1, 3, 16).repeat(33)[:TOKENS, None]
    mass = block_mass(reference.dense_attention(q, k, v, grid, 0.4, softmax=rule).probability, grid)
    found = select(q, k, grid, Exact(budget=5), scale=0.4, softmax=rule)
    searched = select(q, k, grid, Stream(budget=5, candidates=8, exact_tail=0), scale=0.4, softmax=rule)
    assert torch.equal(found.blocks, searched.blocks)
    plain = select(q, k, grid, Exact(budget=5), scale=0.4)
    assert not torch.equal(found.blocks, plain.blocks)
    sink = 1 - mass.sum(dim=-1)
    for block in range(grid.count):
        forced = list(grid.forced(block))
        for head in range(4):
            free = mass[head, block].clone()
            free[forced] = -1
            best = free.argsort(descending=True)[: min(5, grid.available(block)) - len(forced)].tolist()
            kept = [b for b in found.blocks[head, block].tolist() if b >= 0]
            assert kept == sorted(best + forced)
            # What goes to the sink is not dropped.
            share = mass[head, block, kept].sum() + sink[head, block]
            torch.testing.assert_close(found.kept_mass[head, block], share, **CLOSE)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("rule", [Softmax(), *RULES.values()], ids=["plain", *RULES])
def test_beside_a_dense_pass_masses_are_the_models_own(rule: Softmax, window: int | None, selector) -> None:
    grid = BlockGrid(TOKENS, 16, window)
    q, k, v = random_attention(4, 2, TOKENS, 12, seed=2)
    norms = torch.rand(4, TOKENS, generator=torch.Generator().manual_seed(0))
    dense = dense_attention(q, k, v, grid, 0.4, rule.softcap, rule.sinks)
    spans = [(3, 40), (400, 515)]
    settings = {"scale": 0.4, "softmax": rule, "value_norm": norms, "targets": TARGETS, "spans": spans}
    found = attend(q, k, v, grid, selector, **settings, beside=dense)
    assert found.output is dense.output
    alone = attend(q, k, v, grid, selector, **settings)
    assert torch.equal(found.edges.blocks, alone.edges.blocks)
    assert torch.equal(found.targets.blocks, alone.targets.blocks)

    truth = reference.dense_attention(q, k, v, grid, 0.4, softmax=rule).probability
    torch.testing.assert_close(dense.output, truth @ v.repeat_interleave(2, 0), **CLOSE)
    pairs = truth * kept_pairs(found.edges.blocks, grid)
    rows = truth[:, TARGETS] * kept_keys(found.targets.blocks, grid)
    for name, weight in (("mass", torch.ones_like(norms)), ("contribution", norms)):
        edges = spread_over_blocks(found.edges.blocks, getattr(found.edges, name), grid.count)
        torch.testing.assert_close(edges, block_mass(pairs * weight[:, None], grid), **CLOSE)
        edges = spread_over_blocks(found.targets.blocks, getattr(found.targets, name), grid.count)
        torch.testing.assert_close(edges, over_blocks(rows * weight[:, None], grid), **CLOSE)
    to_sink = 1 - truth.sum(dim=-1)
    per_block = torch.stack([part.mean(dim=-1) for part in to_sink.split(16, dim=1)], dim=-1)
    torch.testing.assert_close(found.kept_mass, found.edges.mass.sum(dim=-1) + per_block, **CLOSE)
    torch.testing.assert_close(found.target_kept_mass, found.targets.mass.sum(dim=-1) + to_sink[:, TARGETS], **CLOSE)
    for i, (start, end) in enumerate(spans):
        for j, (first, last) in enumerate(spans):
            share = pairs[:, start:end, first:last].sum(-1).mean(-1)
            torch.testing.assert_close(found.span_mass[:, i, j], share, **CLOSE)


def test_probabilities_by_hand() -> None:
    # Scores ln 1 and ln 3 with a sink of ln 4: 1, 3 and 4 of 8; with a sink of ln 0 the plain softmax.
    scores = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]]).log()
    rule = Softmax(sinks=torch.tensor([4.0, 0.0]).log())
    torch.testing.assert_close(rule.probabilities(scores), torch.tensor([[[1 / 8, 3 / 8]], [[1 / 4, 3 / 4]]]))
    capped = Softmax(2.0).capped(torch.tensor([0.0, 1.0, 1e6, -1e6]))
    torch.testing.assert_close(capped, torch.tensor([0.0, 0.92423431, 2.0, -2.0]))
