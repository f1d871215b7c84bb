"""Did the model solve the task? What was expected, what the dense and the pruned model said, and by how much.

Both say the answer teacher-forced: every token is the first choice after the expected tokens before it. An answer that
is right throughout is therefore what the model would have said freely.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from attngraph.models import LanguageModel
from attngraph.store import Fidelity, Outcome
from attngraph.tasks.prompt import Prompt
from attngraph.tasks.registry import score


def outcome_of(
    lm: LanguageModel, prompt: Prompt, answer: Sequence[int], fidelity: Fidelity, observed: Tensor, *, dense: bool
) -> Outcome | None:
    """The outcome of a run; None where the prompt has no answer.

    Parameters
    ----------
    lm, prompt
        What was captured.
    answer
        The answer's tokens.
    fidelity
        Holds what both models chose along the answer.
    observed
        Logits [vocabulary] at the prompt's last token, of the forward pass that the graph shows.
    dense
        Whether that pass is the dense model's.
    """
    if not answer or lm.tokenizer is None or prompt.answer is None:
        return None
    said = [str(lm.tokenizer.decode(list(tokens))) for tokens in (fidelity.dense_answer, fidelity.sparse_answer)]
    scores = [score(prompt.task, prompt.answer, text) for text in said]
    return Outcome(
        expected=prompt.answer,
        dense_answer=said[0],
        sparse_answer=said[1],
        dense_score=scores[0],
        sparse_score=scores[1],
        success=scores[0 if dense else 1] == 1.0,
        margin=answer_margin(observed, answer[0]),
    )


def answer_margin(logits: Tensor, token: int) -> float:
    """Log-probability of `token` minus that of the best other token, in nats; logits [vocabulary]."""
    others = logits.clone()
    others[token] = -float("inf")
    return float(logits[token] - others.max())
