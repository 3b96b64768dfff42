"""The workload of a step as a run's configuration gives it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reallm.algorithms.graph import Graph
from reallm.config.dataset import batch_size
from reallm.config.training import TrainingConfig
from reallm.planning.lengths import parse_lengths
from reallm.planning.workload import Lengths, Workload

ASSUMED_PROMPT = 512
"""Tokens of a prompt, or of a row of an algorithm that generates nothing, when nothing tells the length."""


@dataclass(frozen=True)
class ConfiguredWorkload:
    """A workload, and where its lengths come from: `given`, `measured`, or what is assumed."""

    workload: Workload
    prompts_from: str
    answers_from: str


def configured_workload(
    config: TrainingConfig,
    graph: Graph,
    *,
    prompt_lens: str | None = None,
    answer_lens: str | None = None,
    measured_prompts: Sequence[int] = (),
) -> ConfiguredWorkload:
    """The workload of one step of a run.

    Args:
        config: the configuration.
        graph: its graph, which tells whether answers are generated.
        prompt_lens: the distribution of the prompts' lengths, see `parse_lengths`; None: that of `measured_prompts`, or
            else 512 tokens are assumed.
        answer_lens: that of the answers; None: half of the longest allowed is assumed for each.
        measured_prompts: lengths of prompts of the dataset.

    Raises:
        ConfigError: a distribution is not one; names the argument.
    """
    settings: Any = config
    generates = any(call.kind == "generate" for call in graph.calls)
    if prompt_lens is not None:
        prompts, prompts_from = parse_lengths("prompt_lens", prompt_lens), "given"
    elif measured_prompts:
        prompts, prompts_from = Lengths.of(measured_prompts), "measured"
    else:
        prompts, prompts_from = Lengths.constant(ASSUMED_PROMPT), f"assumed: {ASSUMED_PROMPT} tokens"
    answers, answers_from = Lengths((0,)), "none"
    if generates:
        longest = settings.sampling.max_new_tokens
        if answer_lens is not None:
            answers, answers_from = parse_lengths("answer_lens", answer_lens, longest), "given"
        else:
            half = (longest + 1) // 2
            answers, answers_from = Lengths.constant(half), f"assumed: {half} tokens, half of max_new_tokens"
    n_minibatches, n_epochs = _optimizer_steps(settings)
    workload = Workload(
        n_prompts=batch_size(config.dataset, "train"),
        prompts=prompts,
        n_answers=settings.n_answers if generates else 1,
        answers=answers,
        n_minibatches=n_minibatches,
        n_epochs=n_epochs,
    )
    return ConfiguredWorkload(workload, prompts_from, answers_from)


def _optimizer_steps(config: Any) -> tuple[int, int]:
    """Mini-batches of a step, and passes over them: PPO and GRPO have verl's and TRL's names for the same."""
    if ppo := getattr(config, "ppo", None):
        return ppo.ppo_n_minibatches, ppo.ppo_n_epochs
    return getattr(config, "num_minibatches", 1), getattr(config, "num_iterations", 1)
