"""The main job on the real models: a pruned model that still answers, and a graph that finds the needle."""

from __future__ import annotations

from pathlib import Path

import pytest

import attngraph as ag


@pytest.mark.model
@pytest.mark.parametrize(("model", "head"), [("smollm2-135m", (23, 2)), ("gemma3-270m", (11, 2))])
def test_a_needle_in_4096_varied_tokens(model: str, head: tuple[int, int], tmp_path: Path) -> None:
    lm = ag.load_model(model)
    assert lm.tokenizer is not None
    prompt = ag.tasks.needle(lm.tokenizer, length=4096, haystack="varied", seed=0)
    run = ag.capture(lm, prompt, store=tmp_path)

    fidelity = run.fidelity
    assert fidelity is not None
    assert fidelity.next_tokens_match
    assert fidelity.dense_answer_tokens_kept == fidelity.answer_tokens_kept == fidelity.answer_tokens == 7
    assert run.cost.pruned.causal >= 0.93
    assert run.cost.run_bytes <= 6.5 * run.cost.edges
    assert ag.verify_run(run.path).ok

    without_sink = ag.influence(run.graph(sink="exclude"))
    assert without_sink.rank_of("needle", before="question") <= 1
    assert ag.influence(run.graph()).rank_of("needle", before="question") <= 1

    graph = run.graph()
    strongest = ag.throughput(graph, "needle", "output", top=30).to_polars()
    into_target = strongest.filter(strongest["target"].is_not_null())
    assert head in into_target.select("layer", "head").rows()
    best = ag.routes(graph, "needle", "output", k=1).routes[0]
    assert best.hops[-1].target == len(prompt) - 1


@pytest.mark.model
def test_span_sums_show_the_retrieval_head(tmp_path: Path) -> None:
    """Of its layer's heads, the one that copies the value puts most of the answer prefix's attention on the needle."""
    lm = ag.load_model("smollm2-135m")
    assert lm.tokenizer is not None
    prompt = ag.tasks.needle(lm.tokenizer, length=1024, haystack="varied", seed=0)
    run = ag.capture(lm, prompt, ag.StreamConfig(n_match=0), store=tmp_path)
    names = [span.name for span in prompt.spans]
    pairs = run.span_edges().filter(query_span=names.index("answer_prefix"), layer=23).collect()
    on_needle, on_value = (
        dict(pairs.filter(key_span=names.index(name)).select("head", "mass").rows()) for name in ("needle", "value")
    )
    assert max(on_needle, key=lambda head: on_needle[head]) == 2
    assert all(on_value[head] <= on_needle[head] * (1 + 2**-11) for head in on_value)
