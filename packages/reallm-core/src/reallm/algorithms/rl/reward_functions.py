"""Interfaces of reward functions, which get answers as text and give numbers.

Shapes: S answers, F functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.keys import GREEDY
from reallm.algorithms.rl.rollout import sequences, with_prefix, without_prefix
from reallm.algorithms.rl.total_rewards import reward_names
from reallm.data.namedarray import NamedArray
from reallm.errors import counted
from reallm.notices import LOGGER
from reallm.rewards.outcome import Outcome
from reallm.rewards.pool import RewardCall, RewardPool
from reallm.rewards.resolve import resolve


class RewardFunctionsInterface:
    """Calls the reward functions of a configuration in a pool of processes, once for the answers to each prompt.

    An answer for which a function raises, or takes too long, gets `reward_on_error`, and is counted in `call_metrics`.

    Raises:
        RewardError: there is no such function; one line with the remedy.
    """

    metric_names = ("reward", "rewards/*/mean")
    call_metric_names = ("rewards/*/errors", "rewards/*/timeouts", "rewards/*/failed_ratio")

    def __init__(self, config: RewardedConfig) -> None:
        self._config = config
        self._functions = [resolve(name) for name in config.reward.functions]
        names = reward_names(config)
        self._names, self._is_alone = names[: len(self._functions)], len(names) == 1
        self._pool = RewardPool(self._functions, config.reward_timeout_s, config.reward_processes)
        self._shown: set[str] = set()
        self._failures: dict[str, float] = {}

    @property
    def needed_columns(self) -> dict[str, str]:
        """Columns that each row must have -> what needs it."""
        return {
            column: f"the reward function '{function.name}'"
            for function in self._functions
            for column in function.columns
        }

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """`reward_parts` float32 and `reward_given` bool, F numbers for each answer.

        Raises:
            RewardError: what a function returned are no rewards; names it and the row.
        """
        counts = [len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
        arguments = _arguments(batch, counts, context)
        calls = [
            RewardCall(number, one, sample, context.seed_for("reward", context.call, number, sample))
            for one, sample in zip(arguments, batch.metadata["ids"], strict=True)
            for number in range(len(self._functions))
        ]
        outcomes = self._pool.rewards(calls)
        self._count(calls, outcomes, training=context.training)
        n = len(self._functions)
        values: list[float | None] = []  # function by function for each answer
        for i in range(0, len(calls), n):
            of_functions = [self._values(one) for one in outcomes[i : i + n]]
            values += [value for answer in zip(*of_functions, strict=True) for value in answer]
        sizes = [(n,) * count for count in counts]
        return NamedArray(
            reward_parts=torch.tensor([0.0 if value is None else value for value in values], dtype=torch.float32),
            reward_given=torch.tensor([value is not None for value in values], dtype=torch.bool),
        ).with_metadata(seqlens={"reward_parts": sizes, "reward_given": sizes})

    def call_metrics(self) -> dict[str, float]:
        """Failures in the last call: `rewards/<name>/errors`, answers for which a function raised, `.../timeouts`, and
        `.../failed_ratio`, their share of all answers.

        They are there for each function, also as 0.
        """
        return dict(self._failures)

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """The weighted sum of the rewards of each answer as a part of `eval/reward`, NaN if it has none; of several
        rewards also each one, as `eval/rewards/<name>/mean`."""
        n = len(self._functions)
        weights = torch.tensor((self._config.reward_weights or [1.0] * n)[:n], dtype=torch.float64)
        parts, given = batch["reward_parts"].double().view(-1, n), batch["reward_given"].view(-1, n)
        totals = {"reward": torch.where(given.any(1), parts @ weights, torch.nan).tolist()}
        if self._is_alone:
            return totals
        shown = torch.where(given, parts, torch.nan).unbind(1)
        return totals | {f"rewards/{name}/mean": one.tolist() for name, one in zip(self._names, shown, strict=True)}

    def _values(self, outcome: Outcome) -> list[float | None]:
        """The rewards of the answers of a call, with that of answers without one because of a failure."""
        on_error = self._config.reward_on_error
        found = zip(outcome.rewards, outcome.failures, strict=True)
        return [reward if failure is None else on_error for reward, failure in found]

    def _count(self, calls: Sequence[RewardCall], outcomes: Sequence[Outcome], *, training: bool) -> None:
        """Count failures, and log the first trace of each function."""
        self._failures = {}
        for number, name in enumerate(self._names):
            of_function = [
                (call, outcome) for call, outcome in zip(calls, outcomes, strict=True) if call.function == number
            ]
            failures = [failure for _, outcome in of_function for failure in outcome.failures]
            n_failed = len(failures) - failures.count(None)
            self._failures |= {
                f"rewards/{name}/errors": failures.count("error"),
                f"rewards/{name}/timeouts": failures.count("timeout"),
                f"rewards/{name}/failed_ratio": n_failed / max(1, len(failures)),
            }
            if n_failed and name not in self._shown:
                self._shown.add(name)
                row, trace = next((call.row, outcome.trace) for call, outcome in of_function if outcome.trace)
                n = counted(len(failures), "answer")
                LOGGER.warning(
                    "the reward function '%s' failed for %s %s, at first for row %s; further failures are only "
                    "counted, as rewards/%s/errors and rewards/%s/timeouts: %s",
                    name,
                    f"all {n}" if n_failed == len(failures) > 1 else f"{n_failed} of {n}",
                    "in a step" if training else "to validation prompts",
                    *(row, name, name),
                    trace.rstrip(),
                )


class GreedyRewardFunctionsInterface:
    """Rewards the most likely answers by the same functions; an evaluation does without them."""

    call_metric_names = tuple(f"{GREEDY}{name}" for name in RewardFunctionsInterface.call_metric_names)

    def __init__(self, config: RewardedConfig) -> None:
        self._functions = RewardFunctionsInterface(config)

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """`greedy_reward_parts` and `greedy_reward_given`."""
        return with_prefix(self._functions.reward(without_prefix(batch, GREEDY), context), GREEDY)

    def call_metrics(self) -> dict[str, float]:
        """Failures in the last call, such as `greedy_rewards/<name>/errors`."""
        return {f"{GREEDY}{name}": count for name, count in self._functions.call_metrics().items()}


def _arguments(batch: NamedArray, counts: Sequence[int], context: CallContext) -> list[dict[str, list[Any]]]:
    """The arguments for the answers to each prompt, in TRL's form: of a conversation, messages."""
    tokenizer, start = context.tokenizer, 0
    ids = [each.tolist() for each in sequences(batch, "input_ids")]
    prompt_lens = batch["prompt_lens"].tolist()
    found = []
    for columns, count in zip(context.columns(batch), counts, strict=True):
        answers = [each[n:] for each, n in zip(ids[start : start + count], prompt_lens[start:], strict=False)]
        texts = [tokenizer.decode(each, skip_special_tokens=True) for each in answers]
        is_chat = "messages" in columns
        prompt = columns["messages"] if is_chat else None
        if not is_chat and count:
            prompt = tokenizer.decode(ids[start][: prompt_lens[start]], skip_special_tokens=True)
        found.append(
            {
                **{name: [value] * count for name, value in columns.items()},
                "prompts": [prompt] * count,
                "completions": [[{"role": "assistant", "content": text}] for text in texts] if is_chat else texts,
                "completion_ids": answers,
            }
        )
        start += count
    return found
