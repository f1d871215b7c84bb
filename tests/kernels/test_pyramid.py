"""The key pyramid and the scores of its nodes."""

from __future__ import annotations

import torch

from attngraph_kernels import BlockGrid, pyramid
from attngraph_kernels.pyramid import ABSENT, centre_pyramid, mean_level, query_features, second_moment_factor, siblings


def test_factor_reproduces_the_second_moment():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    factor = second_moment_factor(x)
    torch.testing.assert_close(factor @ factor.T, x.T @ x / 50, atol=1e-4, rtol=1e-4)


def test_factor_exists_for_no_variation_at_all():
    assert torch.isfinite(second_moment_factor(torch.zeros(10, 4))).all()


def test_factor_exists_where_the_rows_span_few_dimensions():
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        few = 100 * torch.randn(7, 12, generator=draw)
        assert torch.isfinite(second_moment_factor(few[torch.randint(7, (5000,), generator=draw)])).all()


def test_levels_halve_and_keep_every_key():
    grid = BlockGrid(tokens=100, size=8)
    # Keys so close that no bump adds to the counts.
    k = 1 + 1e-4 * torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    levels = pyramid(k, grid, 4, torch.eye(4), coarsest=2)
    assert [table.shape[:2] for table in levels] == [(13, 4), (7, 4), (4, 2), (2, 2)]
    for table in levels:
        count = table[..., -1].exp()
        assert count.sum().round() == 100
        torch.testing.assert_close(
            (count[..., None] * table[..., :4]).sum(dim=(0, 1)), k.sum(dim=0), atol=1e-3, rtol=1e-3
        )


def test_a_level_is_filled_up_with_absent_nodes_to_be_grouped():
    table = torch.arange(15.0).view(5, 1, 3)
    pairs, fours = siblings(table, 2), siblings(table, 4)
    assert pairs.shape == (3, 2, 3)
    assert pairs[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert fours[1].tolist() == [[12, 13, 14], *[[0, 0, torch.tensor(ABSENT)]] * 3]
    assert pairs[2].tolist() == fours[1, :2].tolist()


def test_plain_pyramids_hold_middle_keys_and_means():
    grid = BlockGrid(tokens=28, size=8)
    k = torch.arange(28.0).unsqueeze(1)
    finest, parents = centre_pyramid(k, grid, 2)
    assert finest[:, 0, 0].tolist() == [4, 12, 20, 27]
    assert parents[:, 0, 0].tolist() == [8, 24]
    (means,) = mean_level(k, grid)
    assert means[:, 0, 0].tolist() == [3.5, 11.5, 19.5, 25.5]
    assert means[:, 0, 1].exp().round().tolist() == [8, 8, 8, 4]


def test_scores_of_whole_blocks_are_exact_with_one_representative_per_key():
    grid = BlockGrid(tokens=64, size=8)
    draw = torch.Generator().manual_seed(0)
    k, q = torch.randn(64, 4, generator=draw), torch.randn(5, 4, generator=draw)
    table = pyramid(k, grid, 8, torch.eye(4), coarsest=8)[0]
    scores = torch.einsum("qf,nrf->qnr", query_features(q), table).logsumexp(dim=-1)
    torch.testing.assert_close(scores, (q @ k.T).view(5, 8, 8).logsumexp(dim=-1), atol=1e-4, rtol=1e-4)


def test_the_bump_is_exact_for_many_normal_keys_and_moderate_spread():
    """log E[exp(q·k)] = q·μ + s²/2 for normal scores of variance s²."""
    grid = BlockGrid(tokens=12_800, size=128)
    draw = torch.Generator().manual_seed(0)
    k, q = (
        0.5 * torch.randn(12_800, 3, generator=draw),
        torch.nn.functional.normalize(torch.randn(4, 3, generator=draw)),
    )
    table = pyramid(k, grid, 1, torch.eye(3) / 3**0.5, coarsest=1)[-1]
    scores = (query_features(q) @ table.flatten(0, 1).T).squeeze()
    torch.testing.assert_close(scores, (q @ k.T).logsumexp(dim=-1), atol=0.03, rtol=0)


def test_the_bump_never_exceeds_the_largest_deviation():
    """Where scores of n keys vary much, their log-mean-exp is near their largest, about s·√(2·ln n) - ln n."""
    grid = BlockGrid(tokens=128, size=128)
    k = 12 * torch.randn(128, 1, generator=torch.Generator().manual_seed(0))
    score = pyramid(k - k.mean(), grid, 1, torch.eye(1), coarsest=1)[0][0, 0, -1].item()
    truth = (k - k.mean()).logsumexp(dim=0).item()
    assert abs(score - truth) < 10 < 12**2 / 2 - truth
