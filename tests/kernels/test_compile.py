"""Selection and attention compile into one graph, without a break, and say the same."""

from __future__ import annotations

import shutil

import pytest
import torch

from attngraph_kernels import BlockGrid, Stream, attend, select
from tests.kernels.reference import random_attention

SELECTOR = Stream(budget=3, candidates=1, start_nodes=8, exact_tail=0)
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS_COMPILER])])
@pytest.mark.parametrize("window", [None, 150])
def test_selection_and_attention_compile_into_one_graph(backend, window):
    grid = BlockGrid(tokens=264, size=8, window=window)
    q, k, v = random_attention(2, 1, grid.tokens, 8, seed=0)

    def selected(q, k):
        return select(q, k, grid, SELECTOR, scale=0.35).blocks

    def attended(q, k, v):
        return attend(q, k, v, grid, SELECTOR, scale=0.35, targets=[263]).output

    compiled = torch.compile(selected, fullgraph=True, backend=backend)
    assert torch.equal(compiled(q, k), selected(q, k))
    compiled = torch.compile(attended, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(q, k, v), attended(q, k, v), atol=1e-5, rtol=1e-5)
