"""The policy of ReMax, arXiv 2310.10505.

Shapes: S answers, one to each prompt.
"""

import torch

from reallm import NamedArray, ReaLModel, TrainEngine, select
from reallm.algorithms.context import CallContext
from reallm.algorithms.interface import Example
from reallm.algorithms.rl.aggregation import token_weights
from reallm.algorithms.rl.generation import greedy_answers, planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.keys import GREEDY, rollout_keys
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.algorithms.rl.total_rewards import rewards_of
from reallm.data.namedarray import split
from reallm.training.sequence_scores import answer_lengths
from reallm_my_remax.config import RemaxConfig


class RemaxInterface(PolicyObjective):
    """Makes answers likelier that are rewarded more than the most likely answer to their prompt."""

    metric_names = (*PolicyObjective.metric_names, "reward", "greedy_reward")

    def __init__(self, config: RemaxConfig) -> None:
        super().__init__(PolicyLossSettings(temperature=config.gen.temperature))
        self._config = config

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """A sampled answer to each prompt, or in the call `greedy_gen` the most likely one."""
        answer = greedy_answers if context.call == "greedy_gen" else sample_answers
        return answer(model, batch, context, self._config)

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step, and the mean rewards of sampled and most likely answers."""
        rewards = {"reward": rewards_of(batch, self._config), "greedy_reward": rewards_of(batch, self._config, GREEDY)}
        means = {name: float(of.totals[of.any_given].mean()) for name, of in rewards.items() if of.any_given.any()}
        return engine.train_batch(batch, self) | means

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The answers that have a reward and a baseline, each token with the difference of the two as its advantage."""
        rewards, greedy = rewards_of(batch, self._config), rewards_of(batch, self._config, GREEDY)
        is_trained, sizes = rewards.any_given & greedy.any_given, answer_lengths(batch)
        of_tokens = is_trained.repeat_interleave(sizes)
        advantages = (rewards.totals - greedy.totals).repeat_interleave(sizes)
        weights, norms = token_weights("answer_sums", sizes, torch.arange(len(sizes)), of_tokens, 0)
        answers = split(batch, [rollout_keys(self._config)])[0]
        seqlens = dict(answers.metadata["seqlens"])
        seqlens |= dict.fromkeys(("advantages", "weights"), seqlens["logprobs"]) | {"norms": seqlens["prompt_lens"]}
        whole = answers.with_fields(advantages=advantages, weights=weights, norms=norms).with_metadata(seqlens=seqlens)
        return select(whole, torch.nonzero(is_trained).flatten().tolist())

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest answer with its prompt."""
        return planned_tokens(sample, self._config)

    def planned_kv_tokens(self, batch_size: int) -> int:
        """The most tokens whose keys and values are held at once in generation."""
        return planned_kv_tokens(batch_size, self._config)

    def example(self, sample: NamedArray) -> Example:
        """A prompt whose answer is shown to people at each evaluation."""
        return Example(sample["prompt_ids"].tolist())
