"""Configuration and graph of `reallm my-remax`. Imports no torch."""

from dataclasses import dataclass, field

from reallm import ModelFunctionCall
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.keys import ANSWERS, GREEDY, rollout_keys
from reallm.algorithms.rl.reward_calls import reward_calls
from reallm.config.args import SamplingArgs


@dataclass(frozen=True)
class RemaxConfig(RewardedConfig):
    """The keys of rollouts and rewards; ReMax has none of its own."""

    gen: SamplingArgs = field(default_factory=SamplingArgs, metadata={"help": "how answers are sampled in training"})

    @property
    def sampling(self) -> SamplingArgs:
        """How answers are sampled in training."""
        return self.gen


def calls(config: RemaxConfig) -> list[ModelFunctionCall]:
    """Answer each prompt twice, once by the most likely tokens; reward both answers; train on the sampled one."""
    rollout, greedy = rollout_keys(config), tuple(f"{GREEDY}{key}" for key in ANSWERS)
    rewards = [*reward_calls(config), *reward_calls(config, GREEDY)]
    scored = [key for call in rewards for key in call.outputs]
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), rollout),
        ModelFunctionCall("greedy_gen", "actor", "generate", ("prompt_ids",), greedy),
        *rewards,
        ModelFunctionCall("actor_train", "actor", "train_step", (*rollout, *scored)),
    ]
