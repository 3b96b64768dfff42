"""How the losses of tokens become the loss of an optimizer step: what each token weighs.

The loss is `sum(weights * losses) / sum(norms)` over all tokens and all answers of the optimizer step, so that neither
micro-batches nor ranks change it.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reallm.training.sequence_scores import sum_answers

Mean = Literal["tokens", "answers", "prompts", "answer_sums", "longest_answers"]
"""What losses are averaged over: all tokens (DAPO, arXiv 2503.14476), answers by the mean of their tokens (GRPO,
2402.03300), prompts by the mean of the tokens of their answers, answers by the sum of their tokens, or answers as if
all were as long as allowed (Dr. GRPO, 2503.20783)."""


def token_weights(mean: Mean, lengths: Tensor, groups: Tensor, mask: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """What tokens weigh, [N] float64, and what an answer adds to the denominator, [S] float64.

    Args:
        mean: what losses are averaged over.
        lengths: [S] int64, tokens of each answer.
        groups: [S] int64, the prompt of each answer.
        mask: [N] bool, the tokens that are trained on.
        max_length: tokens of the longest answer that is allowed.
    """
    trained = mask.double()
    counts = sum_answers(trained, lengths)
    if mean == "tokens":
        return trained, counts
    if mean == "answers":
        return trained / counts.clamp(min=1).repeat_interleave(lengths), torch.ones_like(counts)
    if mean == "answer_sums":
        return trained, torch.ones_like(counts)
    if mean == "longest_answers":
        return trained, torch.full_like(counts, max_length)
    numbers = torch.unique(groups, return_inverse=True)[1]

    def of_prompts(values: Tensor) -> Tensor:
        sums = torch.zeros(len(numbers), dtype=torch.float64, device=values.device).index_add(0, numbers, values)
        return sums[numbers]

    weights = trained / of_prompts(counts).clamp(min=1).repeat_interleave(lengths)
    return weights, 1 / of_prompts(torch.ones_like(counts))
