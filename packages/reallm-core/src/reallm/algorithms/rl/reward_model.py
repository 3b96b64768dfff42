"""Interface of a model that rewards answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.keys import GREEDY
from reallm.algorithms.rl.rollout import with_prefix, without_prefix
from reallm.algorithms.rl.total_rewards import reward_names
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel


class RewardModelInterface:
    """A reward model: the score of an answer is that of its last token, as in `reallm rw`.

    That is the end-of-sequence token of an answer that has ended; one that was cut has none.
    """

    metric_names = ("reward", "rewards/*/mean")

    def __init__(self, config: RewardedConfig) -> None:
        self._names, self._weights = reward_names(config), config.reward_weights or [1.0]

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`scores` [S] float32, or `greedy_scores` of the most likely answers."""
        if f"{GREEDY}input_ids" in batch:
            return with_prefix(self.inference(model, without_prefix(batch, GREEDY), context), GREEDY)
        bounds = cu_seqlens(batch, "input_ids")
        scores = model.scores(batch["input_ids"], bounds, max_tokens=context.max_tokens_per_microbatch).cpu()
        seqlens = [(1,) * len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
        return NamedArray(scores=scores[bounds[1:].long() - 1]).with_metadata(seqlens={"scores": seqlens})

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """The scores of answers to validation prompts, times their weight, as a part of `eval/reward`; beside functions
        also alone, as `eval/rewards/reward_model/mean`."""
        if context.call.startswith(GREEDY):
            return {}
        scores: list[float] = batch["scores"].double().tolist()
        total = {"reward": [self._weights[-1] * score for score in scores]}
        return total if len(self._names) == 1 else {**total, f"rewards/{self._names[-1]}/mean": scores}
