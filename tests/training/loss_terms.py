"""Objectives of two terms that prepare their batch, for groups of sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reallm.data.batching import gather, lengths, n_samples, split_groups
from reallm.data.namedarray import NamedArray
from reallm.model.transformer import Transformer
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import answer_lengths, answer_logprobs, last_token_scores

VOCAB_SIZE = 50


def group(row: int, *sequences: tuple[int, int]) -> NamedArray:
    """A sample of sequences of (tokens, prompt tokens), with a reward for each."""
    generator = torch.Generator().manual_seed(row)
    sizes = [n_tokens for n_tokens, _ in sequences]
    sample = NamedArray(
        input_ids=torch.randint(0, VOCAB_SIZE, (sum(sizes),), generator=generator),
        prompt_lens=torch.tensor([n_prompt for _, n_prompt in sequences]),
        rewards=torch.rand(len(sequences), dtype=torch.float64, generator=generator),
    )
    one = [[1] * len(sequences)]
    return sample.with_metadata(seqlens={"input_ids": [sizes], "prompt_lens": one, "rewards": one}, ids=[f"row-{row}"])


# groups of several sizes, sequences without an answer, fewer samples than ranks
GROUPS = [
    gather(
        [
            group(0, (9, 2), (30, 20), (17, 4), (8, 3)),
            group(1, (12, 3), (4, 4)),
            group(2, (25, 24), (21, 1), (2, 1), (7, 5)),
            group(3, (6, 2), (19, 2)),
        ]
    ),
    gather([group(4, (12, 3), (9, 1)), group(5, (25, 10), (25, 20), (6, 5), (11, 4))]),
    gather([group(6, (14, 4), (10, 3))]),
]


@dataclass
class WeightedAnswers:
    """Log-probabilities of answer tokens times advantages, a mean over tokens, and that of answers, over good ones.

    Advantages are normalised over the whole batch. A third term has no weight in any batch, and is NaN.
    """

    unit: int = 1
    """Sequences that stay together."""
    dropout: bool = False

    def prepare(self, batch: NamedArray) -> NamedArray:
        rewards: Tensor = batch["rewards"]
        advantages = ((rewards - rewards.mean()) / rewards.std()).float()
        seqlens = batch.metadata["seqlens"]
        batch = batch.with_fields(advantages=advantages).with_metadata(
            seqlens={**seqlens, "advantages": seqlens["rewards"]}
        )
        return split_groups(batch, dict.fromkeys(batch, self.unit))

    def n_tokens(self, batch: NamedArray) -> list[int]:
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> dict[str, float]:
        good = batch["advantages"] > 0
        return {"policy": int(answer_lengths(batch).sum()), "good": int(good.sum()), "absent": 0}

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        answers, advantages = answer_logprobs(network, batch), batch["advantages"]
        policy = -(answers.of_tokens * advantages[answers.sequences]).sum()
        good = -answers.sums[advantages > 0].sum()
        stats = {"answers": (answers.lengths > 0).sum()}
        return LossOutput({"policy": policy, "good": good, "absent": good.detach() * math.nan}, stats)

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {**totals.means, "loss": totals.loss, **totals.stats, **totals.loss_weights}

    def reference(self, model: Any, batch: NamedArray) -> Tensor:
        """The loss from plain logits of each sequence of the batch."""
        rewards, start, policy, good, n_tokens = batch["rewards"], 0, [], [], 0
        advantages = (rewards - rewards.mean()) / rewards.std()
        sizes = [n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]
        for size, n_prompt, advantage in zip(sizes, batch["prompt_lens"].tolist(), advantages.float(), strict=True):
            tokens = batch["input_ids"][start : start + size]
            start += size
            logprobs = model(tokens, torch.tensor([0, size])).log_softmax(dim=-1)[:-1]
            answer = logprobs.gather(1, tokens[1:, None])[n_prompt - 1 :, 0]
            policy.append(-advantage * answer.sum())
            n_tokens += len(answer)
            if advantage > 0:
                good.append(-answer.sum())
        return torch.stack(policy).sum() / n_tokens + torch.stack(good).mean()


class ScoredPairs:
    """Pairs of consecutive sequences: a preference with a mean over pairs, and the squares of all scores over samples.

    The weight of a pair is 1 / the number of pairs of its sample, which its batch is prepared with.
    """

    dropout = False

    def prepare(self, batch: NamedArray) -> NamedArray:
        seqlens = batch.metadata["seqlens"]
        n_pairs = torch.tensor([len(sample) // 2 for sample in seqlens["input_ids"]])
        weights = (1.0 / n_pairs).repeat_interleave(n_pairs)
        batch = batch.with_fields(weights=weights).with_metadata(
            seqlens={**seqlens, "weights": [[1] * n for n in n_pairs.tolist()]}
        )
        return split_groups(batch, {name: 1 if name == "weights" else 2 for name in batch})

    def n_tokens(self, batch: NamedArray) -> list[int]:
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> dict[str, float]:
        return {"preference": float(batch["weights"].double().sum()), "center": n_samples(batch)}

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        scores = last_token_scores(network, batch).view(-1, 2)
        preference = -(batch["weights"] * F.logsigmoid(scores[:, 0] - scores[:, 1])).sum()
        return LossOutput(
            {"preference": preference, "center": scores.square().sum()},
            {"correct": (scores[:, 0] > scores[:, 1]).sum()},
        )

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {**totals.means, "loss": totals.loss, **totals.stats, **totals.loss_weights}

    def reference(self, model: Any, batch: NamedArray) -> Tensor:
        """The loss from the scores of each sequence of the batch."""
        start, preferences, squares = 0, [], []
        for sample in batch.metadata["seqlens"]["input_ids"]:
            scores = []
            for size in sample:
                scores.append(model(batch["input_ids"][start : start + size], torch.tensor([0, size]))[-1])
                start += size
            pairs = torch.stack(scores).view(-1, 2)
            preferences.append(-F.logsigmoid(pairs[:, 0] - pairs[:, 1]).mean())
            squares += [pair.square().sum() for pair in pairs]
        return torch.stack(preferences).mean() + torch.stack(squares).mean()


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "answers": WeightedAnswers,
    "pairs-of-answers": lambda: WeightedAnswers(unit=2),
    "scores": ScoredPairs,
}
