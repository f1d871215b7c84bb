"""Capture: one forward pass of a model, pruned while it runs, recorded as a graph, committed to a store.

1. Check prompt, settings and memory, and claim a place in the store, before anything slow happens.
2. Dense reference: the model with all its attention says which tokens come next (left out with ``n_match=0``).
3. Budget, where it is ``"auto"``: pruned passes look for the smallest that keeps these tokens (`budget.py`).
4. Captured pass: every layer attends over the blocks that the selector keeps, and is written as soon as it is through.
   With ``forward="dense"`` the layer's whole attention flows on instead, and the kept blocks are only recorded.
5. Sparse check: the pruned model reads prompt and answer once more, and is compared with the reference. Where this
   contradicts the budget search, the search goes on, and the captured pass is done again.
6. Commit: tokens, blocks, spans, manifest; then the run folder appears under its final name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from attngraph.capture.attention import replaced_attention, streamed_attention
from attngraph.capture.budget import BudgetSearch, probe_of
from attngraph.capture.completion import States, agreement, predicting
from attngraph.capture.cost import Tally, dense_cache_bytes, peak_rss_bytes
from attngraph.capture.description import describe, prompt_tables
from attngraph.capture.estimate import check_memory
from attngraph.capture.fidelity import Forward, Reference, compare, dense_reference, logits_after, tokens_to_read
from attngraph.capture.heap import kept_heap
from attngraph.capture.outcome import outcome_of
from attngraph.capture.progress import Passes
from attngraph.capture.recorder import Recorder
from attngraph.capture.shares import measured_shares
from attngraph.capture.sparse import SparseAttention
from attngraph.capture.targets import target_positions
from attngraph.config import StreamConfig
from attngraph.errors import PromptError
from attngraph.models import LanguageModel
from attngraph.models.structure import decoder_layers, text_config
from attngraph.store import BudgetProbe, Cost, FoundBudget, Run, RunWriter
from attngraph.tasks.prompt import Prompt

DENSE, CAPTURE, CHECK = "dense reference", "capture", "sparse check"
"""Names of the forward passes, in order."""


def capture(
    lm: LanguageModel,
    prompt: Prompt,
    config: StreamConfig | None = None,
    *,
    store: str | Path = "runs",
    progress: bool | None = None,
) -> Run:
    """Run the model on the prompt, pruned, and commit the run to the store.

    Parameters
    ----------
    lm
        A model from `load_model` or `LanguageModel.from_parts`.
    prompt
        Token ids, and spans whose pairwise attention is summed; its last token is a target always, others are where
        `StreamConfig.targets` names them. Its completion, if it has one, is read in the same pass.
    config
        What to keep and how to search; the defaults of `StreamConfig` if left out.
    store
        Folder of runs; made if missing.
    progress
        Show a progress bar on stderr; by default where stderr is a terminal.

    Returns
    -------
    Run
        Complete and on disk.

    Raises
    ------
    ConfigError, PromptError
        If settings and prompt don't go together, or the memory would not do; nothing has been computed or written.
    UnsupportedModelError
        If the model can't be traced faithfully.
    BudgetError
        If ``budget="auto"`` and no budget keeps the dense model's next tokens.
    StoreError
        If the store can't be written.
    """
    config = config or StreamConfig()
    ids = prompt.token_ids
    most = config.budget_for(len(ids))
    prompt.check_vocabulary(lm.vocabulary_size)
    layers = decoder_layers(lm.model)
    targets = target_positions(prompt, config.targets)
    answer = () if lm.tokenizer is None else prompt.answer_token_ids(lm.tokenizer)
    n_match = _tokens_to_match(config, answer)
    check_memory(lm, prompt, config, targets, max(n_match, len(answer), 1) - 1)
    heads = text_config(lm.model).num_attention_heads
    along_dense, along_sparse = (States(lm.model, predicting(prompt.completion)) for _ in range(2))

    def settings(budget: int) -> StreamConfig:
        # Where all blocks of the prompt are kept, those of the tokens read after it are too.
        return replace(config, budget="all" if budget == config.blocks(len(ids)) else budget)

    def dense(following: Sequence[int]) -> Tensor:
        with passes.measured(DENSE), replaced_attention(lm.model, streamed_attention):
            return logits_after(lm.model, ids, following)

    def read_pruned(budget: int, following: tuple[int, ...]) -> tuple[Tensor, Tally]:
        # Every position that predicts is a target, as it would be in a capture of its own.
        tally, at = Tally(), (*targets, *range(len(ids), len(ids) + len(following)))
        pruned = replace(settings(budget), forward="sparse", audit="none")
        searching = config.budget == "auto"  # else nobody asks what this pass keeps, and it isn't weighed
        attention = SparseAttention(pruned, at, record=tally.attended if searching else None)
        label = f"try budget {budget}" if searching else None
        with passes.measured(CHECK, label), replaced_attention(lm.model, attention):
            return logits_after(lm.model, ids, following), tally

    sparse = cache(read_pruned)

    def checked(budget: int) -> Forward:
        return lambda following: sparse(budget, tuple(following))[0]

    def probed(budget: int, reference: Reference, read: tuple[int, ...]) -> BudgetProbe:
        logits, tally = sparse(budget, read)
        return probe_of(budget, reference, logits, tally.pruned(heads))

    def captured(budget: int, recorder: Recorder) -> Tensor:
        spans = [(span.start, span.end) for span in prompt.spans]
        attention = SparseAttention(settings(budget), targets, spans, recorder.attended)
        with (
            passes.measured(CAPTURE),
            recorder,
            replaced_attention(lm.model, attention),
            measured_shares(layers, recorder.finish),
            along_sparse.kept(),
        ):
            return logits_after(lm.model, ids, ())[0]

    with kept_heap(), RunWriter(store) as writer, Passes(layers, progress) as passes:
        with along_dense.kept():
            reference = dense_reference(dense, n_match, answer) if n_match else None
        search: BudgetSearch | None = None
        if reference is not None and config.budget == "auto":
            read = tokens_to_read(reference, answer)
            search = BudgetSearch(partial(probed, reference=reference, read=read), most)
        while True:
            budget = search.smallest() if search else most
            recorder = Recorder(writer, targets)
            logits = captured(budget, recorder)
            fidelity, outcome = None, None
            if reference is not None:
                if config.forward == "dense":
                    # Fidelity is the pruned model's, and that has not been run on the prompt alone yet.
                    with along_sparse.kept():
                        logits = read_pruned(budget, ())[0][0]
                along = agreement(along_dense, along_sparse, lm.vocabulary_size)
                fidelity = compare(reference, logits, checked(budget), answer, along)
                observed_dense = config.forward == "dense"
                observed = reference.target if observed_dense else logits
                outcome = outcome_of(lm, prompt, answer, fidelity, observed, dense=observed_dense)
            if search is None or search.confirm(budget, fidelity, recorder.tally.pruned(heads)):
                break
            writer.restart()
        for table, columns in prompt_tables(lm.tokenizer, prompt, config.block_size).items():
            writer.append(table, columns)
        cost = _cost(lm, recorder, passes, len(ids))
        found = None if search is None else FoundBudget(blocks=budget, curve=search.curve)
        return writer.commit(describe(lm, prompt, answer, config, recorder, cost, fidelity, outcome, found))


def _tokens_to_match(config: StreamConfig, answer: Sequence[int]) -> int:
    if config.n_match != "answer":
        return config.n_match
    if not answer:
        raise PromptError(
            "n_match='answer' compares as many tokens as the answer has, but this prompt has no answer, or the model "
            "no tokenizer to read it; give the prompt an answer, or n_match a number."
        )
    return len(answer)


def _cost(lm: LanguageModel, recorder: Recorder, passes: Passes, tokens: int) -> Cost:
    heads, tally = text_config(lm.model).num_attention_heads, recorder.tally
    return Cost(
        capture_seconds=passes.seconds[CAPTURE][-1],
        dense_forward_seconds=passes.seconds[DENSE][0] if passes.seconds[DENSE] else None,
        fidelity_seconds=sum(passes.seconds[CHECK]) if passes.seconds[DENSE] else None,
        peak_rss_bytes=peak_rss_bytes(),
        dense_cache_bytes=dense_cache_bytes(len(tally.grids), heads, tokens, lm.model.dtype.itemsize),
        pruned=tally.pruned(heads),
    )
