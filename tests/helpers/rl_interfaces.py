"""Interfaces for the graphs of `rl_graphs`: simple losses on tiny models, and a log of what they are called with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.data.batching import cu_seqlens, lengths, n_samples, select, split_groups
from reallm.data.namedarray import NamedArray, split
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Completion
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import answer_lengths, answer_logprobs, hidden_states
from tests.helpers.rl_graphs import RLConfig


@dataclass(frozen=True)
class Logged:
    """A call that was made."""

    call: str
    step: int
    training: bool
    keys: tuple[str, ...]
    """Keys of the batch."""
    metadata: Mapping[str, Any]
    versions: Mapping[str, int]
    """Versions of the weights of the trained roles."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


LOG: list[Logged] = []
"""All calls of this process, in order; tests clear it."""


def log(batch: NamedArray, context: CallContext, **numbers: Any) -> None:
    """Remember a call."""
    LOG.append(
        Logged(
            context.call,
            context.step,
            context.training,
            tuple(batch),
            batch.metadata,
            dict(context.weights_versions),
            numbers,
        )
    )


def sequences(batch: NamedArray, key: str) -> list[Tensor]:
    """The sequences of a field, one after another."""
    bounds = cu_seqlens(batch, key).tolist()
    return [batch[key][start:end] for start, end in itertools.pairwise(bounds)]


def per_sequence(batch: NamedArray, key: str, values: Sequence[float], like: str = "input_ids") -> NamedArray:
    """A field with a number for each sequence of another field."""
    seqlens = tuple((1,) * len(sample) for sample in batch.metadata["seqlens"][like])
    return NamedArray(**{key: torch.tensor(values, dtype=torch.float32)}).with_metadata(seqlens={key: seqlens})


def per_token(batch: NamedArray, key: str, values: Tensor) -> NamedArray:
    """A field with a number for each token of `input_ids`."""
    return NamedArray(**{key: values}).with_metadata(seqlens={key: batch.metadata["seqlens"]["input_ids"]})


class PolicyInterface:
    """Generates groups of completions, and makes those likelier whose score is above the mean of their group."""

    dropout = False
    metric_names = ("loss", "ratio", "reward")

    def __init__(self, config: RLConfig) -> None:
        self._config = config
        self.optimizer_steps = config.n_minibatches
        self._seen = 0

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Groups of sampled completions; for the call `greedy_gen` one completion each, without sampling."""
        greedy = context.call == "greedy_gen"
        config = GenerationConfig(
            n=1 if greedy else self._config.n,
            temperature=0.0 if greedy else self._config.temperature,
            max_new_tokens=self._config.max_new_tokens,
        )
        prompts = [ids.tolist() for ids in sequences(batch, "prompt_ids")]
        completions = context.generate(model, prompts, config, batch.metadata["ids"])
        log(batch, context, tokens=[one.token_ids for one in completions])
        made = _packed(completions, config.n)
        return split(_renamed(made, "greedy_"), [["greedy_input_ids", "greedy_prompt_lens"]])[0] if greedy else made

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Log-probabilities of all tokens under the reference."""
        log(batch, context)
        bounds = cu_seqlens(batch, "input_ids")
        values = model.token_logprobs(batch["input_ids"], bounds, max_tokens=context.max_tokens_per_microbatch)
        return per_token(batch, "ref_logprobs", values)

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest group that a prompt can become."""
        return [self._config.n * (n + self._config.max_new_tokens) for n in lengths(sample, "prompt_ids")]

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """An optimizer step on each part of the groups' completions."""
        scores = [one.tolist() for one in sequences_of_samples(batch, "scores")]
        means = [sum(group) / len(group) for group in scores]
        advantages = [score - mean for group, mean in zip(scores, means, strict=True) for score in group]
        keys = split(batch, [["input_ids", "prompt_lens", "logprobs"]])[0]
        units = split_groups(
            keys.with_fields(advantages=torch.tensor(advantages)).with_metadata(
                seqlens={**keys.metadata["seqlens"], "advantages": keys.metadata["seqlens"]["prompt_lens"]}
            ),
            {"input_ids": 1, "prompt_lens": 1, "logprobs": 1, "advantages": 1},
        )
        made_with = batch.metadata["weights_versions"]
        age = context.weights_versions["actor"] - made_with["actor"]
        log(batch, context, groups=units.metadata["groups"], made_with=dict(made_with), means=means)
        self._seen += n_samples(batch)
        n, found = n_samples(units), []
        for i in range(self._config.n_minibatches):
            rows = range(i, n, self._config.n_minibatches)
            found.append(engine.train_batch(select(units, list(rows)), self))
        total = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
        reward = sum(means) / len(means)
        return {**total, "tokens": sum(one["tokens"] for one in found), "reward": reward, "age": float(age)}

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> float:
        """Tokens of completions."""
        return float(answer_lengths(batch).sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """The policy gradient's loss, with the ratio to the probabilities at the time of sampling."""
        found = answer_logprobs(network, batch)
        ratio = torch.exp(found.of_tokens - batch["logprobs"])
        loss = -(batch["advantages"][found.sequences] * ratio).sum()
        return LossOutput(loss, {"ratio": ratio.detach().sum()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss and ratio."""
        return {"loss": totals.loss, "ratio": totals.stats["ratio"] / totals.loss_weight}

    def state(self) -> Mapping[str, Any]:
        """The number of prompts seen."""
        return {"seen": self._seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self._seen = state["seen"]


class CriticInterface:
    """Predicts the score at each token."""

    metric_names = ("loss",)

    def __init__(self, config: Any) -> None:
        self._config = config
        self.optimizer_steps = config.critic_minibatches

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Values of all tokens."""
        log(batch, context)
        return per_token(batch, "values", model.scores(batch["input_ids"], cu_seqlens(batch, "input_ids")))

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """As many optimizer steps on the whole batch as there are to be minibatches."""
        log(batch, context, lr_steps=engine.step)
        found = [engine.train_batch(batch, self) for _ in range(self.optimizer_steps)]
        return found[-1]

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> float:
        """Number of tokens."""
        return float(len(batch["input_ids"]))

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Squared error."""
        n = cu_seqlens(batch, "input_ids").diff().to(torch.int64)
        wanted = batch["scores"].repeat_interleave(n)
        return LossOutput((network.head(hidden_states(network, batch)) - wanted).square().sum())

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss."""
        return {"loss": totals.loss}


class RewardModelInterface:
    """The score of a sequence is that of its last token."""

    metric_names = ("reward",)

    def __init__(self, config: Any) -> None:
        pass

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """A score for each sequence."""
        log(batch, context)
        bounds = cu_seqlens(batch, "input_ids")
        scores = model.scores(batch["input_ids"], bounds)
        return per_sequence(batch, "scores", scores[bounds[1:].to(torch.int64) - 1].tolist())

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> dict[str, list[float]]:
        """The scores."""
        return {"reward": batch["scores"].tolist()}


class RewardFunctionInterface:
    """How many tokens are as the row's column `wanted` says: even or odd."""

    metric_names = ("reward", "baseline")

    def __init__(self, config: Any) -> None:
        pass

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """A score for each sequence."""
        greedy = context.call == "greedy_rew"
        tokens, prompts = ("greedy_input_ids", "greedy_prompt_lens") if greedy else ("input_ids", "prompt_lens")
        columns = context.columns(batch)
        log(batch, context, columns=columns)
        wanted = [row["wanted"] for row, sample in zip(columns, batch.metadata["seqlens"][tokens], strict=True)
                  for _ in sample]  # fmt: skip
        scores = [
            sum(token % 2 == (1 if parity == "odd" else 0) for token in ids.tolist()[int(start) :])
            for ids, start, parity in zip(sequences(batch, tokens), batch[prompts], wanted, strict=True)
        ]
        return per_sequence(batch, "baselines" if greedy else "scores", [float(score) for score in scores], tokens)

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> dict[str, list[float]]:
        """The scores of the call."""
        if context.call == "greedy_rew":
            return {"baseline": batch["baselines"].tolist()}
        return {"reward": batch["scores"].tolist()}


class TeacherInterface:
    """Says how likely it finds the tokens of a student."""

    def __init__(self, config: Any) -> None:
        pass

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Log-probabilities of all tokens."""
        log(batch, context)
        bounds = cu_seqlens(batch, "input_ids")
        return per_token(batch, "teacher_logprobs", model.token_logprobs(batch["input_ids"], bounds))


class StudentInterface(PolicyInterface):
    """The reward of a completion is how much likelier the teacher finds it."""

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """Score, and train as any policy."""
        sums = [float(one.sum()) for one in sequences(batch, "teacher_logprobs")]
        scores = per_sequence(batch, "scores", sums)
        seqlens = {**batch.metadata["seqlens"], **scores.metadata["seqlens"]}
        return super().train_step(
            engine, batch.with_fields(scores=scores["scores"]).with_metadata(seqlens=seqlens), context
        )

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> dict[str, list[float]]:
        """Lengths of completions."""
        ends, starts = lengths(batch, "input_ids"), lengths(batch, "prompt_lens")
        return {"tokens": [float(end) for end, _ in zip(ends, starts, strict=True)]}


class BestOfNInterface(PolicyInterface):
    """Trains on the best completion of each group."""

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Groups of sampled completions, without log-probabilities."""
        return split(super().generate(model, batch, context), [["input_ids", "prompt_lens"]])[0]

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step on the best completions."""
        keys = split(batch, [["input_ids", "prompt_lens", "scores"]])[0]
        units = split_groups(keys, {"input_ids": 1, "prompt_lens": 1, "scores": 1})
        groups = units.metadata["groups"]
        scores = units["scores"].tolist()
        best = [max((i for i, one in enumerate(groups) if one == group), key=lambda i: scores[i])
                for group in dict.fromkeys(groups)]  # fmt: skip
        log(batch, context, best=best, scores=scores)
        return engine.train_batch(select(units, best), self)

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Negative log-likelihood of the completions."""
        return LossOutput(-answer_logprobs(network, batch).sums.sum())

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss."""
        return {"loss": totals.loss}


def sequences_of_samples(batch: NamedArray, key: str) -> list[Tensor]:
    """The values of a field for each sample."""
    n = lengths(batch, key)
    return list(batch[key].split(n))


def _packed(completions: Sequence[Completion], n: int) -> NamedArray:
    """Groups of `n` completions as a batch."""
    ids = [[*one.prompt_ids, *one.token_ids] for one in completions]
    groups = range(0, len(completions), n)
    return NamedArray(
        input_ids=torch.tensor([token for one in ids for token in one]),
        prompt_lens=torch.tensor([len(one.prompt_ids) for one in completions]),
        logprobs=torch.tensor([value for one in completions for value in one.logprobs]),
    ).with_metadata(
        seqlens={
            "input_ids": [tuple(len(one) for one in ids[i : i + n]) for i in groups],
            "prompt_lens": [(1,) * n for _ in groups],
            "logprobs": [tuple(len(one.token_ids) for one in completions[i : i + n]) for i in groups],
        }
    )


def _renamed(batch: NamedArray, prefix: str) -> NamedArray:
    seqlens = {f"{prefix}{key}": value for key, value in batch.metadata["seqlens"].items()}
    return NamedArray(**{f"{prefix}{key}": value for key, value in batch.items()}).with_metadata(seqlens=seqlens)
