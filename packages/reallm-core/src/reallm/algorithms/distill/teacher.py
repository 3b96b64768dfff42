"""The teacher, which says how likely it finds tokens, and what the student's answers are compared with it by.

Shapes: T packed tokens, N tokens of answers, K tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.distill.graph import LOG_RATIOS, SAMPLED, TOP
from reallm.algorithms.distill.scored_tokens import scored_lengths, scored_mask
from reallm.algorithms.rl.rollout import sequences
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.logprobs import forward_packed
from reallm.model.inputs import as_tokens
from reallm.model.linear_cross_entropy import next_token_targets


class TeacherInterface:
    """The teacher, which is never trained."""

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        self.precompute_key = [config.top_k, config.temperature]

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """The keys of `TOP`, unless the gradient is that of a policy, and of the student's own answers `SAMPLED`, for
        each token of answers."""
        n_tokens = min(max(context.tokenizer.get_vocab().values()) + 1, model.config.vocab_size)
        network, config = model.network, self._config
        k = 0 if config.policy_gradient else min(config.top_k or n_tokens, n_tokens)

        n_values = (2 * k + 1 if k else 0) + config.on_policy

        def per_token(hidden: Tensor, tokens: Tensor, bounds: Tensor, mask: Tensor) -> Tensor:
            predicting, targets = next_token_targets(tokens, bounds, mask)
            hidden = hidden[predicting]
            values = torch.zeros(len(tokens), n_values, dtype=torch.float32, device=tokens.device)
            columns: list[Tensor] = []
            if k:
                top = network.top_k(hidden, k, config.temperature, n_tokens)
                columns += [top.tokens, top.logprobs, top.rest[:, None]]  # float32 has all whole numbers below 2^24
            if config.on_policy:
                columns.append(network.logprobs(hidden, targets, config.gen.temperature)[:, None])
            found = torch.cat([column.float() for column in columns], dim=1)
            values[predicting + 1] = found
            return values

        mask, bounds = scored_mask(batch), cu_seqlens(batch, "input_ids")
        values = forward_packed(
            network,
            as_tokens(batch["input_ids"], model.config.vocab_size),
            bounds,
            per_token,
            mask=mask,
            n_values=n_values,
            mesh=model.mesh,
            max_tokens=context.max_tokens_per_microbatch,
        )
        scored = values[mask.to(values.device)].cpu()
        fields: dict[str, Tensor] = {}
        if k:
            fields |= zip(TOP, (scored[:, :k].int(), scored[:, k : 2 * k], scored[:, 2 * k]), strict=True)
        if config.on_policy:
            fields[SAMPLED] = scored[:, -1]
        return NamedArray(**fields).with_metadata(seqlens=dict.fromkeys(fields, scored_lengths(batch)))


class ComparisonInterface:
    """Compares what student and teacher say of the student's answers; `eval/kl` is the mean over answers."""

    metric_names = ("kl",)

    def __init__(self, config: DistillConfig) -> None:
        """No setting of the configuration changes it."""

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """`LOG_RATIOS`, whose mean over sampled tokens estimates KL(student || teacher)."""
        ratios = NamedArray(**{LOG_RATIOS: batch["logprobs"] - batch[SAMPLED]})
        return ratios.with_metadata(seqlens={LOG_RATIOS: batch.metadata["seqlens"][SAMPLED]})

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """`kl`: of each answer, the mean of the log-ratios of its tokens, in nats; answers without tokens have none."""
        return {"kl": [float(one.mean()) for one in sequences(batch, LOG_RATIOS) if len(one)]}
