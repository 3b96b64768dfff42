"""Graphs of algorithms of reinforcement learning, each a function of a small configuration. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from reallm.config.args import CallArgs, CriticArgs, ModelArgs, dataset_option
from reallm.config.training import TrainingConfig
from reallm.options import option
from reallm.specs import Algorithm, ModelFunctionCall, WeightUpdate

COMPLETIONS = ("input_ids", "prompt_lens", "logprobs")
"""What a generate call writes: prompts with their completions, one sequence for each, and the tokens' log-probabilities
at the time of sampling."""


@dataclass(frozen=True)
class OptionalModelArgs(ModelArgs):
    """A model that an algorithm may do without."""

    path: str = option("", "HuggingFace checkpoint; empty: none")


@dataclass(frozen=True)
class RLConfig(TrainingConfig):
    """What the configurations below have in common."""

    dataset: Any = dataset_option("prompt", "prompts to train on")
    actor: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the model to train"})
    actor_gen: CallArgs = field(default_factory=CallArgs, metadata={"help": "generation"})
    actor_train: CallArgs = field(default_factory=CallArgs, metadata={"help": "training of the actor"})
    n: int = option(2, "completions of each prompt")
    max_new_tokens: int = option(4, "longest completion, in tokens")
    temperature: float = option(1.0, "temperature of sampling")
    n_minibatches: int = option(1, "optimizer steps of each training step")
    async_steps: int = option(0, "steps that a rollout may be older than the weights that are trained with it")


@dataclass(frozen=True)
class PPOConfig(RLConfig):
    """Proximal policy optimisation."""

    critic: CriticArgs = field(default_factory=CriticArgs, metadata={"help": "the critic"})
    ref: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the reference"})
    reward: CriticArgs = field(default_factory=CriticArgs, metadata={"help": "the reward model"})
    rew_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "scoring"})
    ref_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "reference log-probabilities"})
    critic_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "values"})
    critic_train: CallArgs = field(default_factory=CallArgs, metadata={"help": "training of the critic"})
    critic_minibatches: int = option(1, "optimizer steps of the critic in each training step")


@dataclass(frozen=True)
class GRPOConfig(RLConfig):
    """Group-relative policy optimisation."""

    ref: ModelArgs = field(default_factory=OptionalModelArgs, metadata={"help": "the reference"})
    reward: ModelArgs = field(default_factory=OptionalModelArgs, metadata={"help": "the reward model"})
    beta: float = option(0.0, "weight of the KL divergence from the reference; 0: no reference")
    baseline: Literal["group", "greedy"] = option("group", "what rewards are compared with")
    sync_ref_every: int | None = option(None, "steps after which the reference becomes the actor")


@dataclass(frozen=True)
class DistillConfig(RLConfig):
    """On-policy distillation."""

    teacher: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the teacher"})
    teacher_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "the teacher's log-probabilities"})


def ppo_graph(config: PPOConfig) -> list[ModelFunctionCall]:
    """ReaL's six calls."""
    train = (*COMPLETIONS, "scores", "ref_logprobs", "values")
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), COMPLETIONS),
        ModelFunctionCall("rew_inf", "reward", "inference", ("input_ids", "prompt_lens"), ("scores",)),
        ModelFunctionCall("ref_inf", "ref", "inference", ("input_ids", "prompt_lens"), ("ref_logprobs",)),
        ModelFunctionCall("critic_inf", "critic", "inference", ("input_ids", "prompt_lens"), ("values",)),
        ModelFunctionCall("actor_train", "actor", "train_step", train),
        ModelFunctionCall("critic_train", "critic", "train_step", train),
    ]


def grpo_graph(config: GRPOConfig) -> list[ModelFunctionCall]:
    """With a reward model or a function; without a reference if `beta=0`; ReMax has a second, greedy generate call."""
    calls = [ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), COMPLETIONS)]
    train = [*COMPLETIONS, "scores"]
    if config.reward.path:
        calls.append(ModelFunctionCall("rew_inf", "reward", "inference", ("input_ids", "prompt_lens"), ("scores",)))
    else:
        calls.append(ModelFunctionCall("rew_fn", "reward_fn", "reward", ("input_ids", "prompt_lens"), ("scores",)))
    if config.baseline == "greedy":
        greedy = tuple(f"greedy_{key}" for key in COMPLETIONS[:2])
        calls.append(ModelFunctionCall("greedy_gen", "actor", "generate", ("prompt_ids",), greedy))
        calls.append(ModelFunctionCall("greedy_rew", "reward_fn", "reward", greedy, ("baselines",)))
        train.append("baselines")
    updates: tuple[WeightUpdate, ...] = ()
    if config.beta:
        calls.append(ModelFunctionCall("ref_inf", "ref", "inference", ("input_ids", "prompt_lens"), ("ref_logprobs",)))
        train.append("ref_logprobs")
        if config.sync_ref_every is not None:
            updates = (WeightUpdate("ref", every=config.sync_ref_every),)
    calls.append(ModelFunctionCall("actor_train", "actor", "train_step", tuple(train), updates=updates))
    return calls


def distill_graph(config: DistillConfig) -> list[ModelFunctionCall]:
    """The student generates, the teacher says how likely it finds the tokens."""
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), COMPLETIONS),
        ModelFunctionCall("teacher_inf", "teacher", "inference", ("input_ids", "prompt_lens"), ("teacher_logprobs",)),
        ModelFunctionCall("actor_train", "actor", "train_step", (*COMPLETIONS, "teacher_logprobs")),
    ]


def raft_graph(config: RLConfig) -> list[ModelFunctionCall]:
    """Best of n: the completion with the highest reward is what is trained."""
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), COMPLETIONS[:2]),
        ModelFunctionCall("rew_fn", "reward_fn", "reward", COMPLETIONS[:2], ("scores",)),
        ModelFunctionCall("actor_train", "actor", "train_step", (*COMPLETIONS[:2], "scores")),
    ]


_INTERFACES = "tests.helpers.rl_interfaces"
_POLICY = f"{_INTERFACES}:PolicyInterface"
_REWARD = f"{_INTERFACES}:RewardFunctionInterface"

PPO = Algorithm(
    PPOConfig,
    ppo_graph,
    {
        "actor": _POLICY,
        "critic": f"{_INTERFACES}:CriticInterface",
        "ref": _POLICY,
        "reward": f"{_INTERFACES}:RewardModelInterface",
    },
    "proximal policy optimization",
)
GRPO = Algorithm(
    GRPOConfig,
    grpo_graph,
    {
        "actor": _POLICY,
        "ref": _POLICY,
        "reward": f"{_INTERFACES}:RewardModelInterface",
        "reward_fn": _REWARD,
    },
    "group-relative policy optimization",
)
DISTILL = Algorithm(
    DistillConfig,
    distill_graph,
    {"actor": f"{_INTERFACES}:StudentInterface", "teacher": f"{_INTERFACES}:TeacherInterface"},
    "on-policy distillation",
)
RAFT = Algorithm(
    RLConfig, raft_graph, {"actor": f"{_INTERFACES}:BestOfNInterface", "reward_fn": _REWARD}, "best-of-n distillation"
)
