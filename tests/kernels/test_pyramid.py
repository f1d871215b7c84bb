"""The key pyramid and the scores of its nodes."""

from __future__ import annotations

import torch

from attngraph_kernels import BlockGrid, pyramid
from attngraph_kernels.pyramid import query_features, second_moment_factor


def test_factor_reproduces_the_second_moment():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    factor = second_moment_factor(x)
    torch.testing.assert_close(factor @ factor.T, x.T @ x / 50, atol=1e-4, rtol=1e-4)


def test_factor_exists_for_no_variation_at_all():
    assert torch.isfinite(second_moment_factor(torch.zeros(10, 4))).all()


def test_levels_halve_and_keep_every_key():
    grid = BlockGrid(tokens=100, size=8)
    k = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    levels = pyramid(k, grid, 4, torch.eye(4), variance=0.2, coarsest=2)
    assert [len(table) for table in levels.features] == [13, 7, 4, 2]
    for table in levels.features:
        count = table[..., -1].exp()
        assert count.sum().round() == 100
        torch.testing.assert_close(
            (count[..., None] * table[..., :4]).sum(dim=(0, 1)), k.sum(dim=0), atol=1e-3, rtol=1e-3
        )


def test_start_is_the_finest_level_that_fits():
    grid = BlockGrid(tokens=100, size=8)
    levels = pyramid(torch.randn(100, 4), grid, 4, torch.eye(4), variance=0.2, coarsest=2)
    assert [levels.start(n) for n in (100, 13, 12, 7, 4, 2, 1)] == [0, 0, 1, 1, 2, 3, 3]


def test_scores_of_whole_blocks_are_exact_with_one_representative_per_key():
    grid = BlockGrid(tokens=64, size=8)
    draw = torch.Generator().manual_seed(0)
    k, q = torch.randn(64, 4, generator=draw), torch.randn(5, 4, generator=draw)
    table = pyramid(k, grid, 8, torch.eye(4), variance=0.2, coarsest=8).features[0]
    scores = torch.einsum("qf,nrf->qnr", query_features(q), table).logsumexp(dim=-1)
    torch.testing.assert_close(scores, (q @ k.T).view(5, 8, 8).logsumexp(dim=-1), atol=1e-4, rtol=1e-4)


def test_second_order_term_is_exact_for_tight_gaussian_blocks():
    """log E[exp(q·k)] = q·μ + Σ q²σ²/2 for normal keys, so a weight of one half must be near the truth."""
    grid = BlockGrid(tokens=12_800, size=128)
    draw = torch.Generator().manual_seed(0)
    k, q = 0.5 * torch.randn(12_800, 3, generator=draw), torch.randn(4, 3, generator=draw)
    truth = (q @ k.T).logsumexp(dim=-1)
    error = []
    for variance in (0.0, 0.5):
        table = pyramid(k, grid, 1, torch.eye(3), variance=variance, coarsest=1).features[-1]
        scores = torch.einsum("qf,nrf->qnr", query_features(q), table).flatten(1).logsumexp(dim=-1)
        error.append((scores - truth).abs().max().item())
    assert error[1] < 0.05 < error[0]
