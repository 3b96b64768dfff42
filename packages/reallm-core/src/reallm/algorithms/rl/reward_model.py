"""Interface of a model that rewards answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.keys import GREEDY
from reallm.algorithms.rl.rollout import with_prefix, without_prefix
from reallm.algorithms.rl.total_rewards import REWARD_MODEL
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel


class RewardModelInterface:
    """A reward model: the score of an answer is that of its last token, as in `reallm rw`.

    That is the end-of-sequence token of an answer that has ended; one that was cut has none.
    """

    metric_names = ("reward", REWARD_MODEL)

    def __init__(self, config: RewardedConfig) -> None:
        self._metric = REWARD_MODEL if config.reward.functions else "reward"

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`scores` [S] float32, or `greedy_scores` of the most likely answers."""
        if f"{GREEDY}input_ids" in batch:
            return with_prefix(self.inference(model, without_prefix(batch, GREEDY), context), GREEDY)
        bounds = cu_seqlens(batch, "input_ids")
        scores = model.scores(batch["input_ids"], bounds, max_tokens=context.max_tokens_per_microbatch).cpu()
        seqlens = [(1,) * len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
        return NamedArray(scores=scores[bounds[1:].long() - 1]).with_metadata(seqlens={"scores": seqlens})

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """`eval/reward`: the mean score of the answers to validation prompts; beside functions, `eval/reward_model`."""
        return {} if context.call.startswith(GREEDY) else {self._metric: batch["scores"].tolist()}
