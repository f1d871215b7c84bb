"""Graph questions beside SciPy, igraph, rustworkx and NetworkX, on one synthetic graph, in one process.

Run: python tests/benchmarks/graph.py [--blocks 2500] [--repeats 7] [--small] [--large] [--json]

1. 30 layers x 9 heads x 2,500 blocks, 15 keys per row: 10 million edges as plain columns, sorted as in a run. attngraph
   answers from these columns, and again with the graph in hand; the conversions of the others stand apart.
2. NetworkX, which needs 2 KiB per edge, gets a graph of a million edges (250 blocks), and so do all others again.
3. From a run on disk to its routes, in this process, files in the page cache.
4. --large: a run of 95 million edges, traced in a process of its own, for its peak memory.

Times are the least of several repeats, as wall and as CPU time: on a busy machine the CPU time is the one to trust. All
libraries must agree on the best path, and on the minimum cut, before anything is printed; see `minimum_cut.py` for what
is cut.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import igraph
import minimum_cut
import networkx as nx
import numpy as np
import rustworkx
import scipy
from scipy import sparse
from scipy.sparse import csgraph

import attngraph as ag
from attngraph.capture.cost import peak_rss_bytes
from attngraph.testing import write_random_run

LAYERS, HEADS, KEYS = 30, 9, 15
RESIDUAL = 0.5
Columns = dict[str, np.ndarray]


@dataclass
class Measured:
    """One cell: the least wall and CPU seconds of some repeats, and what came out."""

    wall: float
    cpu: float
    value: Any = None


def measure(call: Callable[[], Any], repeats: int) -> Measured:
    """The least time of `repeats` calls."""
    walls, cpus, value = [], [], None
    for _ in range(repeats):
        value = None  # two results at once might not fit
        wall, cpu = time.perf_counter(), time.process_time()
        value = call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Measured(min(walls), min(cpus), value)


def synthetic(blocks: int, seed: int = 0) -> Columns:
    """Edges sorted by layer, query block, head, key block: sink, own and previous block, and others, near ones most."""
    random = np.random.default_rng(seed)
    query, slot = np.arange(blocks)[:, None, None], np.arange(KEYS)
    parts = []
    for layer in range(LAYERS):
        stretch = ((slot + random.random((blocks, HEADS, KEYS))) / KEYS) ** 0.5
        key = np.where(slot == KEYS - 1, query, (stretch * query).astype(np.int64))
        key[..., 0], key[..., KEYS - 2] = 0, np.maximum(query[..., 0] - 1, 0)
        key.sort(-1)
        new = np.ones(key.shape, bool)
        new[..., 1:] = key[..., 1:] > key[..., :-1]
        row, head, _ = np.nonzero(new)
        weight = random.exponential(size=len(row)).astype(np.float32) ** 2
        parts.append((np.full(len(row), layer, np.uint16), head, row, key[new], weight))
    layer, head, row, key, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        "layer": layer,
        "head": head.astype(np.uint16),
        "query_block": row.astype(np.uint32),
        "key_block": key.astype(np.uint32),
        "weight": weight,
    }


def ours(columns: Columns, source: str, target: str, repeats: int) -> dict[str, dict[str, Measured]]:
    """attngraph from raw columns, where building the graph counts in every answer, and with the graph in hand."""

    def build() -> ag.AttentionGraph:
        return ag.AttentionGraph.from_edges(columns, residual=RESIDUAL)

    questions: dict[str, Callable[[ag.AttentionGraph], Any]] = {
        "best path": lambda graph: ag.routes(graph, source, target, 1).routes[0].weight,
        "10 best": lambda graph: ag.routes(graph, source, target, 10),
        "1,000 best": lambda graph: ag.routes(graph, source, target, 1000),
        "widest path": lambda graph: ag.routes(graph, source, target, 1, kind="widest"),
        "influence": lambda graph: ag.influence(graph, target),
        "throughput": lambda graph: ag.throughput(graph, source, target, top=100),
        "min cut": lambda graph: ag.minimum_cut(graph, source, target, threshold=minimum_cut.THRESHOLD),
    }
    graph = build()
    return {
        "attngraph, from raw columns": {
            name: measure(lambda question=question: question(build()), repeats) for name, question in questions.items()
        },
        "attngraph": {"conversion": measure(build, repeats)}
        | {name: measure(lambda question=question: question(graph), repeats) for name, question in questions.items()},
    }


def steps_of(columns: Columns, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower node, upper node and probability of every edge and residual step, nodes numbered level by level."""
    graph = ag.AttentionGraph.from_edges(columns, residual=RESIDUAL)
    transitions = [graph.transition(layer) for layer in range(LAYERS)]
    nodes = np.arange(blocks)
    lower = [np.concatenate([step.key_block, nodes]) + step.layer * blocks for step in transitions]
    upper = [np.concatenate([step.query, nodes]) + (step.layer + 1) * blocks for step in transitions]
    probability = [np.concatenate([step.probability, step.stay]) for step in transitions]
    kept = np.concatenate(probability) > 0
    return np.concatenate(lower)[kept], np.concatenate(upper)[kept], np.concatenate(probability)[kept]


def with_scipy(steps: tuple[np.ndarray, ...], blocks: int, start: int, end: int) -> dict[str, Measured]:
    """csgraph on one matrix of lengths (the best of parallel heads), matrix products on one matrix per layer."""
    lower, upper, probability = steps
    size = (LAYERS + 1) * blocks

    def lengths() -> sparse.csr_array:
        pair = lower * size + upper
        order = np.argsort(pair, kind="stable")
        first = np.flatnonzero(np.diff(pair[order], prepend=-1))
        best = np.maximum.reduceat(probability[order], first)
        rows, columns = np.divmod(pair[order][first], size)
        indptr = np.searchsorted(rows, np.arange(size + 1)).astype(np.int32)
        return sparse.csr_array((1e-15 - np.log(best), columns.astype(np.int32), indptr), shape=(size, size))

    def matrices() -> list[sparse.csr_array]:
        cuts = np.searchsorted(upper, np.arange(1, LAYERS + 2) * blocks)
        return [
            sparse.coo_array(
                (probability[a:b], (upper[a:b] - (layer + 1) * blocks, lower[a:b] - layer * blocks)), (blocks, blocks)
            ).tocsr()
            for layer, (a, b) in enumerate(itertools.pairwise(cuts))
        ]

    graph = measure(lengths, 1)
    layers = measure(matrices, 1)

    def influence() -> np.ndarray:
        state = np.zeros(blocks)
        state[end % blocks] = 1.0
        for matrix in reversed(layers.value):
            state = matrix.T @ state
        return state

    def throughput() -> list[np.ndarray]:
        states = [np.zeros(blocks)]
        states[0][start] = 1.0
        for matrix in layers.value:
            states.append(matrix @ states[-1])
        walk = np.zeros(blocks)
        walk[end % blocks] = 1.0
        total = states[-1][end % blocks]
        shares = []
        for layer in reversed(range(LAYERS)):
            matrix = layers.value[layer]
            rows = np.repeat(walk, np.diff(matrix.indptr))
            shares.append(rows * matrix.data * states[layer][matrix.indices] / total)
            walk = matrix.T @ walk
        return shares

    found = {
        "conversion": Measured(graph.wall + layers.wall, graph.cpu + layers.cpu),
        "best path": measure(lambda: csgraph.dijkstra(graph.value, indices=start)[end], 3),
        "influence": measure(influence, 3),
        "throughput": measure(throughput, 3),
    }
    if hasattr(csgraph, "yen"):
        found["10 best"] = measure(lambda: csgraph.yen(graph.value, start, end, 10), 1)
    return found


def with_igraph(steps: tuple[np.ndarray, ...], blocks: int, start: int, end: int) -> dict[str, Measured]:
    lower, upper, probability = steps

    def convert() -> igraph.Graph:
        graph = igraph.Graph(n=(LAYERS + 1) * blocks, edges=np.column_stack([lower, upper]), directed=True)
        graph.es["length"] = np.abs(np.log(probability)).tolist()
        return graph

    graph = measure(convert, 1)
    return {
        "conversion": graph,
        "best path": measure(lambda: graph.value.distances(start, end, weights="length")[0][0], 2),
        "10 best": measure(lambda: graph.value.get_k_shortest_paths(start, end, k=10, weights="length"), 1),
    }


def with_rustworkx(steps: tuple[np.ndarray, ...], blocks: int, start: int, end: int) -> dict[str, Measured]:
    lower, upper, probability = steps

    def convert() -> rustworkx.PyDiGraph:
        graph = rustworkx.PyDiGraph()
        graph.add_nodes_from(range((LAYERS + 1) * blocks))
        length = np.abs(np.log(probability)).tolist()
        graph.extend_from_weighted_edge_list(list(zip(lower.tolist(), upper.tolist(), length, strict=True)))
        return graph

    graph = measure(convert, 1)
    return {
        "conversion": graph,
        "best path": measure(
            lambda: rustworkx.dijkstra_shortest_path_lengths(graph.value, start, float, goal=end)[end], 2
        ),
        "10 best": measure(lambda: rustworkx.k_shortest_path_lengths(graph.value, start, 10, float, goal=end)[end], 1),
    }


def with_networkx(steps: tuple[np.ndarray, ...], blocks: int, start: int, end: int) -> dict[str, Measured]:
    def convert() -> nx.MultiDiGraph:
        graph = nx.MultiDiGraph()
        lower, upper, probability = steps
        lengths = ({"length": length} for length in np.abs(np.log(probability)).tolist())
        graph.add_edges_from(zip(lower.tolist(), upper.tolist(), lengths, strict=True))
        return graph

    graph = measure(convert, 1)
    return {
        "conversion": graph,
        "best path": measure(lambda: nx.dijkstra_path_length(graph.value, start, end, weight="length"), 1),
    }


def with_cuts(found: dict[str, dict[str, Measured]], graph: ag.AttentionGraph, source: str, target: str) -> int:
    """Put the minimum cut of the libraries that have one beside attngraph's; the number of steps that are cut."""
    ours = found["attngraph"]["min cut"].value
    cut, steps = minimum_cut.problem(graph, source, target)
    rivals: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
        "scipy": (
            lambda: minimum_cut.scipy_network(cut, ours.scale),
            lambda network: minimum_cut.scipy_value(network, cut, ours.scale),
        ),
        "igraph": (
            lambda: minimum_cut.igraph_network(cut),
            lambda network: minimum_cut.igraph_value(network, cut),
        ),
        "networkx": (
            lambda: minimum_cut.networkx_network(cut),
            lambda network: minimum_cut.networkx_value(network, cut),
        ),
    }
    for name in found.keys() & rivals.keys():
        convert, solve = rivals[name]
        network = measure(convert, 1)
        answer = measure(lambda network=network, solve=solve: solve(network.value), 1 if name == "networkx" else 3)
        # Ours is the capacity of a cut found in whole units, half a unit off per arc at most.
        if not math.isclose(answer.value, ours.value, rel_tol=1e-5):
            raise SystemExit(f"{name} found a minimum cut of {answer.value}, attngraph {ours.value}.")
        found[name] |= {"conversion for the cut": network, "min cut": answer}
    return steps


LIBRARIES = {"scipy": with_scipy, "igraph": with_igraph, "rustworkx": with_rustworkx, "networkx": with_networkx}
QUESTIONS = (
    "conversion",
    "best path",
    "10 best",
    "1,000 best",
    "widest path",
    "influence",
    "throughput",
    "conversion for the cut",
    "min cut",
)


def compare(blocks: int, repeats: int, others: tuple[str, ...]) -> dict[str, Any]:
    """All questions to all libraries on one graph."""
    columns = synthetic(blocks)
    source, target = blocks // 3, blocks - 1
    found = ours(columns, f"block:{source}", f"block:{target}", repeats)
    best = found["attngraph"]["best path"].value
    steps = steps_of(columns, blocks)
    for name in others:
        found[name] = LIBRARIES[name](steps, blocks, source, LAYERS * blocks + target)
        length = float(found[name]["best path"].value)
        if not math.isclose(length, -math.log(best), rel_tol=1e-6):
            raise SystemExit(f"{name} found a best path of length {length}, attngraph {-math.log(best)}.")
        for cell in found[name].values():
            cell.value = None  # a converted graph takes gigabytes
    graph = ag.AttentionGraph.from_edges(columns, residual=RESIDUAL)
    cut_steps = with_cuts(found, graph, f"block:{source}", f"block:{target}")
    return {"edges": len(columns["weight"]), "blocks": blocks, "cut_steps": cut_steps, "libraries": found}


def from_disk(blocks: int, budget: int, repeats: int) -> dict[str, Any]:
    """From the folder of a run to its 10 best routes."""
    with tempfile.TemporaryDirectory() as store:
        run = write_random_run(store, layers=LAYERS, heads=HEADS, blocks=blocks, budget=budget)
        cell = measure(lambda: ag.routes(ag.open_run(run.path).graph(), "needle", "output", 10), repeats)
        return {"edges": run.cost.edges, "wall": cell.wall, "cpu": cell.cpu}


TRACE = """
import json, re, sys, time
from pathlib import Path
import attngraph as ag
started, cpu = time.perf_counter(), time.process_time()
graph = ag.open_run(sys.argv[1]).graph()
ag.routes(graph, "needle", "output", 10)
ag.throughput(graph, "needle", "output", top=100)
cost = {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}
# Not ru_maxrss: it begins with that of the process which started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps(cost | {"peak_rss_bytes": peak}))
"""


def large(store: str) -> dict[str, Any]:
    """A run of 95 million edges: routes and throughput in a process of its own (on Linux)."""
    run = write_random_run(store, layers=LAYERS, heads=HEADS, blocks=8000, budget=44)
    done = subprocess.run([sys.executable, "-c", TRACE, str(run.path)], capture_output=True, text=True, check=True)
    return {"edges": run.cost.edges, "bytes": run.cost.run_bytes, **json.loads(done.stdout)}


def table(result: dict[str, Any]) -> str:
    """Milliseconds, wall (CPU), one line per question."""
    libraries = result["libraries"]
    lines = ["| ms, wall (CPU) | " + " | ".join(libraries) + " |", "|---" * (len(libraries) + 1) + "|"]
    for question in QUESTIONS:
        cells = [library.get(question) for library in libraries.values()]
        if any(cells):
            shown = [f"{cell.wall * 1e3:,.0f} ({cell.cpu * 1e3:,.0f})" if cell else "" for cell in cells]
            lines.append(f"| {question} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2500, help="Blocks of the large graph; 4,050 edges per block.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="Only the graph of a million edges.")
    parser.add_argument("--large", action="store_true", help="Also trace a run of 95 million edges (minutes).")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = [compare(250, arguments.repeats, tuple(LIBRARIES))]
    if not arguments.small:
        found.append(compare(arguments.blocks, arguments.repeats, ("scipy", "igraph", "rustworkx")))
    disk = None if arguments.small else from_disk(arguments.blocks, KEYS, arguments.repeats)
    traced = None
    if arguments.large:
        with tempfile.TemporaryDirectory() as store:
            traced = large(store)
    versions = {
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (np, scipy, nx, igraph, rustworkx)},
    }
    if arguments.json:
        plain = [
            result
            | {
                "libraries": {
                    name: {question: {"wall": cell.wall, "cpu": cell.cpu} for question, cell in cells.items()}
                    for name, cells in result["libraries"].items()
                }
            }
            for result in found
        ]
        print(json.dumps({"versions": versions, "graphs": plain, "disk": disk, "large": traced}))
        return
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    for result in found:
        print(f"\n{result['edges']:,} edges, {result['blocks']:,} blocks:\n\n{table(result)}")
        print(f"\nminimum cut: {result['cut_steps']:,} steps carry at least {minimum_cut.THRESHOLD:g} of the walks")
    if disk:
        print(
            f"\nFrom Parquet to 10 routes, {disk['edges']:,} edges: {disk['wall']:.2f} s ({disk['cpu']:.2f} s of CPU)"
        )
    if traced:
        print(
            f"\n{traced['edges']:,} edges on disk ({traced['bytes'] / 1e6:,.0f} MB): 10 routes and throughput in "
            f"{traced['wall']:.1f} s ({traced['cpu']:.1f} s of CPU), peak {traced['peak_rss_bytes'] / 2**20:,.0f} MiB"
        )
    print(f"\npeak of this process {peak_rss_bytes() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
