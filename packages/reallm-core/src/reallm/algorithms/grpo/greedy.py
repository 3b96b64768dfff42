"""Interfaces that reward the most likely answers too, which are the baseline of `baseline=greedy` (ReMax)."""

from __future__ import annotations

from reallm.algorithms.context import CallContext
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.grpo.provisional import RewardFunctionsInterface
from reallm.algorithms.rl.keys import GREEDY
from reallm.algorithms.rl.rollout import with_prefix, without_prefix
from reallm.data.namedarray import NamedArray


class GreedyRewardFunctionsInterface:
    """Rewards the most likely answers by the same functions as others; an evaluation does without them."""

    def __init__(self, config: GRPOConfig) -> None:
        self._functions = RewardFunctionsInterface(config)

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """`greedy_reward_parts` and `greedy_reward_given`."""
        return with_prefix(self._functions.reward(without_prefix(batch, GREEDY), context), GREEDY)
