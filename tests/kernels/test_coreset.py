"""Weighted representatives: what they must keep, against plain loops."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attngraph_kernels import coreset

EYE = torch.eye(3)


def farthest_point_reference(points: torch.Tensor, count: int) -> list[int]:
    """The farthest-first traversal of one set, one distance at a time."""
    chosen = [int((points - points.mean(dim=0)).norm(dim=1).argmax())]
    while len(chosen) < count:
        reach = torch.stack([(points - points[i]).norm(dim=1) for i in chosen]).amin(dim=0)
        chosen.append(int(reach.argmax()))
    return chosen


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(5, 12))
def test_groups_are_those_of_the_farthest_first_traversal(seed, count, size):
    points = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    found = coreset(points[None], torch.ones(1, size), count, EYE)
    chosen = farthest_point_reference(points, count)
    nearest = torch.stack([(points - points[i]).norm(dim=1) for i in chosen]).argmin(dim=0)
    for group in range(count):
        members = points[nearest == group]
        assert found.weight[0, group] == len(members)
        torch.testing.assert_close(found.mean[0, group], members.mean(dim=0), atol=1e-5, rtol=1e-4)
        spread = members.var(dim=0, correction=0).sum()
        torch.testing.assert_close(found.spread[0, group], spread, atol=1e-4, rtol=1e-3)


@given(st.integers(0, 10_000))
def test_total_weight_and_second_moment_are_kept(seed):
    draw = torch.Generator().manual_seed(seed)
    points, weight = torch.randn(4, 10, 3, generator=draw), torch.rand(4, 10, generator=draw) + 0.1
    found = coreset(points, weight, 4, EYE)
    torch.testing.assert_close(found.weight.sum(dim=1), weight.sum(dim=1))
    again = coreset(found.mean, found.weight, 2, EYE, found.spread)
    for reduced in (found, again):
        moment = _moment(reduced.mean, reduced.weight, reduced.spread)
        torch.testing.assert_close(moment, _moment(points, weight), rtol=1e-4, atol=0)


def _moment(points, weight, spread=0.0):
    return (weight * (points.square().sum(dim=-1) + spread)).sum(dim=1)


def test_spread_is_measured_in_the_metric():
    points = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0))
    metric = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    found = coreset(points, torch.ones(1, 40), 1, metric)
    assert found.spread.item() == pytest.approx((points @ metric)[0].var(dim=0, correction=0).sum().item(), rel=1e-4)


def test_many_sets_are_reduced_like_each_alone(monkeypatch):
    points = torch.randn(9, 16, 3, generator=torch.Generator().manual_seed(0))
    together = coreset(points, torch.ones(9, 16), 4, EYE)
    monkeypatch.setattr(sys.modules["attngraph_kernels.coreset"], "SLICE_ELEMENTS", 100)
    for one, other in zip(together, coreset(points, torch.ones(9, 16), 4, EYE), strict=True):
        torch.testing.assert_close(one, other)


def test_an_outlier_keeps_a_representative_of_its_own():
    points = torch.zeros(1, 16, 3)
    points[0, :, 0] = torch.linspace(0, 0.1, 16)
    points[0, 7] = torch.tensor([0.0, 9.0, 0.0])
    found = coreset(points, torch.ones(1, 16), 2, EYE)
    assert any(torch.equal(mean, points[0, 7]) for mean in found.mean[0])
    assert sorted(found.weight[0].tolist()) == [1.0, 15.0]


def test_the_metric_decides_what_is_far():
    points = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    flat = coreset(points, torch.ones(1, 3), 2, torch.diag(torch.tensor([1.0, 0.0, 1.0])))
    assert sorted(flat.weight[0].tolist()) == [1.0, 2.0]
    assert flat.mean[0, flat.weight[0].argmin()].tolist() == [1.0, 0.0, 0.0]


def test_absent_points_count_for_nothing():
    points = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(1))
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    points[0, 4:] = 1e6
    found = coreset(points, weight, 3, EYE)
    alone = coreset(points[:, :4], weight[:, :4], 3, EYE)
    torch.testing.assert_close(found.mean, alone.mean)
    torch.testing.assert_close(found.weight, alone.weight)


def test_fewer_distinct_points_than_representatives():
    found = coreset(torch.ones(1, 5, 3), torch.ones(1, 5), 4, EYE)
    assert sorted(found.weight[0].tolist()) == [0.0, 0.0, 0.0, 5.0]
    assert torch.isfinite(found.mean).all() and torch.isfinite(found.spread).all()
