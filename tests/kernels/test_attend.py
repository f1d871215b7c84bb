"""Attention over kept blocks against dense attention, edge by edge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attngraph_kernels import BlockGrid, Exact, Stream, attend, audit, select, value_norms
from attngraph_kernels.chosen import DENSE_ELEMENTS, row_chunks
from tests.kernels.reference import (
    block_mass,
    dense_attention,
    kept_keys,
    kept_pairs,
    over_blocks,
    random_attention,
    spread_over_blocks,
)

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SELECTORS = [
    Exact(budget=4),
    Stream(budget=4, exact_tail=0, start_nodes=8, candidates=2),
    Exact(budget=1000),
    Stream(budget=1000),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize(("tokens", "size"), [(40, 8), (257, 16), (515, 8), (700, 32), (300, 64), (400, 128)])
def test_attend_is_dense_attention_over_the_kept_pairs(tokens, size, window, selector):
    grid = BlockGrid(tokens, size, window)
    q, k, v = random_attention(6, 2, tokens, 12, seed=tokens)
    norms = torch.rand(6, tokens, generator=torch.Generator().manual_seed(0))
    targets = [tokens - 1, tokens // 2, 0]
    found = attend(q, k, v, grid, selector, scale=0.25, value_norm=norms, targets=targets)
    kept = kept_pairs(found.edges.blocks, grid)
    by_block = dense_attention(q, k, v, grid, 0.25, kept)
    for weight, probability in (
        (found.edges.mass, by_block.probability),
        (found.edges.contribution, by_block.probability * norms[:, None]),
    ):
        weight = spread_over_blocks(found.edges.blocks, weight, grid.count)
        torch.testing.assert_close(weight, block_mass(probability, grid), **CLOSE)

    kept[:, targets] = kept_keys(found.targets.blocks, grid)
    truth = dense_attention(q, k, v, grid, 0.25, kept)
    torch.testing.assert_close(found.output, truth.output, **CLOSE)
    torch.testing.assert_close(found.log_sum_exp, truth.log_sum_exp, **CLOSE)
    rows = truth.probability[:, targets]
    for weight, probability in ((found.targets.mass, rows), (found.targets.contribution, rows * norms[:, None])):
        weight = spread_over_blocks(found.targets.blocks, weight, grid.count)
        torch.testing.assert_close(weight, over_blocks(probability, grid), **CLOSE)


@pytest.mark.parametrize("window", [None, 100])
def test_targets_keep_the_blocks_with_the_most_mass_of_their_own_row(window):
    grid = BlockGrid(403, 16, window)
    q, k, v = random_attention(4, 2, 403, 8, seed=0)
    targets = [402, 17, 200]
    found = attend(q, k, v, grid, Stream(budget=5), scale=0.4, targets=targets).targets.blocks
    mass = over_blocks(dense_attention(q, k, v, grid, 0.4).probability[:, targets], grid)
    for row, target in enumerate(targets):
        own = target // 16
        forced = list(grid.forced(own))
        for head in range(4):
            free = mass[head, row].clone()
            free[forced] = -1
            best = free.argsort(descending=True)[: min(5, grid.available(own)) - len(forced)].tolist()
            assert [b for b in found[head, row].tolist() if b >= 0] == sorted(best + forced)


@pytest.mark.parametrize("window", [None, 40])
def test_all_blocks_kept_is_plain_dense_attention(window):
    grid = BlockGrid(203, 16, window)
    q, k, v = random_attention(4, 2, 203, 8, seed=0)
    found = attend(q, k, v, grid, Stream(budget=13), scale=0.3)
    truth = dense_attention(q, k, v, grid, 0.3)
    torch.testing.assert_close(found.output, truth.output, **CLOSE)
    torch.testing.assert_close(found.kept_mass, torch.ones_like(found.kept_mass), **CLOSE)
    mass = spread_over_blocks(found.edges.blocks, found.edges.mass, grid.count)
    torch.testing.assert_close(mass, block_mass(truth.probability, grid), **CLOSE)


def test_attend_keeps_what_select_says():
    grid = BlockGrid(1200, 16)
    q, k, v = random_attention(4, 2, 1200, 8, seed=0)
    selector = Stream(budget=5, exact_tail=32, start_nodes=16)
    assert torch.equal(
        attend(q, k, v, grid, selector, scale=0.3).edges.blocks, select(q, k, grid, selector, scale=0.3).blocks
    )


@settings(max_examples=40)
@given(
    tokens=st.integers(3, 200),
    cuts=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 200)), max_size=5),
    budget=st.sampled_from([3, 100]),
    window=st.none() | st.integers(1, 200),
)
def test_span_sums(tokens, cuts, budget, window):
    spans = [(start, min(end, tokens)) for start, end in cuts if start < min(end, tokens)]
    grid = BlockGrid(tokens, 8, window)
    q, k, v = random_attention(4, 2, tokens, 4, seed=tokens)
    norms = torch.rand(4, tokens, generator=torch.Generator().manual_seed(1))
    found = attend(q, k, v, grid, Exact(budget=budget), scale=0.5, value_norm=norms, spans=spans)
    p = dense_attention(q, k, v, grid, 0.5, kept_pairs(found.edges.blocks, grid)).probability
    assert found.span_mass.shape == (4, len(spans), len(spans))
    for i, (start, end) in enumerate(spans):
        for j, (first, last) in enumerate(spans):
            block = p[:, start:end, first:last]
            torch.testing.assert_close(found.span_mass[:, i, j], block.sum(-1).mean(-1), **CLOSE)
            weighted = (block * norms[:, None, first:last]).sum(-1).mean(-1)
            torch.testing.assert_close(found.span_contribution[:, i, j], weighted, **CLOSE)


def test_a_row_whose_kept_keys_are_all_far_below_the_best_is_still_exact():
    """Kept scores 200 nats under a dropped key underflow a shared exponential; each row needs its own maximum."""
    grid = BlockGrid(64, 8)
    q, k, v = random_attention(1, 1, 64, 4, seed=0)
    k[0, 16:24] = 0
    k[0, 20] = torch.tensor([500.0, 0, 0, 0])
    q[0, 60] = torch.tensor([1.0, 0, 0, 0])
    found = attend(q, k, v, grid, Exact(budget=3), scale=1.0)
    truth = dense_attention(q, k, v, grid, 1.0, kept_pairs(found.edges.blocks, grid))
    torch.testing.assert_close(found.output, truth.output, **CLOSE)


def test_value_norms_are_norms_through_the_output_projection():
    draw = torch.Generator().manual_seed(0)
    v, projection = torch.randn(2, 9, 5, generator=draw), torch.randn(6, 5, 7, generator=draw)
    norms = value_norms(v, projection @ projection.transpose(1, 2))
    truth = torch.stack([(v[head // 3] @ projection[head]).norm(dim=-1) for head in range(6)])
    torch.testing.assert_close(norms, truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize(("tokens", "size"), [(257, 16), (515, 8), (400, 128)])
def test_the_audit_is_the_dense_mass_on_the_kept_blocks(tokens, size, window):
    grid = BlockGrid(tokens, size, window)
    q, k, v = random_attention(6, 2, tokens, 12, seed=tokens)
    targets, selector = [tokens - 1, 3, tokens // 2], Stream(budget=4, exact_tail=0, start_nodes=8, candidates=2)
    dense = dense_attention(q, k, v, grid, 0.25)
    plain = attend(q, k, v, grid, selector, scale=0.25, targets=targets)
    audited = attend(q, k, v, grid, selector, scale=0.25, targets=targets, dense_log_sum_exp=dense.log_sum_exp)
    mass = block_mass(dense.probability, grid)
    on_kept = mass.masked_fill(spread_over_blocks(audited.edges.blocks, torch.ones(1), grid.count) == 0, 0).sum(dim=-1)
    torch.testing.assert_close(audited.kept_mass, on_kept, **CLOSE)
    known = ~plain.kept_mass.isnan()
    torch.testing.assert_close(plain.kept_mass[known], on_kept[known], **CLOSE)
    rows = over_blocks(dense.probability[:, targets], grid)
    kept = rows.gather(2, audited.targets.blocks.clamp_min(0)).masked_fill(audited.targets.blocks < 0, 0).sum(dim=-1)
    for found in (plain, audited):
        torch.testing.assert_close(found.target_kept_mass, kept, **CLOSE)
    assert torch.equal(plain.output, audited.output)


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("start_nodes", [1000, 8])
def test_the_estimate_is_exact_where_the_pyramid_is(start_nodes, candidates):
    # Eight representatives of eight keys, and of eight queries, lose nothing; coarser nodes of equal keys neither.
    grid = BlockGrid(512, 8)
    q, k, v = random_attention(4, 2, 512, 4, seed=1)
    if start_nodes < grid.count:
        k = k[:, ::64].repeat_interleave(64, dim=1)
    settings = {"representatives": 8, "query_representatives": 8, "exact_tail": 0, "candidates": candidates}
    selector = Stream(budget=4, start_nodes=start_nodes, **settings)
    dense = audit.dense_attention(q, k, v, grid, 0.3)
    found = attend(q, k, v, grid, replace(selector, estimate=True), scale=0.3)
    audited = attend(q, k, v, grid, selector, scale=0.3, dense_log_sum_exp=dense.log_sum_exp)
    assert torch.equal(found.edges.blocks, audited.edges.blocks)
    assert torch.equal(found.output, audited.output)
    assert audited.kept_mass_estimate.isnan().all()
    estimated = found.kept_mass.isnan()
    assert torch.equal(estimated, ~found.kept_mass_estimate.isnan())
    assert estimated.sum() > estimated.numel() / 2
    # The search's scores are bfloat16 where the processor has it.
    torch.testing.assert_close(found.kept_mass_estimate[estimated], audited.kept_mass[estimated], atol=5e-3, rtol=0)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("budget", [4, 1000])
def test_thousands_of_targets_are_the_same_rows_one_by_one(window, budget):
    grid = BlockGrid(1203, 16, window)
    q, k, v = random_attention(4, 2, 1203, 8, seed=0)
    targets, selector = [*range(1203, 0, -3), *range(1202)], Exact(budget=budget)
    targets = [min(target, 1202) for target in targets]  # in no order, some of them twice
    assert len(list(row_chunks(targets, 2, grid, min(budget, grid.count) * 16 * 8))) > 1
    together = attend(q, k, v, grid, selector, scale=0.4, targets=targets)
    for row in range(0, len(targets), 97):
        alone = attend(q, k, v, grid, selector, scale=0.4, targets=[targets[row]])
        assert torch.equal(together.targets.blocks[:, row], alone.targets.blocks[:, 0])
        torch.testing.assert_close(together.targets.mass[:, row], alone.targets.mass[:, 0], **CLOSE)
        torch.testing.assert_close(together.output[:, targets[row]], alone.output[:, targets[row]], **CLOSE)


@settings(max_examples=60)
@given(
    at=st.lists(st.integers(0, 4095), max_size=400),
    ascending=st.booleans(),
    heads=st.integers(1, 8),
    window=st.none() | st.integers(1, 4096),
    kept=st.integers(1, 1 << 21),
)
def test_row_chunks_hold_every_row_once_within_the_limit(at, ascending, heads, window, kept):
    at, grid = sorted(at) if ascending else at, BlockGrid(4096, 16, window)
    chunks = [at[run] for run in row_chunks(at, heads, grid, kept)]
    assert [position for rows in chunks for position in rows] == at
    for rows in chunks:
        own = [position // 16 for position in rows]
        keys = (max(own) + 1 - min(map(grid.first_visible, own))) * 16 if own else 0
        assert len(rows) <= 1 or heads * len(rows) * max(keys, kept) <= DENSE_ELEMENTS
