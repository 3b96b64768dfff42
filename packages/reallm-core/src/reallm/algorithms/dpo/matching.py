"""Comparison by rank over a whole batch, as in alignment via optimal transport (AOT), cut into pairs.

The k-th lowest of one set of numbers is compared with the k-th lowest of another. What is matched follows from the
policy's log-probabilities before the step, so that a pair of the batch can be computed by itself: the number that it is
compared with is a constant there. Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from reallm.algorithms.losses import rank_matches
from reallm.algorithms.pairs import chosen_and_rejected, with_field
from reallm.data.namedarray import NamedArray

MARGINS, ANSWERS = "matched_margins", "matched_answers"
Loss = Callable[[Tensor, Tensor], Tensor]


def with_matches(pairs: NamedArray, kinds: Iterable[str | None]) -> NamedArray:
    """A batch of pairs with the log-ratios that those of each pair are compared with.

    `matched_margins` [P] are margins of the reference; `matched_answers` [2P] are log-ratios of rejected answers for
    chosen ones, and of chosen answers for rejected ones.
    """
    policy, ref = pairs["policy_logprobs"], pairs["ref_logprobs"]
    if "margins" in kinds:
        margins, ref_margins = ((chosen - rejected) for chosen, rejected in map(chosen_and_rejected, (policy, ref)))
        pairs = with_field(pairs, MARGINS, ref_margins[rank_matches(margins, ref_margins)])
    if "answers" in kinds:
        chosen, rejected = chosen_and_rejected(policy - ref)
        matches = [rejected[rank_matches(chosen, rejected)], chosen[rank_matches(rejected, chosen)]]
        pairs = with_field(pairs, ANSWERS, torch.stack(matches, dim=1).flatten(), each=2)
    return pairs


def matched_loss(kind: str, loss: Loss, logprobs: Tensor, batch: NamedArray) -> Tensor:
    """Losses [P] of pairs whose answers have the log-probabilities [2P].

    The gradient of each comparison of answers falls to the pairs of both; its value counts once, in the pair of the
    chosen answer.
    """
    if kind == "margins":
        chosen, rejected = chosen_and_rejected(logprobs)
        return loss(chosen - rejected, batch[MARGINS])
    chosen, rejected = chosen_and_rejected(logprobs - batch["ref_logprobs"])
    of_chosen, of_rejected = chosen_and_rejected(batch[ANSWERS])
    elsewhere = loss(of_rejected, rejected)
    return loss(chosen, of_chosen) + (elsewhere - elsewhere.detach())
