"""The workload of a step as a run's configuration gives it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reallm.algorithms.graph import Graph
from reallm.config.dataset import batch_size
from reallm.config.plan import PLAN_PREFIX
from reallm.config.training import TrainingConfig
from reallm.planning.lengths import parse_lengths
from reallm.planning.workload import Lengths, Workload

ASSUMED_PROMPT = 512
"""Tokens of a prompt, or of a row of an algorithm that generates nothing, when nothing tells the length."""


@dataclass(frozen=True)
class ConfiguredWorkload:
    """A workload, and where its lengths come from: `given`, if need be cut, `measured`, or what is assumed."""

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
        prompt_lens: the distribution of the prompts' lengths, see `parse_lengths`; None: that of `plan.prompt_lens`, or
            of `measured_prompts`, or else 512 tokens are assumed.
        answer_lens: that of the answers; None: that of `plan.answer_lens`, or else half of the longest allowed is
            assumed for each.
        measured_prompts: lengths of prompts of the dataset.

    Raises:
        ConfigError: a distribution is not one; names the argument or the key.
    """
    settings: Any = config
    generates = any(call.kind == "generate" for call in graph.calls)
    of_prompts = _given("prompt_lens", prompt_lens, config.plan.prompt_lens)
    of_answers = _given("answer_lens", answer_lens, config.plan.answer_lens)
    if of_prompts is not None:
        prompts, prompts_from = parse_lengths(*of_prompts), "given"
    elif measured_prompts:
        prompts, prompts_from = Lengths.of(measured_prompts), "measured"
    else:
        prompts, prompts_from = Lengths.constant(ASSUMED_PROMPT), f"assumed: {ASSUMED_PROMPT} tokens"
    answers, answers_from = Lengths((0,)), "none"
    if generates:
        longest = settings.sampling.max_new_tokens
        if of_answers is not None:
            answers = parse_lengths(*of_answers, longest)
            is_cut = answers != parse_lengths(*of_answers)
            answers_from = f"given, cut at max_new_tokens={longest}" if is_cut else "given"
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


def _given(name: str, argument: str | None, value: str | None) -> tuple[str, str] | None:
    """The argument, or else the value of the key of that name, after how errors call it."""
    if argument is not None:
        return name, argument
    return None if value is None else (f"{PLAN_PREFIX}{name}", value)


def _optimizer_steps(config: Any) -> tuple[int, int]:
    """Mini-batches of a step, and passes over them: PPO and GRPO have verl's and TRL's names for the same."""
    if ppo := getattr(config, "ppo", None):
        return ppo.ppo_n_minibatches, ppo.ppo_n_epochs
    return getattr(config, "num_minibatches", 1), getattr(config, "num_iterations", 1)
