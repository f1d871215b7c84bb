"""`attngraph demo` and `attngraph capture`: what they print, what they keep, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import attngraph as ag
from attngraph.cli.output import size
from tests.attngraph.conftest import save_tiny_model

DEMO_KEYS = {
    "": ("model", "tokens", "budget", "block_size", "next_tokens_match", "edges", "routes", "run"),
    "answer": ("expected", "dense", "sparse", "tokens_kept"),
    "pruned": ("causal", "square", "visible"),
    "bytes": ("dense_cache", "run"),
    "seconds": ("dense_forward", "capture"),
    "needle": ("blocks", "rank"),
}


def check_demo(document: dict[str, Any], store: Path) -> ag.Run:
    """What every demo's document says must be true of the run that it leaves."""
    for part, keys in DEMO_KEYS.items():
        values = document[part] if part else document
        assert all(values[key] is not None for key in keys)
    run = ag.open_run(document["run"], verify="full")
    assert run.path.parent == store
    assert document["tokens"] == run.manifest.prompt.tokens
    assert document["edges"] == run.cost.edges == len(run.edges().collect())
    assert document["bytes"]["run"] == sum(file.stat().st_size for file in run.path.glob("*.parquet"))
    assert document["answer"]["expected"] == run.manifest.prompt.answer
    (needle,) = run.spans().collect().filter(name="needle").iter_rows(named=True)
    tokens = run.tokens().collect()
    inside = tokens.filter((tokens["position"] >= needle["token_start"]) & (tokens["position"] < needle["token_end"]))
    assert document["needle"]["blocks"] == sorted(set(inside["block"]))
    best = document["routes"][0]
    assert best["hops"][0]["key_block"] in document["needle"]["blocks"]
    assert best["hops"][-1]["target"] == run.manifest.prompt.targets[-1]
    assert 0 < best["weight"] <= 1
    return run


def test_demo_json_is_one_document_about_the_run_it_leaves(command, tiny_folder, tmp_path):
    result = command("demo", "--model", tiny_folder, "--length", 1300, "--out", tmp_path, "-k", 2, "--json")
    assert result.code == 0, result.stderr
    assert result.stderr == f"Loading {tiny_folder} …\n"
    document = json.loads(result.stdout)
    run = check_demo(document, tmp_path)
    assert (document["block_size"], document["budget"], len(document["routes"])) == (16, 8, 2)
    assert run.manifest.model.id == str(tiny_folder)
    assert [path.name for path in tmp_path.iterdir()] == [run.path.name]


def test_demo_prints_one_screen(command, tiny_folder, tmp_path):
    result = command("demo", "--model", tiny_folder, "--length", 1300, "--haystack", "varied", "--out", tmp_path)
    assert result.code == 0, result.stderr
    (run,) = ag.open_store(tmp_path)
    assert run.manifest.prompt.metadata["haystack"] == "varied"
    for text in (str(run.path), f"expected {run.manifest.prompt.answer!r}", "needle → output", "by excess influence"):
        assert text in result.stdout
    assert len(result.stdout.splitlines()) < 30


def test_a_needle_in_the_sinks_block_has_no_rank_but_a_demo(command, tiny_folder, tmp_path):
    flags = ("--depth", 0, "--block-size", 128, "--budget", 4, "--length", 1300, "--out", tmp_path)
    result = command("demo", "--model", tiny_folder, *flags, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    if 0 in document["needle"]["blocks"] and len(document["needle"]["blocks"]) == 1:
        assert document["needle"]["rank"] is None
    assert command("demo", "--model", tiny_folder, *flags).code == 0


def test_capture_json_is_the_manifest_and_the_runs_path(command, tiny_folder, tmp_path):
    flags = ("--task", "needle", "--length", 1300, "--budget", "all", "--store", tmp_path)
    result = command("capture", "--model", tiny_folder, *flags, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    run = ag.open_run(document["run"])
    written = json.loads((run.path / "run.json").read_text())
    assert {**written, "run": document["run"], "id": run.id} == document
    assert run.manifest.config.budget == "all"
    assert document["cost"]["pruned"]["causal"] == pytest.approx(0, abs=0.05)


def test_capture_audits_what_it_is_told_to(command, tiny_folder, tmp_path):
    flags = ("--model", tiny_folder, "--task", "needle", "--length", 1300, "--n-match", 0, "--store", tmp_path)
    full = json.loads(command("capture", *flags, "--audit", "full", "--json").stdout)
    assert full["config"]["audit"] == "full"
    assert "(audited)" in command("influence", full["run"]).stdout
    none = json.loads(command("capture", *flags, "--audit", "none", "--json").stdout)
    assert "dropped attention not audited" in " ".join(command("influence", none["run"]).stdout.split())
    assert "audit='some' is not one of none, targets, full" in command("capture", *flags, "--audit", "some").stderr


def test_capture_observes_the_graph_beside_the_whole_model(command, tiny_folder, tmp_path):
    flags = ("--model", tiny_folder, "--task", "needle", "--length", 1300, "--n-match", 0, "--store", tmp_path)
    found = json.loads(command("capture", *flags, "--forward", "dense", "--audit", "none", "--json").stdout)
    assert found["config"]["forward"] == "dense"
    assert command("verify", found["run"]).code == 0
    # Masses are dense, so every row is audited, and so is what is computed from them.
    assert "(audited)" in command("influence", found["run"]).stdout
    assert "forward='both' is not one of sparse, dense" in command("capture", *flags, "--forward", "both").stderr


def test_a_budget_that_is_searched_for(command, tiny_folder, tmp_path):
    flags = ("--task", "needle", "--length", 1300, "--budget", "auto", "--n-match", "answer", "--store", tmp_path)
    result = command("capture", "--model", tiny_folder, *flags, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["config"]["budget"], document["config"]["n_match"]) == ("auto", "answer")
    assert document["fidelity"]["n_match"] == document["fidelity"]["answer_tokens"]
    found = document["found_budget"]["blocks"]
    last = document["found_budget"]["curve"][-1]
    assert (last["budget"], last["match"], last["kl"]) == (found, True, document["fidelity"]["kl"])
    assert last["pruned"] == document["cost"]["pruned"]["causal"]
    shown = command("capture", "--model", tiny_folder, *flags)
    assert f"budget    {found} blocks found (tried " in shown.stdout
    listed = json.loads(command("ls", tmp_path, "--json").stdout)["runs"]
    assert [run["budget"] for run in listed] == [found, found]
    assert command("verify", tmp_path).code == 0


def test_demo_says_which_budget_was_found(command, tiny_folder, tmp_path):
    flags = ("--length", 1300, "--budget", "auto", "--out", tmp_path)
    result = command("demo", "--model", tiny_folder, *flags, "--json")
    assert result.code == 0, result.stderr
    (run,) = ag.open_store(tmp_path)
    assert json.loads(result.stdout)["budget"] == run.manifest.found_budget.blocks


def test_budgets_by_mass_keep_fewer_edges(command, tiny_folder, tmp_path):
    flags = ("--task", "needle", "--length", 1300, "--n-match", 0, "--store", tmp_path)
    for more in ((), ("--allocation", "mass", "--mass-threshold", "0.5")):
        assert command("capture", "--model", tiny_folder, *flags, *more).code == 0
    uniform, by_mass = ag.open_store(tmp_path)
    assert by_mass.manifest.config.mass_threshold == 0.5
    assert by_mass.cost.edges < uniform.cost.edges
    assert by_mass.cost.pruned.causal > uniform.cost.pruned.causal
    assert command("verify", tmp_path).code == 0


def test_capture_reads_a_prompt_file_with_spans(command, tiny_folder, tmp_path):
    text = "The key is seven. " * 6 + "The key is"
    spans = [{"name": "fact", "start": 0, "end": 17}, {"name": "ask [/x]", "start": 108, "end": 118}]
    (tmp_path / "prompt.json").write_text(json.dumps({"text": text, "spans": spans, "answer": " seven"}))
    result = command("capture", "--model", tiny_folder, "--prompt", tmp_path / "prompt.json", "--store", tmp_path / "s")
    assert result.code == 0, result.stderr
    (run,) = ag.open_store(tmp_path / "s")
    assert str(run.path) in result.stdout
    assert [(span.name, span.start, span.end) for span in run.manifest.prompt.spans] == [
        ("fact", 0, 17),
        ("ask [/x]", 108, 118),
    ]
    assert run.manifest.prompt.answer == " seven"
    for question in (("routes", "--source", "fact"), ("influence",), ("throughput", "--source", "ask [/x]")):
        name, *flags = question
        shown = command(name, run.path, *flags)
        assert shown.code == 0, shown.stderr
        if name != "routes":
            assert "ask [/x]" in shown.stdout


def test_capture_reads_a_text_file_and_can_skip_the_dense_model(command, tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text("One, two, three, four, five, six, seven, eight. " * 3)
    flags = ("--n-match", 0, "--block-size", 8, "--store", tmp_path / "store", "--json")
    result = command("capture", "--model", tiny_folder, "--text", tmp_path / "text.txt", *flags)
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["fidelity"] is None
    assert document["cost"]["dense_forward_seconds"] is None
    assert document["prompt"]["tokens"] == 144


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget", "2"), "budget=2 is too small: .* at least 3 blocks, or 'all'"),
        (("--budget", "83"), "budget=83 is over the prompt's 82 blocks .* give 3 to 82, or 'all'"),
        (("--budget", "some"), "budget='some' is neither a number of blocks nor 'all' or 'auto'"),
        (("--budget", "auto", "--n-match", "0"), "budget='auto' compares next tokens with the dense model"),
        (("--n-match", "two"), "n_match='two' is neither a number of tokens nor 'answer'"),
        (("--allocation", "fair"), "allocation='fair' is not one of uniform, mass"),
        (("--mass-threshold", "1"), "mass_threshold=1.0 must be above 0 and below 1"),
        (("--block-size", "20"), "block_size=20 is not one of 8, 16, 32, 64, 128"),
        (("--length", "32"), r"32 tokens, that is 2 block\(s\) of 16; at least 3 blocks"),
        (("--selector", "magic"), "selector='magic' is not one of stream, representative, flat, exact"),
        (("--n-match", "-1"), "n_match=-1 must be a whole number of at least 0"),
        (("--text", __file__), "exactly one of --task NAME, --prompt FILE.json, --text FILE.txt and --trace"),
    ],
)
def test_bad_settings_are_refused_before_the_model_is_looked_for(command, tmp_path, flags, message):
    result = command(
        "capture", "--model", "./gone", "--task", "needle", "--length", 1300, "--store", tmp_path / "s", *flags
    )
    assert (result.code, result.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []
    (line,) = result.stderr.splitlines()
    with pytest.raises(ag.errors.ConfigError, match=message):
        raise ag.errors.ConfigError(line)


def test_a_store_that_cannot_be_written_is_refused_before_the_model_is_looked_for(command, tmp_path):
    (tmp_path / "file").write_text("")
    for name, store in (("capture", ("--task", "needle", "--store")), ("demo", ("--out",))):
        result = command(name, "--model", "./gone", *store, tmp_path / "file" / "store")
        assert result.code == 2
        assert "Opening the store" in result.stderr and "folder is writable" in result.stderr


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"text": "too short"}, "at least 3 blocks are needed"),
        ({"text": "x" * 100, "spans": [{"name": "s", "start": 5, "end": 5}]}, "Span 's' covers characters 5 to 5"),
        ({"text": "x" * 100, "spans": [{"name": "s", "start": 5, "end": 101}]}, "but the text has 100"),
        ({"text": "x" * 100, "spans": [{"name": "s"}]}, 'needs "name", "start" and "end"'),
        ({"spans": []}, 'needs an object with a string "text"'),
        ("{", "isn't valid JSON"),
    ],
)
def test_bad_prompts_are_refused_and_leave_nothing(command, tiny_folder, tmp_path, prompt, message):
    (tmp_path / "prompt.json").write_text(prompt if isinstance(prompt, str) else json.dumps(prompt))
    result = command("capture", "--model", tiny_folder, "--prompt", tmp_path / "prompt.json", "--store", tmp_path / "s")
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.json"]


def test_bad_models_are_refused_and_leave_nothing(command, tmp_path):
    import transformers

    transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "b")
    save_tiny_model(tmp_path / "small", vocabulary=60)
    for model, message in (
        (tmp_path / "gone", "There is no folder or .gguf file"),
        (tmp_path / "b", "is an encoder"),
        (tmp_path / "small", "is outside the model's vocabulary of 60 (0 to 59)"),
    ):
        result = command("demo", "--model", model, "--length", 1300, "--out", tmp_path / "store")
        assert (result.code, result.stdout) == (2, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 2  # that it is loading, and why it isn't
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--depth", "1.5"),
        ("demo", "-k", "0"),
        ("demo", "--haystack", "hay"),
        ("capture", "--task", "sort"),
        ("capture", "--model", "m", "--text", "no such file"),
        ("dance",),
    ],
)
def test_usage_errors_exit_with_2(command, arguments):
    result = command(*arguments)
    assert (result.code, result.stdout) == (2, "")
    assert "Usage: attngraph" in result.stderr


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (26_700_000_000, "26.7 GB")]
)
def test_size(count, text):
    assert size(count) == text


@pytest.mark.model
def test_demo_on_a_real_model(command, tmp_path):
    result = command("demo", "--length", 1024, "--out", tmp_path, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    check_demo(document, tmp_path)
    assert document["model"] == "smollm2-135m"
    assert 900 < document["tokens"] <= 1024
    assert document["next_tokens_match"] is True
    assert document["answer"]["tokens_kept"] == 7
    assert document["answer"]["dense"] == document["answer"]["sparse"] == document["answer"]["expected"]
    assert document["needle"]["rank"] in (0, 1)
