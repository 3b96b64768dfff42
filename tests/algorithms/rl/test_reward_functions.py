"""Rewards of a batch of answers by functions: values, failures, what is None, and conversations."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm import ConfigError
from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.reward_functions import GreedyRewardFunctionsInterface, RewardFunctionsInterface
from reallm.algorithms.rl.rollout import with_prefix
from reallm.config.args import CallArgs, ModelArgs, RewardArgs, SamplingArgs
from reallm.data.namedarray import NamedArray

FILE = Path(__file__).parents[2] / "rewards" / "functions_to_try.py"


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


@dataclass(frozen=True)
class Prompts:
    """A dataset's configuration."""

    train_path: str = "prompts.jsonl"


@dataclass(frozen=True)
class Config(RewardedConfig):
    """Rewards without an algorithm."""

    gen: SamplingArgs = field(default_factory=SamplingArgs)


def config(*functions: str, **settings: Any) -> Config:
    rewards = RewardArgs(functions=[f"{FILE}:{name}" for name in functions])
    return Config(actor=ModelArgs(path="m"), dataset=Prompts(), reward=rewards, reward_processes=1, **settings)


def batch(columns: dict[str, Any] | None = None) -> NamedArray:
    """Two prompts, `?` and `??`: two answers to the first, and one to the second."""
    texts = ["?yes", "?bad", "??"]
    ids = [list(map(ord, text)) for text in texts]
    return NamedArray(
        input_ids=torch.tensor([one for each in ids for one in each]), prompt_lens=torch.tensor([1, 1, 2])
    ).with_metadata(
        seqlens={"input_ids": [(4, 4), (2,)], "prompt_lens": [(1, 1), (1,)]},
        ids=["rows:1", "rows:2"],
        columns=[columns or {"answer": "yes"}] * 2,
    )


CONTEXT = CallContext(tokenizer=Letters(), seed=1, step=3, total_steps=9, max_tokens_per_microbatch=64)  # type: ignore[arg-type]


def test_rewards_and_failures(caplog: pytest.LogCaptureFixture) -> None:
    interface = RewardFunctionsInterface(config("matches", "raises", reward_weights=[2, 1]))
    assert set(interface.needed_columns) == {"answer"}
    with caplog.at_level(logging.WARNING, "reallm"):
        found = interface.reward(batch(), CONTEXT)
        interface.reward(batch(), CONTEXT)
    assert found["reward_parts"].tolist() == [1, 1, 0, 0, 0, 1]
    assert found["reward_given"].tolist() == [True, True, True, False, False, True]
    assert found.metadata["seqlens"]["reward_parts"] == ((2, 2), (2,))
    assert interface.call_metrics() == {
        "rewards/matches/errors": 0,
        "rewards/matches/timeouts": 0,
        "rewards/matches/failed_ratio": 0,
        "rewards/raises/errors": 1,
        "rewards/raises/timeouts": 0,
        "rewards/raises/failed_ratio": pytest.approx(1 / 3),
    }
    (shown,) = caplog.messages
    assert "'raises' failed for 1 of 3 answers in a step, at first for row rows:1; " in shown
    assert "ZeroDivisionError" in shown
    assert interface.eval_metrics(found, CONTEXT) == {
        "reward": [3.0, 0.0, 1.0],
        "rewards/matches/mean": pytest.approx([1.0, 0.0, nan], nan_ok=True),
        "rewards/raises/mean": pytest.approx([1.0, nan, 1.0], nan_ok=True),
    }
    on_error = RewardFunctionsInterface(config("raises", reward_on_error=-1.0)).reward(batch(), CONTEXT)
    assert on_error["reward_parts"].tolist() == [1, -1, 1]
    assert on_error["reward_given"].all()


def test_a_function_that_fails_for_all_answers_is_said_to(caplog: pytest.LogCaptureFixture) -> None:
    interface = RewardFunctionsInterface(config("always_raises"))
    with caplog.at_level(logging.WARNING, "reallm"):
        interface.reward(batch(), CONTEXT)
    assert interface.call_metrics()["rewards/always_raises/failed_ratio"] == 1
    assert "'always_raises' failed for all 3 answers in a step, at first for row rows:1; " in caplog.text


def test_of_a_conversation_functions_get_messages() -> None:
    messages = [{"role": "user", "content": "?"}]
    interface = RewardFunctionsInterface(config("says_yes"))
    assert interface.reward(batch({"messages": messages}), CONTEXT)["reward_parts"].tolist() == [1, 0, 0]


def test_greedy_answers_are_rewarded_alike() -> None:
    interface = GreedyRewardFunctionsInterface(config("matches"))
    rows = batch().metadata
    answers = with_prefix(batch(), "greedy_").with_metadata(ids=rows["ids"], columns=rows["columns"])
    found = interface.reward(answers, CONTEXT)
    assert found["greedy_reward_parts"].tolist() == [1, 0, 0]
    assert found["greedy_reward_given"].tolist() == [True, True, False]
    failures = interface.call_metrics()
    assert failures == {f"greedy_rewards/matches/{name}": 0 for name in ("errors", "timeouts", "failed_ratio")}
    assert all(fnmatch(*each) for each in zip(failures, interface.call_metric_names, strict=True))


def test_one_process_of_the_run_calls_functions() -> None:
    with pytest.raises(ConfigError, match=r"rew_fn\.layout=dp2: reward functions are called by one process"):
        config("matches", rew_fn=CallArgs("dp2"))
    assert config("matches", rew_fn=CallArgs("dp1@3")).rew_fn.layout == "dp1@3"


def module_level(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


def test_a_python_function_is_kept_as_its_reference() -> None:
    functions: list[Any] = [module_level, "exact_match"]
    assert RewardArgs(functions=functions).functions == [f"{__name__}:module_level", "exact_match"]
    unnamed: list[Any] = [lambda completions: [0.0]]
    with pytest.raises(ConfigError, match="other processes cannot import it"):
        RewardArgs(functions=unnamed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_reward_of_answers_that_fail_is_a_number_or_none(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^reward_on_error=\w+ must be a finite number, or null for none$"):
        config("matches", reward_on_error=value)
