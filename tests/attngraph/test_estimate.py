"""What a capture would take, said before it runs: against what captures then took."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attngraph as ag
from attngraph.capture.footprint import Shape, layer_windows
from attngraph.capture.memory import _groups, _machine, available_bytes, resident_bytes
from attngraph.errors import ConfigError, ModelError
from attngraph.models.load import load_outline
from attngraph.testing import write_random_run
from tests.attngraph.tiny_models import ARCHITECTURES, random_prompt, tiny, windows, word_tokenizer

TOKENS = 203
WITHIN = 1.5
"""Measured peak memory is at most this many times the predicted one, and the other way round."""


def sparse(budget: int | str = 5, **changes) -> ag.StreamConfig:
    return ag.StreamConfig(budget=budget, **({"block_size": 8, "n_match": 0} | changes))


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("config", [sparse(), sparse("all"), ag.StreamConfig(budget=3, n_match=0)])
def test_edges_are_exact(kind: str, config: ag.StreamConfig, tmp_path) -> None:
    lm = tiny(kind)
    prompt = random_prompt(TOKENS, spans=[("completion", 150, TOKENS)])
    wanted = ag.estimate(lm, TOKENS, config, targets=TOKENS - 150)
    run = ag.capture(lm, prompt, replace(config, targets=("span:completion",)), store=tmp_path, progress=False)
    assert (wanted.edges, wanted.target_edges) == (run.cost.edges, run.cost.target_edges)
    assert wanted.dense_cache_bytes == run.cost.dense_cache_bytes
    assert layer_windows(lm.model.config) == run.manifest.model.windows == tuple(windows(lm))
    assert (wanted.blocks, wanted.targets) == (run.manifest.prompt.blocks, len(run.manifest.prompt.targets))


def test_a_models_configuration_is_enough(tmp_path: Path) -> None:
    lm = tiny("Gemma3Text")
    lm.model.config.save_pretrained(tmp_path)  # no weights, no tokenizer
    outline, _, item_bytes = load_outline(str(tmp_path), dtype="bfloat16")
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert Shape.of(outline, 4) == Shape.of(lm.model)
    assert item_bytes == 2
    wanted, half = (ag.estimate(str(tmp_path), 500, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    assert wanted.peak_parts["weights"] == sum(p.numel() for p in lm.model.parameters()) * 4
    assert half.peak_parts["weights"] * 2 == wanted.peak_parts["weights"]
    assert half.dense_cache_bytes * 2 == wanted.dense_cache_bytes
    assert (wanted.seconds, wanted.seconds_from) == (None, None)


def test_edges_that_only_the_capture_can_know(tmp_path) -> None:
    lm, config = tiny("Llama"), sparse(8, allocation="mass", mass_threshold=0.5)
    wanted = ag.estimate(lm, TOKENS, config)
    run = ag.capture(lm, random_prompt(TOKENS), config, store=tmp_path, progress=False)
    assert not wanted.exact and run.cost.edges < wanted.edges
    assert wanted.edges == ag.estimate(lm, TOKENS, sparse(8)).edges
    auto, fixed = (ag.estimate(lm, 900, sparse(budget, n_match=2)) for budget in ("auto", 32))
    assert (auto.exact, fixed.exact) == (False, True)
    assert auto.edges == fixed.edges
    # Fewer blocks than that can't be exceeded.
    assert ag.estimate(lm, 100, sparse("auto", n_match="answer")).edges == ag.estimate(lm, 100, sparse("all")).edges


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_auto_is_the_saved_one(dtype: str, tmp_path: Path) -> None:
    model = tiny("Llama").model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    assert load_outline(str(tmp_path), dtype="auto")[2] == getattr(torch, dtype).itemsize


def test_bytes_on_disk_of_a_run(tmp_path) -> None:
    # Small files are mostly their footers; the bytes per row are checked on the bundled models.
    run = ag.capture(tiny("Qwen3"), random_prompt(3000), sparse(), store=tmp_path, progress=False)
    wanted = ag.estimate(tiny("Qwen3"), 3000, sparse())
    assert wanted.run_bytes == pytest.approx(run.cost.run_bytes, rel=0.4)


def test_seconds_are_those_of_a_run_like_it_scaled(tmp_path) -> None:
    lm, config = tiny("Llama"), sparse()
    assert ag.estimate(lm, 400, config, store=tmp_path).seconds is None
    runs = [ag.capture(lm, random_prompt(tokens), config, store=tmp_path, progress=False) for tokens in (100, 300)]
    ag.capture(lm, random_prompt(400), sparse(6), store=tmp_path, progress=False)
    write_random_run(tmp_path)
    found = ag.estimate(lm, 400, config, store=tmp_path)
    assert found.seconds_from == runs[1].id
    expected = runs[1].cost.capture_seconds * 400 * math.log(400) / (300 * math.log(300))
    assert found.seconds == pytest.approx(expected)
    assert ag.estimate(lm, 110, config, store=tmp_path).seconds_from == runs[0].id
    assert ag.estimate(lm, 300 * 8 + 1, config, store=tmp_path).seconds is None  # too far to scale
    assert ag.estimate(lm, 400, config, targets=2, store=tmp_path).seconds is None


def test_memory_grows_with_the_prompt_the_model_and_the_settings() -> None:
    lm = tiny("Llama")

    def peak(length: int = 4000, **changes) -> int:
        return ag.estimate(lm, length, sparse(8, **changes)).peak_bytes

    assert peak() < peak(8000) < peak(16000)
    assert peak(16000) - peak(8000) == pytest.approx(2 * (peak(8000) - peak()), rel=0.1)  # linear
    assert peak(block_size=128) > 0
    assert peak(n_match=100_000) > peak(n_match=2) > 0
    bigger = tiny("Llama", intermediate_size=4096)
    assert ag.estimate(bigger, 4000, sparse(8)).peak_bytes > peak()


def test_a_capture_that_would_not_fit_is_refused_before_anything_runs(tmp_path) -> None:
    lm, prompt = tiny(tokenizer=word_tokenizer()), random_prompt(100)
    config = sparse(n_match=10**12)
    message = (
        r"Capturing 100 tokens with 'tiny' needs about [\d.]+ GB at its peak \(.*logits [\d.]+ GB\), "
        r"but only [\d.]+ GB "
        r"are available on cpu; .* would fit\. Give a shorter prompt, .* or n_match=0"
    )
    with pytest.raises(ConfigError, match=message):
        ag.capture(lm, prompt, config, store=tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()
    found = ag.estimate(lm, 100, config)
    assert not found.fits and found.peak_bytes > found.available_bytes
    assert found.peak_bytes == sum(found.peak_parts.values())


@pytest.mark.parametrize("targets", [0, 101])
def test_more_targets_than_tokens_are_refused(targets: int) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and the length of 100 tokens"):
        ag.estimate(tiny(), 100, sparse(), targets=targets)


def test_the_command_prints_the_numbers_and_says_by_its_exit_code_whether_they_fit(command, tiny_folder, tmp_path):
    flags = ("--model", tiny_folder, "--length", 1300, "--store", tmp_path)
    fits = command("estimate", *flags, "--json")
    assert (fits.code, fits.stderr) == (0, "")
    document = json.loads(fits.stdout)
    result = command("capture", "--task", "needle", *flags, "--json")
    captured = json.loads(result.stdout)
    exact = json.loads(command("estimate", *flags[:3], captured["prompt"]["tokens"], *flags[4:], "--json").stdout)
    assert exact["edges"] == captured["cost"]["edges"]
    assert exact["target_edges"] == captured["cost"]["target_edges"]
    assert exact["seconds"] == pytest.approx(captured["cost"]["capture_seconds"])
    assert exact["seconds_from"] == captured["id"]
    assert document["fits"] is True and document["seconds"] is None
    alike = json.loads(command("estimate", *flags, "--first-layers", 0, "--json").stdout)
    wider = json.loads(command("estimate", *flags, "--first-layers", 2, "--first-budget", 20, "--json").stdout)
    assert alike["edges"] < document["edges"] and alike["edges"] < wider["edges"]
    table = command("estimate", *flags)
    for text in ("edges ", "on disk", "all patterns", "available", "from run"):
        assert text in table.stdout
    large = command("estimate", *flags, "--n-match", 10**13, "--json")
    assert large.code == 2
    assert json.loads(large.stdout)["fits"] is False
    assert "would fit" in large.stderr


def test_an_estimate_refuses_what_a_capture_would(command, tmp_path) -> None:
    for flags, message in (
        (("--model", "./gone", "--length", 1000), "There is no folder or .gguf file"),
        (("--model", "./gone", "--length", 20), "at least 3 blocks"),
        (("--model", "./gone", "--length", 1000, "--budget", 2), "budget=2 is too small"),
    ):
        result = command("estimate", *flags)
        assert (result.code, result.stdout) == (2, "")
        assert message in result.stderr
    with pytest.raises(ModelError, match="isn't a model in transformers' layout"):
        ag.estimate(str(tmp_path), 1000)


def test_memory_that_is_left() -> None:
    left = available_bytes()
    assert 0 < left < 1 << 50
    before = resident_bytes()
    block = torch.ones(1 << 26)  # 256 MiB, touched
    assert resident_bytes() - before > 200 << 20
    del block


def test_the_machine_says_what_is_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  16000 kB\nMemFree: 100 kB\nMemAvailable:   8000 kB\n")
    assert _machine(tmp_path / "meminfo") == 8000 * 1024
    assert _machine(tmp_path / "none") > 1 << 28  # all of the memory, where no more is known


def group(folder: Path, limit: str, used: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(
        names, (limit, str(used), f"anon 5\n{'total_' * ('limit' in names[0])}inactive_file 30\n"), strict=True
    ):
        (folder / name).write_text(text)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
V2 = ("memory.max", "memory.current", "memory.stat")


@pytest.mark.parametrize(
    ("lines", "root", "names"), [("0::/a/b\n", "", V2), ("9:name=x:/\n4:cpu,memory:/a/b\n", "memory", V1)]
)
def test_control_groups_and_those_around_them(lines: str, root: str, names, tmp_path: Path) -> None:
    membership, mount = tmp_path / "cgroup", tmp_path / "mount"
    membership.write_text(lines)
    group(mount / root / "a" / "b", "max" if names is V2 else str(2**63 - 4096), 10, names)
    group(mount / root / "a", "1000", 400, names)
    group(mount / root, "5000", 900, names)
    assert sorted(_groups(membership, mount)) == [1000 - 400 + 30, 5000 - 900 + 30]
    # In a container only the group itself is mounted, whatever its path outside.
    membership.write_text(lines.replace("/a/b", "/elsewhere/c"))
    assert list(_groups(membership, mount)) == [5000 - 900 + 30]
    assert list(_groups(tmp_path / "none", mount)) == []


MEASURE = """
import sys, json, attngraph as ag
lm = ag.load_model(sys.argv[1], device="cpu")
prompt = ag.tasks.needle(lm.tokenizer, length=int(sys.argv[2]), haystack="varied")
run = ag.capture(lm, prompt, ag.StreamConfig(n_match=int(sys.argv[3])), store=sys.argv[4], progress=False)
print(json.dumps([len(prompt), run.cost.peak_rss_bytes, run.cost.run_bytes, run.cost.edges]))
"""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(("model", "length"), [("smollm2-135m", 2048), ("gemma3-270m", 3072)])
def test_peak_memory_and_bytes_of_real_captures(model: str, length: int, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", MEASURE, model, str(length), "1", str(tmp_path)]
    output = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout
    tokens, resident, on_disk, edges = json.loads(output)
    wanted = ag.estimate(model, tokens, ag.StreamConfig(n_match=1), device="cpu")
    assert wanted.edges == edges
    assert wanted.run_bytes == pytest.approx(on_disk, rel=0.25)
    assert 1 / WITHIN < resident / wanted.peak_bytes < WITHIN
