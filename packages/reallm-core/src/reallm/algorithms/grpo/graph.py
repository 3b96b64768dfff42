"""The dataflow graph of group-relative policy optimisation, a function of its configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.rl.keys import ANSWERS, GREEDY, rollout_keys
from reallm.algorithms.rl.reward_calls import reward_calls
from reallm.specs import ModelFunctionCall, WeightUpdate


def graph(config: GRPOConfig) -> list[ModelFunctionCall]:
    """The calls: the policy answers prompts, the answers are rewarded, and the policy is trained on them.

    The reference scores answers if the loss has a KL divergence. With a greedy baseline, the most likely answers are
    generated and rewarded as well.
    """
    rollout = rollout_keys(config)
    calls = [ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), rollout)]
    calls += reward_calls(config)
    if config.baseline == "greedy":
        greedy = tuple(f"{GREEDY}{key}" for key in ANSWERS)
        calls.append(ModelFunctionCall("greedy_gen", "actor", "generate", ("prompt_ids",), greedy))
        calls += reward_calls(config, GREEDY)
    if config.beta:
        calls.append(ModelFunctionCall("ref_inf", "ref", "inference", ANSWERS, ("ref_logprobs",)))
    if config.inference_keys:
        calls.append(ModelFunctionCall("actor_inf", "actor", "inference", ANSWERS, config.inference_keys))
    scored = [key for call in calls[1:] if call.name != "greedy_gen" for key in call.outputs]
    updates: Sequence[WeightUpdate] = ()
    if config.sync_ref_model:
        updates = (WeightUpdate("ref", config.ref_model_sync_steps, config.ref_model_mixup_alpha),)
    return [
        *calls,
        ModelFunctionCall("actor_train", "actor", "train_step", (*rollout, *scored), updates=tuple(updates)),
    ]
