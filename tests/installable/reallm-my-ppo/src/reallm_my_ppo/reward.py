"""The interface of the reward model."""

from reallm import NamedArray, ReaLModel
from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.reward_model import RewardModelInterface
from reallm.training.sequence_scores import answer_lengths
from reallm_my_ppo.config import MyPPOConfig


class ShortAnswerInterface(RewardModelInterface):
    """A reward model that takes off a little for each token."""

    def __init__(self, config: MyPPOConfig) -> None:
        super().__init__(config)
        self._token_cost = config.token_cost

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`scores` [S] float32 of S answers."""
        found = super().inference(model, batch, context)
        return found.with_fields(scores=found["scores"] - self._token_cost * answer_lengths(batch))
