"""Plain forms of what `algorithms.rl` will offer: advantages, and the clipped loss.

Shapes: S answers, F rewards of each, N tokens of answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.algorithms.rl.total_rewards import zero_std_groups
from reallm.data.batching import cu_seqlens, lengths
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import answer_lengths, answer_mask, hidden_states

EPS = 1e-4


def group_advantages(rewards: Tensor, groups: Tensor, *, baseline: str, scale: str, given: Tensor) -> Tensor:
    """Advantages [S] float64 within groups; 0 for answers without a reward and groups without variance."""
    numbers = torch.unique(groups, return_inverse=True)[1]
    n = torch.bincount(numbers, given.double())
    mean = torch.bincount(numbers, torch.where(given, rewards, 0.0)) / n.clamp(min=1)
    advantages = rewards - mean[numbers]
    std = (torch.bincount(numbers, torch.where(given, advantages**2, 0.0)) / (n - 1).clamp(min=1)).sqrt()
    if baseline == "others":
        advantages = advantages * (n / (n - 1).clamp(min=1))[numbers]
    if scale == "group":
        advantages = advantages / (std[numbers] + EPS)
    elif scale == "batch":
        advantages = advantages / (rewards[given].std() + EPS)
    return torch.where(given & ~zero_std_groups(rewards, given, groups), advantages, 0.0)


def batch_advantages(rewards: Tensor, *, scale: bool, given: Tensor) -> Tensor:
    """Advantages [S] float64 over the step."""
    found = rewards[given]
    if len(found) < 2:
        return torch.zeros_like(rewards)
    return torch.where(given, (rewards - found.mean()) / (found.std() + EPS if scale else 1.0), 0.0)


def normalized_then_summed(parts: Tensor, groups: Tensor, weights: Tensor, *, given: Tensor) -> Tensor:
    """Advantages [S] float64 of each reward, summed and then whitened over the step."""
    each = [
        group_advantages(parts[:, i], groups, baseline="group", scale="group", given=given[:, i])
        for i in range(len(weights))
    ]
    return batch_advantages(torch.stack(each, 1) @ weights, scale=True, given=given.any(1))


def answer_token_logprobs_field(
    model: ReaLModel, batch: NamedArray, name: str, max_tokens: int, temperature: float
) -> NamedArray:
    """Log-probabilities [N] float32 of the tokens of answers."""
    bounds = cu_seqlens(batch, "input_ids")
    values = model.token_logprobs(batch["input_ids"], bounds, temperature=temperature, max_tokens=max_tokens).cpu()
    sizes, seqlens = iter(answer_lengths(batch).tolist()), batch.metadata["seqlens"]["input_ids"]
    each = [tuple(next(sizes) for _ in sample) for sample in seqlens]
    return NamedArray(**{name: values[answer_mask(batch)]}).with_metadata(seqlens={name: each})


@dataclass(frozen=True)
class PolicyObjective:
    """The clipped loss of a policy, with the KL divergence from a reference, over the tokens of a step."""

    epsilon: float
    epsilon_high: float
    beta: float
    temperature: float

    metric_names = ("loss", "kl")

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each answer with its prompt."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> float:
        """Tokens of answers."""
        return float(answer_lengths(batch).sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss."""
        positions, targets = next_token_targets(batch["input_ids"], cu_seqlens(batch, "input_ids"), answer_mask(batch))
        logprobs = network.logprobs(hidden_states(network, batch)[positions], targets, self.temperature)
        old = batch["old_logprobs"] if "old_logprobs" in batch else logprobs.detach()
        ratio, advantages = torch.exp(logprobs - old), batch["advantages"]
        clipped = ratio.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        losses = -torch.min(ratio * advantages, clipped * advantages)
        stats = {"difference": (logprobs.detach() - batch["logprobs"]).abs().sum()}
        if self.beta:
            change = batch["ref_logprobs"] - logprobs
            kl = (change.exp() - change - 1) * ratio
            losses, stats["kl"] = losses + self.beta * kl, kl.detach().sum()
        return LossOutput(losses.sum(), stats)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over the tokens."""
        if not totals.loss_weight:
            return {}
        means = {name: value / totals.loss_weight for name, value in totals.stats.items()}
        found = {"loss": totals.loss, "sampling/sampling_logp_difference/mean": means["difference"]}
        return {**found, "kl": means["kl"]} if "kl" in means else found
