"""budget="auto": the search by itself, against predicates of any shape, and in captures of tiny models."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attngraph as ag
from attngraph.capture.budget import NEIGHBOURS, START, BudgetSearch, probe_of, smallest_match
from attngraph.capture.fidelity import Reference, tokens_to_read
from attngraph.config import FORCED_BLOCKS
from attngraph.errors import BudgetError, ConfigError, PromptError
from attngraph.store import BudgetProbe, Fidelity, Pruned
from tests.attngraph.test_capture_fidelity import passes
from tests.attngraph.tiny_models import random_prompt, tiny, word_tokenizer, words

TOKENS = 150
BLOCKS = 19
AUTO = ag.StreamConfig(block_size=8, budget="auto", first_layers=0, exact_tail=0)


@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 300), st.integers(1, 20))
def test_the_smallest_of_a_monotone_predicate_is_found_in_logarithmic_time(
    least: int, more: int, needed: int, start: int
) -> None:
    asked: list[int] = []

    def matches(budget: int) -> bool:
        asked.append(budget)
        return budget >= needed

    most = least + more
    found = smallest_match(matches, least, most, start)
    assert found == (None if needed > most else max(least, needed))
    assert all(least <= budget <= most for budget in asked)
    # Doubling up to twice what is needed, bisecting its upper half, or all under `start`; the neighbours.
    assert len(set(asked)) <= 2 * max(start, needed).bit_length() + 2 + NEIGHBOURS


@given(st.data(), st.integers(1, 5), st.integers(1, 40))
def test_whatever_the_predicate_the_found_budget_matches_and_those_under_it_do_not(
    data: st.DataObject, least: int, more: int
) -> None:
    most = least + more
    matching = data.draw(st.sets(st.integers(least, most)))
    found = smallest_match(matching.__contains__, least, most)
    if found is None:
        # The largest is always tried before giving up.
        assert most not in matching
    else:
        assert found in matching
        assert not matching.intersection(range(max(least, found - NEIGHBOURS), found))


@pytest.mark.parametrize(
    ("matching", "found"),
    [
        ({3, 4, 5}, 3),
        ({4, 5}, 4),
        ({8, 9}, 8),  # 4 fails, 8 matches, 6 and 7 fail
        ({5, 8}, 8),  # 5 is under the two neighbours
        ({6, 8}, 6),  # found by bisection
        ({5, 7, 8}, 5),  # bisection finds 7, whose second neighbour matches
        ({10}, 10),  # the largest, after 4 and 8
        ({7}, None),  # between two budgets that were tried
        (set(), None),
    ],
)
def test_searches_by_hand(matching: set[int], found: int | None) -> None:
    assert smallest_match(matching.__contains__, 3, 10, 4) == found


class Curve:
    """A model whose next tokens match at these budgets; counts its passes."""

    def __init__(self, matching: set[int]) -> None:
        self.matching = matching
        self.passes: list[int] = []

    def probe(self, budget: int) -> BudgetProbe:
        self.passes.append(budget)
        return BudgetProbe(budget=budget, match=budget in self.matching, kl=1 / budget, margin=2.0, pruned=0.5)


def said(match: bool, kl: float) -> Fidelity:
    tokens = (1, 2)
    return Fidelity(
        n_match=2,
        dense_tokens=tokens,
        sparse_tokens=tokens if match else (1, 3),
        next_tokens_match=match,
        kl=kl,
        dense_margin=2.0,
        sparse_margin=1.5,
    )


PRUNED = Pruned(causal=0.9, square=0.95, visible=0.9)


@given(st.sets(st.integers(3, 30), min_size=1), st.sets(st.integers(3, 30)))
def test_a_capture_that_disagrees_sends_the_search_on_and_no_budget_is_probed_twice(
    matching: set[int], refused: set[int]
) -> None:
    model = Curve(matching)
    search = BudgetSearch(model.probe, 30)
    captured = []
    try:
        while True:
            budget = search.smallest()
            captured.append(budget)
            if search.confirm(budget, said(budget not in refused, 0.25), PRUNED):
                break
    except BudgetError:
        assert not captured or captured[-1] in refused
    else:
        assert budget in matching - refused
        assert search.curve[-1] == BudgetProbe(budget=budget, match=True, kl=0.25, margin=1.5, pruned=0.9)
    assert len(set(model.passes)) == len(model.passes) == len(search.curve)
    assert len(set(captured)) == len(captured)
    assert {probe.budget for probe in search.curve if probe.match} <= matching - (refused & set(captured))


def test_where_no_budget_matches_the_error_tells_the_curve() -> None:
    search = BudgetSearch(Curve(set()).probe, 20)
    with pytest.raises(BudgetError, match=r"all 20 blocks; tried 4 \(KL 0.25\), 8 \(KL 0.12\), 16 .*, 20 .* n_match"):
        search.smallest()


@pytest.mark.parametrize(
    ("greedy", "answer", "read"),
    [
        ((1, 2), (1, 2, 3), (1, 2)),  # the answer tells both
        ((1, 2, 3), (1, 2, 3), (1, 2)),
        ((1, 2, 3, 4), (1, 2, 3), (1, 2, 3)),  # more tokens than the answer has
        ((1, 2), (5, 2, 3), (1,)),
        ((1, 5), (1, 2, 3), (1, 2)),
        ((1,), (), ()),
    ],
)
def test_tokens_to_read(greedy: tuple, answer: tuple, read: tuple) -> None:
    assert tokens_to_read(Reference(torch.zeros(3), greedy, ()), answer) == read


def test_a_probe_by_hand() -> None:
    reference = Reference(torch.tensor([0.0, 1.0, 0.0]), (1, 2), ())
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [9.0, 0.0, 0.0]])
    probe = probe_of(5, reference, logits, PRUNED)
    assert (probe.budget, probe.match, probe.pruned) == (5, True, 0.9)
    assert probe.kl == pytest.approx(0, abs=1e-7)
    assert probe.margin == pytest.approx(1)
    assert not probe_of(5, reference, logits[[0, 0]], PRUNED).match
    assert not probe_of(5, reference, logits[[1, 1]], PRUNED).match


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
@pytest.mark.parametrize("n_match", [1, 2, 4])
@pytest.mark.parametrize("allocation", ["uniform", "mass"])
def test_auto_finds_a_budget_whose_run_is_that_of_the_budget_given(
    kind: str, n_match: int, allocation: str, tmp_path
) -> None:
    found = set()
    for seed in range(3):
        lm, prompt = tiny(kind, seed=seed, peak=2.5), random_prompt(TOKENS, seed=seed)
        config = replace(AUTO, n_match=n_match, allocation=allocation, mass_threshold=0.999)
        run, seen = passes(lm, prompt, config, tmp_path)
        assert ag.verify_run(run.path).problems == ()
        assert run.manifest.config == config
        assert run.fidelity.next_tokens_match
        curve = run.manifest.found_budget.curve
        budget = run.manifest.found_budget.blocks
        assert run.manifest.budget == budget == curve[-1].budget
        last = (run.fidelity.next_tokens_match, run.fidelity.kl, run.fidelity.sparse_margin, run.cost.pruned.causal)
        assert (curve[-1].match, curve[-1].kl, curve[-1].margin, curve[-1].pruned) == last
        tried = {probe.budget: probe for probe in curve}
        assert START in tried
        assert len(tried) == len(curve)
        for under in range(max(FORCED_BLOCKS, budget - NEIGHBOURS), budget):
            assert not tried[under].match
        # The dense model is asked once for each of its tokens; the pruned one once per budget, and to be captured.
        assert seen.count("dense") == n_match
        assert seen.count("sparse") >= len(curve) + 1

        given = ag.capture(lm, prompt, replace(config, budget=budget), store=tmp_path, progress=False)
        assert given.fidelity == run.fidelity
        assert given.cost.pruned == run.cost.pruned
        assert given.edges().collect().equals(run.edges().collect())
        assert given.manifest.found_budget is None
        assert given.manifest.budget == budget
        found.add(budget)
    assert len(ag.open_store(tmp_path)) == 6
    assert set(ag.open_store(tmp_path).runs()["budget"]) == found


def test_a_captured_pass_that_disagrees_with_its_probe_is_done_again(tmp_path) -> None:
    # Near-ties: what keeps the tokens in the pass that also reads them may not when the prompt is read alone.
    captures = []
    for seed in (9, 43, 53):
        lm, prompt = tiny("Gemma3Text", seed=seed, peak=2.5), random_prompt(TOKENS, seed=seed)
        config = replace(AUTO, selector="exact", n_match=3)
        run, seen = passes(lm, prompt, config, tmp_path)
        curve = run.manifest.found_budget.curve
        captures.append(seen.count("sparse") - len(curve))
        assert curve[-1].match and run.fidelity.next_tokens_match
        assert not any(probe.match for probe in curve if 0 < curve[-1].budget - probe.budget <= NEIGHBOURS)
        assert ag.verify_run(run.path).problems == ()
        given = ag.capture(lm, prompt, replace(config, budget=curve[-1].budget), store=tmp_path, progress=False)
        assert given.edges().collect().equals(run.edges().collect())
    assert max(captures) > 1


def test_a_threshold_too_low_for_any_budget_leaves_no_run(tmp_path) -> None:
    lm, prompt = tiny("Gemma3Text", peak=2.5), random_prompt(TOKENS)
    config = replace(AUTO, n_match=4, allocation="mass", mass_threshold=0.3)
    with pytest.raises(BudgetError, match=r"not even all 19 blocks; tried 4 .* raise mass_threshold"):
        ag.capture(lm, prompt, config, store=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_more_budget_prunes_less_along_the_curve(tmp_path) -> None:
    lm, prompt = tiny(seed=1, peak=2.5), random_prompt(TOKENS, seed=1)
    run = ag.capture(lm, prompt, replace(AUTO, n_match=4), store=tmp_path, progress=False)
    curve = sorted(run.manifest.found_budget.curve, key=lambda probe: probe.budget)
    assert len(curve) > 2
    for fewer, more in itertools.pairwise(curve):
        assert fewer.pruned > more.pruned


def test_an_answer_to_match_is_matched_whole(tmp_path) -> None:
    lm, prompt = tiny(tokenizer=word_tokenizer(), seed=2, peak=2.5), random_prompt(TOKENS, seed=2)
    ids = torch.tensor([prompt.token_ids])
    answer = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    answer = tuple(answer[0, TOKENS:].tolist())
    asked = ag.Prompt(prompt.token_ids, answer=words(answer))
    run, seen = passes(lm, asked, replace(AUTO, n_match="answer"), tmp_path)
    assert run.manifest.config.n_match == "answer"
    assert (run.fidelity.n_match, run.fidelity.answer_tokens_kept) == (5, 5)
    assert run.fidelity.dense_tokens == run.fidelity.sparse_tokens == run.fidelity.sparse_answer == answer
    # One dense pass reads the answer, and so does one pruned pass per budget: the check of the found one is among them.
    assert seen.count("dense") == 1
    assert seen.count("sparse") == len(run.manifest.found_budget.curve) + 1


def test_more_tokens_than_the_answer_has(tmp_path) -> None:
    lm = tiny(tokenizer=word_tokenizer(), seed=2, peak=2.5)
    prompt = ag.Prompt(random_prompt(TOKENS, seed=2).token_ids, answer="w5 w6")
    run = ag.capture(lm, prompt, replace(AUTO, n_match=6), store=tmp_path, progress=False)
    assert run.fidelity.next_tokens_match
    assert len(run.fidelity.sparse_tokens) == 6
    assert run.fidelity.answer_tokens == 2


def test_an_answer_to_match_must_be_there(tmp_path) -> None:
    config = replace(AUTO, n_match="answer")
    for lm, prompt in (
        (tiny(tokenizer=word_tokenizer()), random_prompt(TOKENS)),
        (tiny(), random_prompt(TOKENS, answer="w1 w2")),
    ):
        with pytest.raises(PromptError, match=r"n_match='answer' .* give the prompt an answer, or n_match a number"):
            ag.capture(lm, prompt, config, store=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r"budget='auto' compares next tokens .* n_match of at least 1, or a budget"):
        ag.StreamConfig(budget="auto", n_match=0)
    with pytest.raises(ConfigError, match="n_match='all' must be a whole number of at least 0, or 'answer'"):
        ag.StreamConfig(n_match="all")
    with pytest.raises(ConfigError, match="allocation='fair' is not one of uniform, mass"):
        ag.StreamConfig(allocation="fair")
    for threshold in (0.0, 1.0, -1, 2):
        with pytest.raises(ConfigError, match=r"mass_threshold=.* must be above 0 and below 1"):
            ag.StreamConfig(mass_threshold=threshold)


def test_settings_survive_their_json() -> None:
    config = ag.StreamConfig(budget="auto", n_match="answer", allocation="mass", mass_threshold=0.9)
    assert msgspec.json.decode(msgspec.json.encode(config), type=ag.StreamConfig) == config
