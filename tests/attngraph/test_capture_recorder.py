"""The recorder writes beside the computation, and its writer's errors come out."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attngraph.capture.recorder import Recorder, _Layer
from attngraph.capture.shares import Shares
from attngraph.errors import StoreError
from attngraph.store import RunWriter
from attngraph_kernels import PLAIN, Attended, BlockGrid, Exact, attend

GRID = BlockGrid(50, 8)


def layer(seed: int) -> tuple[Attended, Shares]:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(heads, 50, 4, generator=draw) for heads in (4, 2, 2))
    found = attend(q, k, v, GRID, Exact(budget=3), scale=0.5, targets=[49], spans=[(0, 9), (9, 30)])
    return found, Shares(*torch.rand(3, 50, generator=draw))


def record(recorder: Recorder, layers: range) -> None:
    for index in layers:
        attended, shares = layer(index)
        recorder.attended(GRID, PLAIN, attended)
        recorder.finish(index, shares)


def test_what_is_written_is_what_was_computed(tmp_path):
    with RunWriter(tmp_path) as writer:
        with Recorder(writer, (49,)) as recorder:
            record(recorder, range(5))
        rows = {name: opened.rows for name, opened in writer._tables.items()}
    attended = [layer(index)[0] for index in range(5)]
    kept = [int((found.edges.blocks >= 0).sum()) for found in attended]
    assert rows["edges"] == sum(kept)
    assert rows["target_edges"] == sum(int((found.targets.blocks >= 0).sum()) for found in attended)
    assert rows["rows"] == 5 * 4 * GRID.count and rows["shares"] == 5 * (GRID.count + 1)
    assert rows["span_edges"] == sum(int((found.span_mass > 0).sum()) for found in attended)
    assert [int(count) for count in recorder.tally.kept_blocks] == kept


class Called(TorchDispatchMode):
    """The names of PyTorch's operations that compute something."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func is not torch.ops.aten.detach.default:
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_the_writers_thread_computes_nothing_in_pytorch(tmp_path):
    """It would start a second team of OpenMP threads there, which slows the model's own down by a third."""
    attended, shares = layer(0)
    on_host = _Layer.copied(attended, shares)
    with RunWriter(tmp_path) as writer, Called() as called:
        Recorder(writer, (49,))._write(0, GRID, on_host)
        assert writer._tables["span_edges"].rows
    assert not called.names
    with Called() as called:
        attended.edges.mass.sum()
    assert called.names


def test_an_error_of_the_writer_ends_the_recording(tmp_path):
    with pytest.raises(StoreError, match="isn't open"), Recorder(RunWriter(tmp_path), ()) as recorder:
        record(recorder, range(5))
    assert len(recorder.tally.kept_blocks) <= 2  # out of the layer after the one that failed, or at the end


def test_an_error_of_the_last_layer_comes_out_at_the_end(tmp_path):
    with (
        RunWriter(tmp_path) as writer,
        pytest.raises(StoreError, match="comes after"),
        Recorder(writer, ()) as recorder,
    ):
        record(recorder, range(3))
        record(recorder, range(1))
