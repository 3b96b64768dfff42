"""Answers sampled for training and for evaluation, and how many tokens they are planned to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RolloutConfig
from reallm.algorithms.rl.generation import planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.keys import rollout_keys
from reallm.config.args import ModelArgs, SamplingArgs
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Completion
from tests.helpers.tiny_config import TINY


@dataclass(frozen=True)
class Prompts:
    """A dataset's configuration."""

    train_path: str = "prompts.jsonl"
    max_prompt_len: int = 8


@dataclass(frozen=True)
class Config(RolloutConfig):
    """Three answers to a prompt."""

    gen: SamplingArgs = field(default_factory=lambda: SamplingArgs(max_new_tokens=5, top_k=4, temperature=0.8))

    @property
    def sampling(self) -> SamplingArgs:
        return self.gen

    @property
    def n_answers(self) -> int:
        return 3


CONFIG = Config(actor=ModelArgs(path="model"), dataset=Prompts())
BATCH = NamedArray(prompt_ids=torch.tensor([1, 2, 3, 4, 5])).with_metadata(
    seqlens={"prompt_ids": [(2,), (3,)]}, ids=["a", "b"]
)


class Context(CallContext):
    """Generates without a tokenizer."""

    def generate(
        self,
        model: ReaLModel,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        ids: Sequence[str],
        *,
        exact: bool = False,
    ) -> list[Completion]:
        return model.generate(prompts, config, keys=list(ids), stop_token_ids=())


def sampled(*, training: bool) -> NamedArray:
    context = Context(None, 1, 1, 1, 64, training, call="actor_gen")  # type: ignore[arg-type]
    return sample_answers(ReaLModel(TINY), BATCH, context, CONFIG)


def test_training_has_groups_of_sampled_answers_with_their_log_probabilities() -> None:
    found = sampled(training=True)
    assert tuple(found) == rollout_keys(CONFIG)
    assert found.metadata["seqlens"]["input_ids"] == ((7,) * 3, (8,) * 3)
    assert found["prompt_lens"].tolist() == [2] * 3 + [3] * 3
    assert found["truncated"].all()
    assert found["input_ids"][:2].tolist() == [1, 2]
    assert len({tuple(found["input_ids"][i * 7 + 2 : (i + 1) * 7].tolist()) for i in range(3)}) > 1
    assert ((found["kept_mass"] > 0) & (found["kept_mass"] < 1)).all()


def test_an_evaluation_has_the_most_likely_answer() -> None:
    found = sampled(training=False)
    assert tuple(found) == rollout_keys(CONFIG)
    assert found.metadata["seqlens"]["input_ids"] == ((7,), (8,))
    completions = ReaLModel(TINY).generate([[1, 2], [3, 4, 5]], max_new_tokens=5, stop_token_ids=())
    assert found["input_ids"].tolist() == [token for one in completions for token in one.prompt_ids + one.token_ids]


def test_plans_count_each_answer_with_its_prompt_and_a_prompt_once_in_the_cache() -> None:
    sample = NamedArray(prompt_ids=torch.tensor([1, 2])).with_metadata(seqlens={"prompt_ids": [(2,)]})
    assert planned_tokens(sample, CONFIG) == [7, 7, 7]
    assert planned_kv_tokens(2, CONFIG) == 2 * (8 + 3 * 5)
