"""What a capture costs beside the model's own SDPA forward pass, on the bundled models, in one process.

Run: python tests/benchmarks/capture.py [--length 8192] [--repeats 3] [--json]
Dense passes and captures take turns; a capture counts from the call to the committed run, with ``n_match=0`` (the
fidelity check runs the dense model, so it is left out). Prints medians, their ratio, bytes per edge and peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch

import attngraph as ag
from attngraph.capture.cost import peak_rss_bytes

MODELS = ("smollm2-135m", "gemma3-270m")


def measure(model: str, length: int, repeats: int, store: str) -> dict[str, Any]:
    """Medians of `repeats` dense forward passes and captures, taken in turns after one of each to warm up."""
    lm = ag.load_model(model)
    assert lm.tokenizer is not None
    prompt = ag.tasks.needle(lm.tokenizer, length=length, haystack="varied")
    ids = torch.tensor([prompt.token_ids])
    dense, sparse = [], []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            lm.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        dense.append(time.perf_counter() - started)
        started = time.perf_counter()
        run = ag.capture(lm, prompt, ag.StreamConfig(n_match=0), store=store, progress=False)
        sparse.append(time.perf_counter() - started)
    dense_seconds, capture_seconds = statistics.median(dense[1:]), statistics.median(sparse[1:])
    return {
        "model": model,
        "tokens": len(prompt.token_ids),
        "dense_seconds": dense_seconds,
        "capture_seconds": capture_seconds,
        "ratio": capture_seconds / dense_seconds,
        "pruned_causal": run.cost.pruned.causal,
        "edges": run.cost.edges,
        "bytes_per_edge": run.cost.run_bytes / run.cost.edges,
        "peak_rss_bytes": peak_rss_bytes(),
        "dense_cache_bytes": run.cost.dense_cache_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8_192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", action="append", choices=MODELS, help="One model only; may be repeated.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        rows = [measure(model, arguments.length, arguments.repeats, store) for model in arguments.model or MODELS]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(
        f"blocks of 16, budget 8, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"medians of {arguments.repeats}\n"
    )
    print("| model | tokens | SDPA forward s | capture s | ratio | pruned (causal) | edges | bytes/edge |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['tokens']:,} | {row['dense_seconds']:.1f} | {row['capture_seconds']:.1f} | "
            f"{row['ratio']:.2f} | {row['pruned_causal']:.1%} | {row['edges']:,} | {row['bytes_per_edge']:.2f} |"
        )


if __name__ == "__main__":
    main()
