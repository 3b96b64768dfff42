"""Interface of a model that rewards answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RewardedConfig
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel


class RewardModelInterface:
    """A reward model: the score of an answer is that of its last token, as in `reallm rw`.

    That is the end-of-sequence token of an answer that has ended; one that was cut has none.
    """

    metric_names = ("reward",)

    def __init__(self, config: RewardedConfig) -> None:
        self._is_alone = not config.reward.functions

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`scores` [S] float32."""
        bounds = cu_seqlens(batch, "input_ids")
        scores = model.scores(batch["input_ids"], bounds, max_tokens=context.max_tokens_per_microbatch).cpu()
        seqlens = [(1,) * len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
        return NamedArray(scores=scores[bounds[1:].long() - 1]).with_metadata(seqlens={"scores": seqlens})

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """`eval/reward`: the mean score of the answers to validation prompts."""
        return {"reward": batch["scores"].tolist()}
