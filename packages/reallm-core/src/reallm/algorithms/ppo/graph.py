"""The dataflow graph of proximal policy optimisation, a function of its configuration. Imports no torch."""

from __future__ import annotations

from reallm.algorithms.ppo.config import PPOConfig
from reallm.algorithms.rl.keys import ANSWERS, rollout_keys
from reallm.algorithms.rl.reward_calls import reward_calls
from reallm.specs import ModelFunctionCall


def graph(config: PPOConfig) -> list[ModelFunctionCall]:
    """The calls: the policy answers prompts; the answers are rewarded, and scored by reference and critic; then policy
    and critic are trained on them.

    Without a KL divergence there is no reference.
    """
    rollout = rollout_keys(config)
    values = ("values", "end_values") if config.ppo.truncated_reward == "bootstrap" else ("values",)
    calls = [ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), rollout), *reward_calls(config)]
    if config.ppo.kl_ctl:
        calls.append(ModelFunctionCall("ref_inf", "ref", "inference", ANSWERS, ("ref_logprobs",)))
    calls.append(ModelFunctionCall("critic_inf", "critic", "inference", ANSWERS, values))
    if config.ppo.old_logprobs == "inference" and config.ppo.optimizer_steps > 1:
        calls.append(ModelFunctionCall("actor_inf", "actor", "inference", ANSWERS, ("old_logprobs",)))
    scored = [key for call in calls[1:] for key in call.outputs]
    return [
        *calls,
        ModelFunctionCall("actor_train", "actor", "train_step", (*rollout, *scored)),
        ModelFunctionCall("critic_train", "critic", "train_step", (*rollout, *scored)),
    ]
