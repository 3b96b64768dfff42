"""The dataflow graph of preference optimisation, a function of its configuration. Imports no torch."""

from __future__ import annotations

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.loss_types import LOSS_TYPES
from reallm.specs import ModelFunctionCall, WeightUpdate

ANSWERS = ("input_ids", "prompt_lens")


def needs_policy_logprobs(config: DPOConfig) -> bool:
    """Whether something of the whole batch is computed from the policy's log-probabilities before its loss: the
    estimate of the KL divergence of kto, or the ranks of aot."""
    return any(name == "kto" or LOSS_TYPES[name].matched for name in config.loss_types)


def graph(config: DPOConfig) -> list[ModelFunctionCall]:
    """The calls: the reference scores answers, if the loss needs it, and the policy is trained.

    A reference that changes is not scored in advance.
    """
    calls, scored = [], []
    updates: tuple[WeightUpdate, ...] = ()
    if config.needs_reference:
        scored.append("ref_logprobs")
        calls.append(
            ModelFunctionCall("ref_inf", "ref", "inference", ANSWERS, ("ref_logprobs",), config.caches_reference)
        )
        if config.sync_ref_model:
            updates = (WeightUpdate("ref", config.ref_model_sync_steps, config.ref_model_mixup_alpha),)
    if needs_policy_logprobs(config):
        scored.append("policy_logprobs")
        calls.append(ModelFunctionCall("actor_inf", "actor", "inference", ANSWERS, ("policy_logprobs",)))
    inputs = (*ANSWERS, *(("labels",) if config.is_unpaired else ()), *scored)
    return [*calls, ModelFunctionCall("actor_train", "actor", "train_step", inputs, updates=updates)]
