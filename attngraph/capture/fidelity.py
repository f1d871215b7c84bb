"""Does the sparse model still say what the dense one says?

Both models read the prompt followed by known tokens (teacher forcing) in one forward pass, and the logits from the
prompt's last token on are compared: greedy next tokens (Rosser et al. 2025 compare two), divergence and top-1 margin at
the target, and how many of the answer's tokens are still the first choice. Greedy tokens follow from teacher-forced
ones as long as these agree with what the model would have said, so a pass is repeated only where they do not. The first
token, the divergence and the margin are those of the captured pass, which reads the prompt alone. A completion is part
of what the models read, and is compared along the way (`completion.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attngraph.capture.completion import Agreement
from attngraph.store import Fidelity

Forward = Callable[[Sequence[int]], Tensor]
"""Tokens that follow the prompt -> logits [1 + len(tokens), vocabulary] from the prompt's last token on."""


class Reference(NamedTuple):
    """What the dense model says: `target` logits [vocabulary], `greedy` tokens, `answer` choices teacher-forced."""

    target: Tensor
    greedy: tuple[int, ...]
    answer: tuple[int, ...]


def logits_after(model: PreTrainedModel, token_ids: Sequence[int], following: Sequence[int]) -> Tensor:
    """Logits [1 + len(following), vocabulary], fp32, from the last of `token_ids` on, in one pass without a cache."""
    ids = torch.tensor([[*token_ids, *following]], device=model.device)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1 + len(following)).logits
    return logits[0].float()


def dense_reference(forward: Forward, n_match: int, answer: Sequence[int]) -> Reference:
    """The dense model's next-token logits, its `n_match` greedy tokens and its choices along `answer`.

    `forward` is called once where the greedy tokens begin with the answer, else up to `n_match` times.
    """
    following = tuple(answer)
    logits = forward(following[:-1])
    choices = tuple(logits.argmax(dim=-1).tolist())
    return Reference(logits[0], greedy_tokens(forward, n_match, following[:-1], choices), choices[: len(following)])


def greedy_tokens(forward: Forward, count: int, following: Sequence[int], choices: Sequence[int]) -> tuple[int, ...]:
    """`count` greedy tokens, given the `choices` made along the tokens `following` the prompt (one more than those)."""
    while True:
        sure = agreeing(choices, following) + 1
        greedy = tuple(choices[:sure])
        if sure >= count:
            return greedy[:count]
        following = greedy
        choices = forward(following).argmax(dim=-1).tolist()


def agreeing(choices: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of `tokens` are, from the first on, what was chosen."""
    return next(
        (i for i, (a, b) in enumerate(zip(choices, tokens, strict=False)) if a != b), min(len(choices), len(tokens))
    )


def compare(
    reference: Reference,
    sparse_target: Tensor,
    forward: Forward,
    answer: Sequence[int],
    completion: Agreement | None = None,
) -> Fidelity:
    """Fidelity of the sparse model.

    Parameters
    ----------
    reference
        From `dense_reference`.
    sparse_target
        Logits [vocabulary] of the captured pass at the prompt's last token.
    forward
        The sparse model; called once where the dense greedy tokens begin with the answer or there is no answer.
    answer
        The answer's tokens; may be empty.
    completion
        How far the models agree along the prompt's completion, where it has one.
    """
    n_match = len(reference.greedy)
    first = int(sparse_target.argmax())
    along_answer = list(forward(answer[:-1]).argmax(dim=-1).tolist())[: len(answer)] if answer else []
    following = tokens_to_read(reference, answer)
    if answer and following == tuple(answer[:-1]):
        along_greedy = along_answer
    else:
        along_greedy = forward(following).argmax(dim=-1).tolist() if following else [first]
    sparse = (first, *along_greedy[1:n_match])
    sparse = sparse[: agreeing(sparse, reference.greedy) + 1]
    return Fidelity(
        n_match=n_match,
        dense_tokens=reference.greedy,
        sparse_tokens=sparse[:n_match],
        next_tokens_match=sparse[:n_match] == reference.greedy,
        kl=divergence(reference.target, sparse_target),
        dense_margin=margin(reference.target),
        sparse_margin=margin(sparse_target),
        answer_tokens=len(answer) or None,
        answer_tokens_kept=_hits(along_answer, answer) if answer else None,
        dense_answer_tokens_kept=_hits(reference.answer, answer) if answer else None,
        dense_answer=reference.answer,
        sparse_answer=tuple(along_answer),
        completion_tokens=completion.tokens if completion else None,
        completion_agreement=completion.same if completion else None,
        completion_kl=completion.kl if completion else None,
    )


def tokens_to_read(reference: Reference, answer: Sequence[int]) -> tuple[int, ...]:
    """What a model reads after the prompt so that one pass shows whether it says the greedy tokens.

    All of them but the last; where the answer begins with these, the answer but for its last token, which tells both.
    """
    lead, forced = reference.greedy[:-1], tuple(answer[:-1])
    return forced if forced[: len(lead)] == lead else lead


def divergence(dense: Tensor, sparse: Tensor) -> float:
    """KL divergence, in nats, of the sparse next-token distribution from the dense one; logits [vocabulary]."""
    dense_log, sparse_log = dense.log_softmax(dim=-1), sparse.log_softmax(dim=-1)
    return float((dense_log.exp() * (dense_log - sparse_log)).sum().clamp_min(0))


def margin(logits: Tensor) -> float:
    """Top-1 minus top-2 log-probability, in nats."""
    best = logits.log_softmax(dim=-1).topk(2).values
    return float(best[0] - best[1])


def _hits(choices: Sequence[int], tokens: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(choices, tokens, strict=True))
