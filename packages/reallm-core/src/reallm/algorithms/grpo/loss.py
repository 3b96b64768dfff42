"""What the loss of `reallm grpo` reads of each answer.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

import torch

from reallm.algorithms.grpo.advantages import Judged
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray, split


def trained_answers(judged: Judged, config: GRPOConfig) -> NamedArray:
    """The answers that are trained on, a sample each.

    They have the answers' `input_ids`, `prompt_lens` and log-probabilities, and `advantages` [N] float64.
    """
    answers, lengths = judged.answers, judged.lengths
    of_tokens = {"advantages": judged.advantages.repeat_interleave(lengths)}
    if config.optimizer_steps > 1 and "old_logprobs" not in answers:
        of_tokens["old_logprobs"] = answers["logprobs"]
    seqlens = answers.metadata["seqlens"]
    sizes = {**seqlens, **dict.fromkeys(of_tokens, seqlens["logprobs"])}
    whole = answers.with_fields(**of_tokens).with_metadata(seqlens=sizes)
    read = [key for key in whole if key not in ("truncated", "reward_parts", "reward_given", "scores")]
    return select(split(whole, [read])[0], torch.nonzero(judged.is_trained).flatten().tolist())
