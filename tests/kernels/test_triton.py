"""The Triton kernels: the same results as PyTorch in Triton's interpreter, builds for GPUs, and when they are chosen.

Kernels are interpreted or compiled depending on TRITON_INTERPRET at import: each way has a process of its own.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attngraph_kernels import BlockGrid, Flat, Stream, attend, backend, select, use
from attngraph_kernels.triton import limits
from tests.kernels.reference import random_attention

ROOT = Path(__file__).parents[2]
NEEDS_TRITON = pytest.mark.skipif(backend._missing("cuda") is not None, reason="triton is not installed")


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=ROOT,
        env={**variables, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@NEEDS_TRITON
def test_every_kernel_says_what_pytorch_says():
    done = run(["-m", "tests.kernels.triton_parity"], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    found = {case["case"]: case["found"] for case in map(json.loads, done.stdout.splitlines())}
    assert len(found) >= 20
    assert {name: what for name, what in found.items() if what != "ok"} == {}


@pytest.mark.slow
@NEEDS_TRITON
def test_kernels_build_for_gpus_within_their_limits():
    """A few configurations for two chips; kernels/benchmarks/builds.py has all of them."""
    done = run(["kernels/benchmarks/builds.py", "--few", "--json", "--only", "d 64"])
    assert done.stdout, done.stderr
    builds = json.loads(done.stdout)["builds"]
    assert len(builds) >= 30
    kernels = {"attend", "keys", "dense", "partial", "mass", "coreset", "descend", "rescore"}
    assert {build["name"].split("[")[1] for build in builds} == {f"{kernel}_kernel]" for kernel in kernels}
    assert [build for build in builds if not build.get("fits")] == []
    assert done.returncode == 0


@pytest.mark.slow
@NEEDS_TRITON
def test_the_gpu_benchmark_takes_all_of_its_steps(tmp_path):
    pytest.importorskip("transformers")
    output = tmp_path / "gpu.json"
    done = run(["kernels/benchmarks/gpu.py", "--tiny", "--output", str(output)], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert [row for row in found["operations"] if row["seconds"] is None] == []
    rival = next(row for row in found["operations"] if row["operation"].startswith("FlexAttention"))
    assert rival["difference"] < 1e-5
    assert [mark.split(":")[0] for mark in found["marks"][:3]] == ["met"] * 3
    assert found["forward"][0]["ratio"] > 0


def test_triton_is_not_imported_without_need():
    code = "import sys, attngraph_kernels as a; print('triton' in sys.modules)"
    assert run(["-c", code]).stdout.strip() == "False"


def test_without_triton_everything_works_in_pytorch():
    code = """
import sys
sys.modules["triton"] = None
import torch, attngraph_kernels as a
q = torch.randn(2, 40, 4)
print(a.attend(q, q, q, a.BlockGrid(40, 8), a.Stream(budget=4), scale=0.5).output.shape)
"""
    assert run(["-c", code]).stdout.strip() == "torch.Size([2, 40, 4])"


def test_tensors_on_a_processor_go_to_triton_in_its_interpreter_only():
    q, k, v = random_attention(2, 1, 40, 4, seed=0)
    with use("triton"), pytest.raises(RuntimeError, match=r"attend can't run in Triton: .*TRITON_INTERPRET=1"):
        attend(q, k, v, BlockGrid(40, 8), Stream(budget=4), scale=0.5)


def test_the_backend_is_restored_and_named_right():
    with pytest.raises(ValueError, match="'numpy' is not one of auto, torch, triton"), use("numpy"):
        pass
    with use("triton"):
        with use("torch"):
            assert not backend.runs_in_triton("attend", torch.zeros(1), lambda: None)
        assert backend._backend == "triton"
    assert backend._backend == "auto"


def test_the_environment_chooses_a_backend():
    code = "from attngraph_kernels import backend; print(backend._backend)"
    assert run(["-c", code], ATTNGRAPH_KERNELS="torch").stdout.strip() == "torch"
    assert "is not one of auto, torch, triton" in run(["-c", code], ATTNGRAPH_KERNELS="cuda").stderr


@NEEDS_TRITON
def test_the_log_says_once_why_pytorch_is_used(caplog):
    on_gpu = torch.empty(2, 1, device="meta")
    backend.say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="attngraph_kernels.backend"):
        for _ in range(3):
            assert not backend.runs_in_triton("select", on_gpu, lambda: "the search Flat has no kernels")
        assert backend.runs_in_triton("select", on_gpu, lambda: None)
    assert [record.message for record in caplog.records] == ["select runs in PyTorch: the search Flat has no kernels"]


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        (Flat(budget=8), "Flat"),
        (Stream(budget=8, start_nodes=5000), "5000 nodes at once are over the 1024"),
        (Stream(budget=8, start_nodes=1024, query_representatives=32), "1024 nodes at once for 32 representatives"),
        (Stream(budget=600), "1800|3600"),
        (Stream(budget=8, representatives=100), "200 points in a set are over the 64"),
        (Stream(budget=1, candidates=2), "2 candidates leave no room"),
        (Stream(budget=8), None),
        (Stream(budget=32), None),
    ],
)
def test_what_the_kernels_do_not_know_is_said(selector, reason):
    found = limits.of_search(selector, BlockGrid(200_000, 16), torch.bfloat16)
    assert found is None if reason is None else found is not None
    if reason is not None:
        assert any(part in found for part in reason.split("|"))


def test_fp32_leaves_room_for_half_the_nodes():
    grid, selector = BlockGrid(200_000, 64), Stream(budget=8, start_nodes=1024)
    assert limits.of_search(selector, grid, torch.float16) is None
    assert "over the 8192 shares" in str(limits.of_search(selector, grid, torch.float32))


def test_layers_that_the_kernels_do_not_know_are_named():
    assert limits.of_layer(torch.zeros(1, 300)) == "a width of 300 is over the 256 that fit into a kernel's tiles"
    assert limits.of_layer(torch.zeros(1, 8).double()) == "it has no kernels for torch.float64"
    assert limits.of_layer(torch.empty(1, 1 << 31, 8, device="meta")).startswith("2147483648 positions are over")
    assert limits.of_layer(torch.zeros(1, 8)) is None


def test_half_precision_is_computed_in_fp32():
    q, k, v = (x.bfloat16() for x in random_attention(2, 1, 100, 8, seed=0))
    grid = BlockGrid(100, 8)
    found = attend(q, k, v, grid, Stream(budget=4), scale=0.5)
    expected = attend(q.float(), k.float(), v.float(), grid, Stream(budget=4), scale=0.5)
    assert torch.equal(found.output, expected.output)
    assert torch.equal(select(q, k, grid, Stream(budget=4), scale=0.5).blocks, expected.edges.blocks)
