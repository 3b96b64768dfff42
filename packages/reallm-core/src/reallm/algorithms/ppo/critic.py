"""Interface of the critic of `reallm ppo`: it values unfinished answers, and is trained on what became of them.

Shapes: T packed tokens, S answers, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.algorithms.answer_scores import answer_values_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.ppo.advantages import Judged, judge, kl_controller
from reallm.algorithms.ppo.config import PPOConfig
from reallm.algorithms.rl.generation import planned_tokens
from reallm.algorithms.rl.keys import ANSWERS
from reallm.algorithms.rl.minibatches import merged_metrics, train_minibatches
from reallm.algorithms.rl.value_loss import value_losses
from reallm.algorithms.rl.value_norm import ValueNorm
from reallm.data.batching import cu_seqlens, lengths
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import answer_lengths, answer_mask, hidden_states


class PPOCriticInterface:
    """The critic: predicts, before each token of an answer, the rewards that follow.

    Forward passes have no dropout.
    """

    metric_names = ("loss", "clip_ratio/region_mean", "values/mean", "returns/mean", "explained_variance")
    dropout = False

    def __init__(self, config: PPOConfig) -> None:
        args = config.ppo
        self._config = config
        self._controller = kl_controller(args)
        self._norm = ValueNorm(args.value_norm_type, args.value_norm_beta, args.value_norm_eps)
        self.optimizer_steps = args.optimizer_steps

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`values` [N] float32 of the states before the answers' tokens, on the scale of rewards; if answers that were
        cut count as going on, also `end_values` [S] float32 of the states after them."""
        after = "end_values" if self._config.ppo.truncated_reward == "bootstrap" else None
        values = answer_values_field(model, batch, "values", context.max_tokens_per_microbatch, after=after)
        return values.with_fields(**{name: self._norm.denormalize(one) for name, one in values.items()})

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """The optimizer steps on the answers of a step."""
        args, judged = self._config.ppo, judge(batch, self._config, self._controller.coef)
        of_steps = train_minibatches(
            engine,
            self._trained(judged),
            self,
            context,
            num_minibatches=args.ppo_n_minibatches,
            num_iterations=args.ppo_n_epochs,
        )
        self._controller.update(judged.kl_of_answers, len(judged.totals))
        return merged_metrics(of_steps) | _metrics_of_values(judged)

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each answer with its prompt."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> float:
        """Tokens of answers."""
        return float(answer_lengths(batch).sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of the values before the answers' tokens."""
        bounds, mask = cu_seqlens(batch, "input_ids"), answer_mask(batch)
        positions, _ = next_token_targets(batch["input_ids"], bounds, mask)
        values = network.head(hidden_states(network, batch)[positions])
        losses, clipped = value_losses(values, batch["old_values"], batch["returns"], self._config.ppo.value_eps_clip)
        return LossOutput(losses.sum(), {"clip_ratio/region_mean": clipped.sum()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over tokens."""
        if not totals.loss_weight:
            return {}
        means = {name: value / totals.loss_weight for name, value in totals.stats.items()}
        return {"loss": totals.loss, **means}

    def state(self) -> Mapping[str, Any]:
        """The moments of returns, and the weight of the KL divergence, if it is adaptive."""
        return {"value_norm": self._norm.state(), "kl": self._controller.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._norm.load_state(state["value_norm"])
        self._controller.load_state(state["kl"])

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest that an answer to a prompt can be, with the prompt."""
        return planned_tokens(sample, self._config)

    def _trained(self, judged: Judged) -> NamedArray:
        """What the loss reads, on the scale of the critic after the returns are counted in it; the old values are what
        the critic has computed."""
        old_values, returns = self._norm.normalize(judged.answers["values"]), judged.returns
        if self._config.ppo.value_norm:
            self._norm.update(returns[judged.is_trained_token])
        return judged.trained(ANSWERS, {"old_values": old_values, "returns": self._norm.normalize(returns)})


def _metrics_of_values(judged: Judged) -> dict[str, float]:
    """Means of values and returns over the tokens that are trained on, and how much of the returns' variance the values
    explain."""
    mask = judged.is_trained_token
    values, returns = judged.answers["values"].double()[mask], judged.returns[mask]
    if not len(returns):
        return {}
    metrics = {"values/mean": float(values.mean()), "returns/mean": float(returns.mean())}
    variance = float(returns.var(correction=0))
    if variance > 0:
        metrics["explained_variance"] = 1 - float((returns - values).var(correction=0)) / variance
    return metrics
