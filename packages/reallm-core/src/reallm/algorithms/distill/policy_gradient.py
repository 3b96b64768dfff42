"""Distillation by policy gradient: the student is rewarded for tokens that the teacher finds likelier than itself.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

import torch

from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.distill.graph import LOG_RATIOS
from reallm.algorithms.rl.aggregation import token_weights
from reallm.algorithms.rl.keys import rollout_keys
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.data.batching import split_groups
from reallm.data.namedarray import NamedArray
from reallm.training.sequence_scores import answer_lengths


def policy_objective(config: DistillConfig) -> PolicyObjective:
    """The loss: the clipped surrogate, whose ratio is 1 unless answers are older."""
    return PolicyObjective(PolicyLossSettings(temperature=config.gen.temperature))


def rewarded_tokens(batch: NamedArray, config: DistillConfig) -> NamedArray:
    """The answers, a sample each, with what `PolicyObjective` reads.

    The advantage of a token is its reward, log(teacher / student), whose mean is -KL(student || teacher); tokens before
    it are not credited. The loss is a mean over all tokens.
    """
    answers = split_groups(batch, dict.fromkeys((*rollout_keys(config), LOG_RATIOS), 1))
    numbers, mask = answer_lengths(answers), torch.ones_like(answers[LOG_RATIOS], dtype=torch.bool)
    groups = torch.tensor(answers.metadata["groups"])
    weights, norms = token_weights("tokens", numbers, groups, mask, config.gen.max_new_tokens)
    fields = {"advantages": -answers[LOG_RATIOS].double(), "weights": weights}
    if config.async_steps:
        fields["old_logprobs"] = answers["logprobs"]
    seqlens = answers.metadata["seqlens"]
    sizes = {**dict.fromkeys(fields, seqlens["logprobs"]), "norms": seqlens["prompt_lens"]}
    return answers.with_fields(**fields, norms=norms).with_metadata(seqlens={**seqlens, **sizes})
