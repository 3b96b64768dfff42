"""Configuration of distillation. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from reallm.algorithms.rl.config import RolloutConfig
from reallm.config.args import CallArgs, ModelArgs, SamplingArgs, dataset_option
from reallm.config.dataset import dataset_name
from reallm.errors import ConfigError
from reallm.field_types import value_text
from reallm.options import changed, is_missing, option

ROWS, PROMPTS = "prompt_answer", "prompt"


@dataclass(frozen=True)
class DistillConfig(RolloutConfig):
    """Distillation of a teacher into a student of the same vocabulary, on given answers or on those of the student.

    As a library: `DistillConfig(actor=ModelArgs(path="..."), teacher=ModelArgs(path="..."),
    dataset=PromptAnswerDatasetConfig(train_path="..."))`.

    Raises:
        ConfigError: a required value is missing, a value is not allowed, or values contradict each other; names the
            key.
    """

    actor: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the student, which is trained"})
    teacher: ModelArgs = field(
        default_factory=ModelArgs, metadata={"help": "the teacher, with the vocabulary of the student; never trained"}
    )
    teacher_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the teacher scores answers"})
    dataset: Any = dataset_option(ROWS, "answers to learn from; prompt for the prompts of on_policy=true")
    gen: SamplingArgs = field(
        default_factory=SamplingArgs, metadata={"help": "on_policy: how the student answers in training"}
    )
    eval_temperature: float = option(1.0, "on_policy: temperature of the answers to validation prompts")
    on_policy: bool = option(
        False, "learn from answers that the student samples at each step to prompts, instead of from given ones"
    )
    num_generations: int = option(1, "on_policy: answers to each prompt")
    policy_gradient: bool = option(
        False,
        "on_policy: reward each sampled token by log(teacher / student), whose mean is -KL(student || teacher), and do "
        "not compare the distributions of all tokens; the teacher then only scores the sampled ones",
    )
    beta: float | None = option(
        None,
        "divergence, as TRL's GKD names it: 0 is KL(teacher || student), 1 is KL(student || teacher), between them is "
        "the generalised Jensen-Shannon divergence; null: 0 for given answers, 1 for the student's own",
    )
    top_k: int | None = option(
        64,
        "tokens of the teacher's distribution that are compared one by one, the most likely ones; all others are one. "
        "null: all, which is exact and takes memory",
    )
    temperature: float = option(1.0, "divisor of the logits of both models in the divergence; more than 0")
    cross_entropy_weight: float = option(
        0.0, "weight of the cross-entropy with the given answers, which is added to the divergence"
    )
    teacher_scores: Literal["auto", "cache", "live"] = option(
        "auto",
        "cache: the teacher scores all rows once, before training, and is dropped; live: it scores each batch. auto is "
        "cache, unless the student answers. A row takes 8 bytes for each of the top_k tokens of each answer token",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ConfigError(f"beta={self.beta} must be from 0 to 1")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1, or null for all tokens")
        if self.num_generations < 1:
            raise ConfigError(f"num_generations={self.num_generations} must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be a number more than 0")
        if not self.cross_entropy_weight >= 0:
            raise ConfigError(f"cross_entropy_weight={self.cross_entropy_weight} must be at least 0")
        _check_form(self)
        if self.policy_gradient:
            _check_policy_gradient(self)

    @property
    def sampling(self) -> SamplingArgs:
        """How answers are sampled in training."""
        return self.gen

    @property
    def n_answers(self) -> int:
        """Answers to each prompt in training."""
        return self.num_generations

    @property
    def divergence_beta(self) -> float:
        """Where the divergence is between KL(teacher || student), 0, and KL(student || teacher), 1."""
        return float(self.on_policy) if self.beta is None else self.beta

    @property
    def caches_teacher(self) -> bool:
        """Whether the teacher scores all rows once, before training."""
        return not self.on_policy and self.teacher_scores != "live"


def _check_form(config: DistillConfig) -> None:
    chosen = None if is_missing(config.dataset) else dataset_name(config.dataset)
    if config.on_policy:
        if chosen == ROWS:
            raise ConfigError(f"on_policy=true: the student answers prompts itself; set dataset.name={PROMPTS}")
        if config.cross_entropy_weight:
            raise ConfigError(
                f"cross_entropy_weight={config.cross_entropy_weight} with on_policy=true would train the student on "
                "what it says already; leave it out"
            )
        if config.teacher_scores == "cache":
            raise ConfigError(
                "teacher_scores=cache does not go together with on_policy=true, whose answers are new in each step"
            )
        return
    if config.async_steps:
        raise ConfigError(f"async_steps={config.async_steps} has no effect without on_policy=true: nothing is sampled")
    if chosen == PROMPTS:
        raise ConfigError(f"dataset.name={PROMPTS} has no answers to learn from; set on_policy=true")
    unread = changed(config, ("num_generations", "eval_num_generations", "eval_temperature", "exact"))
    for key, value in (unread | {f"gen.{key}": value for key, value in changed(config.gen).items()}).items():
        raise ConfigError(
            f"{key}={value_text(value)} has no effect on given answers; set on_policy=true to learn from those of the "
            "student"
        )


def _check_policy_gradient(config: DistillConfig) -> None:
    if not config.on_policy:
        raise ConfigError("policy_gradient=true is for the student's own answers; set on_policy=true")
    for key, value in changed(config, ("beta", "top_k", "temperature")).items():
        raise ConfigError(
            f"{key}={value_text(value)} has no effect with policy_gradient=true, which compares only the sampled "
            "tokens, at gen.temperature; leave it out"
        )
