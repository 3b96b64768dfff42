"""The dataflow graph of distillation, a function of its configuration. Imports no torch."""

from __future__ import annotations

from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.rl.keys import ANSWERS, rollout_keys
from reallm.specs import ModelFunctionCall

ROW = ("input_ids", "loss_mask")
TOP = ("top_tokens", "top_logprobs", "top_rest")
"""Keys of the teacher's distribution of each of the N tokens of answers: its K most likely `top_tokens` [N, K] int32,
their `top_logprobs` [N, K] float32, and `top_rest` [N] float32, the probability of all others together."""
SAMPLED = "teacher_logprobs"
"""Key of the log-probabilities [N] float32 of the student's tokens under the teacher, at the temperature of
sampling."""
LOG_RATIOS = "log_ratios"
"""Key of their log-probabilities [N] float32 under the student, less those under the teacher."""


def graph(config: DistillConfig) -> list[ModelFunctionCall]:
    """The calls: the student answers, if it learns from its own answers, the teacher scores, and the student learns."""
    if not config.on_policy:
        return [
            ModelFunctionCall("teacher_inf", "teacher", "inference", ROW, TOP, config.caches_teacher),
            ModelFunctionCall("actor_train", "actor", "train_step", (*ROW, *TOP)),
        ]
    rollout, top = rollout_keys(config), () if config.policy_gradient else TOP
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), rollout),
        ModelFunctionCall("teacher_inf", "teacher", "inference", ANSWERS, (*top, SAMPLED)),
        ModelFunctionCall("comparison", "comparison", "reward", ("logprobs", SAMPLED), (LOG_RATIOS,)),
        ModelFunctionCall("actor_train", "actor", "train_step", (*rollout, *top, LOG_RATIOS)),
    ]
