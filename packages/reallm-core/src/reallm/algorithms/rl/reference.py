"""Interface of the reference that a policy is held to."""

from __future__ import annotations

from reallm.algorithms.answer_scores import answer_token_logprobs_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RewardedConfig
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel


class ReferenceInterface:
    """The reference, which scores the tokens of answers and is never trained."""

    def __init__(self, config: RewardedConfig) -> None:
        self._temperature = config.sampling.temperature

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`ref_logprobs` [N] float32 of the answers' tokens, at the temperature of sampling."""
        return answer_token_logprobs_field(
            model, batch, "ref_logprobs", context.max_tokens_per_microbatch, self._temperature
        )
