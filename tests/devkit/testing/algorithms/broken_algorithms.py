"""An algorithm that keeps all promises, and for each check some that break one of them."""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reallm import Algorithm, LossOutput, ModelFunctionCall, NamedArray, Totals, TrainEngine
from reallm.algorithms.context import CallContext
from reallm.algorithms.pairs import with_field
from reallm.data.batching import cu_seqlens, lengths, n_samples, split_groups, split_samples
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.model.transformer import Transformer
from reallm.training.sequence_scores import answer_logprobs
from tests.devkit.testing.algorithms import light_algorithm as light
from tests.devkit.testing.algorithms.light_algorithm import COMPLETIONS, GoodConfig, good_graph

ROWS = [{"prompt": f"Say {'very ' * (number % 3)}{number}"} for number in range(9)]


def completions_of(batch: NamedArray, found: Sequence[Any]) -> NamedArray:
    """Two sequences for each sample: its prompt with each of its answers."""
    sequences = [[*one.prompt_ids, *one.token_ids] for one in found]
    sizes, n = [len(one) for one in sequences], n_samples(batch)
    return NamedArray(
        input_ids=torch.tensor([token for one in sequences for token in one]),
        prompt_lens=torch.tensor([len(one.prompt_ids) for one in found]),
    ).with_metadata(
        seqlens={"input_ids": [sizes[2 * row : 2 * row + 2] for row in range(n)], "prompt_lens": [[1, 1]] * n}
    )


class Good:
    """Prefers the answer with the higher reward, in comparison with what rewards have been so far."""

    metric_names: tuple[str, ...] | None = ("loss", "reward")

    def __init__(self, config: GoodConfig) -> None:
        self.decay, self.baseline = config.decay, 0.0

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        prompts = [one["prompt_ids"].tolist() for one in split_samples(batch)]
        config = GenerationConfig(max_new_tokens=4, temperature=1.0, n=2)
        return completions_of(batch, context.generate(model, prompts, config, batch.metadata["ids"]))

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        metrics = engine.train_batch(batch, self)
        self.baseline += (1 - self.decay) * (metrics["reward"] - self.baseline)
        return metrics

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        return [2 * (n + 4) for n in lengths(sample, "prompt_ids")]

    def prepare(self, batch: NamedArray) -> NamedArray:
        kept = NamedArray(**{key: batch[key] for key in (*COMPLETIONS, "rewards")}).with_metadata(
            **{**batch.metadata, "seqlens": {key: batch.metadata["seqlens"][key] for key in (*COMPLETIONS, "rewards")}}
        )
        cut = split_groups(kept, {"input_ids": 1, "prompt_lens": 1, "rewards": 1})
        return with_field(cut, "advantages", self.advantages(cut))

    def advantages(self, batch: NamedArray) -> Tensor:
        return batch["rewards"] - self.baseline

    def n_tokens(self, batch: NamedArray) -> list[int]:
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> float:
        return float(n_samples(batch))

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        values = -batch["advantages"] * answer_logprobs(network, batch).sums
        return LossOutput(values.sum(), {"reward": batch["rewards"].sum()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {"loss": totals.loss, "reward": totals.stats["reward"] / totals.loss_weight}

    def state(self) -> Mapping[str, Any]:
        return {"baseline": self.baseline}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.baseline = state["baseline"]


class GoodRewards:
    """The share of tokens with an even number."""

    metric_names = ("reward",)

    def __init__(self, config: GoodConfig) -> None: ...

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        bounds = cu_seqlens(batch, "input_ids").tolist()
        answers = [
            batch["input_ids"][start + n : end]
            for start, end, n in zip(bounds, bounds[1:], batch["prompt_lens"].tolist(), strict=False)
        ]
        values = torch.tensor([float((one % 2 == 0).float().mean()) for one in answers])
        return NamedArray(rewards=values).with_metadata(seqlens={"rewards": [[1, 1]] * n_samples(batch)})

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        return {"reward": batch["rewards"].tolist()}


def algorithm(
    actor: Any = Good, rewards: Any = GoodRewards, config: Any = GoodConfig, graph: Any = good_graph
) -> Algorithm:
    """The good algorithm with parts of others."""
    return Algorithm(config, graph, {"actor": actor, "rewards": rewards}, "prefers even tokens")


CALLS = tuple(good_graph(None))  # type: ignore[arg-type]


def heavy_graph(config: GoodConfig) -> Sequence[ModelFunctionCall]:
    """Is in a module that imports torch."""
    return CALLS


class WithoutGenerate(Good):
    generate = None  # type: ignore[assignment]


class WithoutContext(GoodRewards):
    def reward(self, batch: NamedArray) -> NamedArray:  # type: ignore[override]
        return batch


class OtherKey(GoodRewards):
    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        found = super().reward(batch, context)
        return NamedArray(scores=found["rewards"]).with_metadata(
            seqlens={"scores": found.metadata["seqlens"]["rewards"]}
        )


class WithoutSeqlens(GoodRewards):
    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        return NamedArray(rewards=super().reward(batch, context)["rewards"])


class OneForEachSample(GoodRewards):
    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        found = super().reward(batch, context)
        return found.with_metadata(seqlens={"rewards": [[1]] * n_samples(batch)})


class RewardsByPlace(GoodRewards):
    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        found = super().reward(batch, context)
        return found.with_fields(rewards=torch.arange(len(found["rewards"])).float())


class AsLongAsTheLongest(Good):
    """What is in `prompt_lens` follows from the batch."""

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        found = super().generate(model, batch, context)
        return found.with_fields(prompt_lens=torch.full_like(found["prompt_lens"], int(found["prompt_lens"].min())))


class WithoutGradients(Good):
    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        found = super().loss(network, batch)
        return LossOutput(found.loss_sum * 0.0, found.stats)


class NotFinite(Good):
    def metrics(self, totals: Totals) -> dict[str, float]:
        return {**super().metrics(totals), "reward": float("nan")}


class OneStepTooMany(Good):
    optimizer_steps = 2


class NormalisesByTheBatch(Good):
    def loss_weight(self, batch: NamedArray) -> float:
        return 1.0


class MeanLoss(Good):
    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        found = super().loss(network, batch)
        return LossOutput(found.loss_sum / n_samples(batch), found.stats)


class MeanMetric(Good):
    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        return LossOutput(super().loss(network, batch).loss_sum, {"reward": batch["rewards"].mean()})


class LossByPlace(Good):
    def advantages(self, batch: NamedArray) -> Tensor:
        return batch["rewards"] * torch.arange(n_samples(batch))


class LossByName(Good):
    def advantages(self, batch: NamedArray) -> Tensor:
        return batch["rewards"] * torch.tensor([zlib.crc32(name.encode()) % 7 for name in batch.metadata["ids"]])


class RaisesInTheSecondStep(Good):
    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        if context.step == 2:
            raise ValueError("two is enough")
        return super().train_step(engine, batch, context)


class Undeclared(Good):
    def metrics(self, totals: Totals) -> dict[str, float]:
        return {**super().metrics(totals), "kl": 0.0}


class DeclaresNothing(Good):
    metric_names = None


class OtherEachTime(Good):
    def advantages(self, batch: NamedArray) -> Tensor:
        return batch["rewards"] * random.Random().random()


class SeedsTheProcess(Good):
    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        torch.manual_seed(context.seed)
        return super().generate(model, batch, context)


class LearnsFromEvaluations(GoodRewards):
    def __init__(self, config: GoodConfig) -> None:
        self.n = 0

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        found = super().reward(batch, context)
        return found.with_fields(rewards=found["rewards"] * (1 + self.n))

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        self.n += 1
        return super().eval_metrics(batch, context)


class NotJson(Good):
    def state(self) -> Mapping[str, Any]:
        return {"baseline": torch.tensor(self.baseline)}


class RestoresNothing(Good):
    def load_state(self, state: Mapping[str, Any]) -> None: ...


class CannotRestore(Good):
    load_state = None  # type: ignore[assignment]


class Forgets(Good):
    """Remembers a baseline, but has no state."""

    state = load_state = property()  # type: ignore[assignment]  # `hasattr` is False


class LossByRank(Good):
    def advantages(self, batch: NamedArray) -> Tensor:
        rank = dist.get_rank() if dist.is_initialized() else 0
        return batch["rewards"] * (1 + rank)


BROKEN: list[tuple[str, Algorithm]] = [
    ("description", dataclasses.replace(algorithm(), description="")),
    ("light-import", algorithm(graph=heavy_graph)),
    ("configuration", algorithm(config=light.UnexplainedConfig)),
    ("configuration", algorithm(config=light.ForgetfulConfig)),
    ("odd-values", algorithm(config=light.AcceptsNanConfig)),
    ("odd-values", algorithm(config=light.RaisesConfig)),
    ("odd-values", algorithm(config=light.UnnamedConfig)),
    ("graph", algorithm(graph=CALLS[:2])),
    ("graph", algorithm(graph=CALLS[1:])),
    ("interfaces", algorithm(WithoutGenerate)),
    ("interfaces", algorithm(rewards=WithoutContext)),
    ("outputs", algorithm(rewards=OtherKey)),
    ("outputs", algorithm(rewards=WithoutSeqlens)),
    ("outputs", algorithm(rewards=OneForEachSample)),
    ("output-order", algorithm(rewards=RewardsByPlace)),
    ("one-by-one", algorithm(AsLongAsTheLongest)),
    ("training", algorithm(WithoutGradients)),
    ("training", algorithm(NotFinite)),
    ("training", algorithm(OneStepTooMany)),
    ("weights", algorithm(NormalisesByTheBatch)),
    ("cut", algorithm(MeanLoss)),
    ("cut", algorithm(MeanMetric)),
    ("sample-order", algorithm(LossByPlace)),
    ("ids", algorithm(LossByName)),
    ("run", algorithm(RaisesInTheSecondStep)),
    ("metrics", algorithm(Undeclared)),
    ("metrics", algorithm(DeclaresNothing)),
    ("same-twice", algorithm(OtherEachTime)),
    ("same-twice", algorithm(SeedsTheProcess)),
    ("evaluation", algorithm(rewards=LearnsFromEvaluations)),
    ("state", algorithm(NotJson)),
    ("state", algorithm(RestoresNothing)),
    ("state", algorithm(CannotRestore)),
    ("resume", algorithm(Forgets)),
    ("layouts", algorithm(LossByRank)),
]
"""The check that fails, and the algorithm."""
