"""`RewardKit`, the conformance kit for reward functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

from reallm.errors import ConfigError
from reallm.references import resolve
from reallm.specs import RewardSpec
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.rewards import calling
from reallm_devkit.testing.rewards.subject import RewardSubject

REWARD_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    calling.columns,
    calling.values,
    calling.messages,
    calling.other_columns,
    calling.same_twice,
    calling.order,
    calling.inputs,
    calling.side_effects,
)
"""The checks of a reward function."""

COMPLETIONS = ("4", "The answer is 4.", r"\boxed{4}", "<think>2 + 2</think><answer>4</answer>", "five", "")
DEFAULT_ROWS: tuple[Mapping[str, Any], ...] = tuple(
    {"prompt": "What is 2 + 2?", "completion": text, "answer": "4", "wanted_length": 8} for text in COMPLETIONS
)
"""Rows for rewards that read no other column than `answer` or `wanted_length`."""


class RewardKit(PluginKit[RewardSubject]):
    """The checks of a reward function. As a test suite:

    class TestMyReward(RewardKit):
        reward = "my-reward"
        rows = [{"prompt": "Spell no:", "completion": " n o", "answer": "n o"}, ...]
    """

    kind = "reward"
    checks: ClassVar[tuple[Check[Any], ...]] = REWARD_CHECKS

    reward: ClassVar[str | RewardSpec] = ""
    """The name it is installed under, or the `RewardSpec` of one that is not installed yet."""

    rows: ClassVar[Sequence[Mapping[str, Any]]] = DEFAULT_ROWS
    """Rows with a `prompt` and a `completion` as text, and the columns that it reads; by default the `example` of the
    `RewardSpec`, if it has one."""

    def subject(self, case: str) -> RewardSubject:
        """Make the subject."""
        spec: RewardSpec = self._spec()
        if missing := [module for module in spec.requires if find_spec(module) is None]:
            raise ConfigError(f"{self.title()} needs {', '.join(missing)}; {spec.install_command}")
        rows = self.rows
        if rows is DEFAULT_ROWS and spec.example is not None:
            rows = resolve(spec.example)()
        return RewardSubject(spec=spec, table=self._table(), light_modules=self._light_modules(), rows=rows)

    def _reference(self) -> Any:
        """The function, or a lazy reference to it."""
        return self._spec().function


def check_reward(
    reward: str | RewardSpec,
    *,
    rows: Sequence[Mapping[str, Any]] = DEFAULT_ROWS,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Check a reward function; the arguments are the attributes of `RewardKit`: `check_reward("brevity").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    return RewardKit.of(reward=reward, rows=rows, skip=skip or {}).run()
