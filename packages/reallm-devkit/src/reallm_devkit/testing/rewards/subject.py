"""`RewardSubject`, the reward function under test, and the completions that it is called with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from reallm.specs import RewardSpec
from reallm_devkit.testing.source import reference_location
from reallm_devkit.testing.spec_subject import SpecSubject

GIVEN = ("prompts", "completions", "completion_ids")
"""Arguments of every reward function, besides the columns."""


@dataclass(frozen=True, kw_only=True)
class RewardSubject(SpecSubject[RewardSpec]):
    """A reward function, and rows to call it with.

    Attributes:
        rows: columns of each row, with its `prompt` and `completion` as text.
    """

    rows: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function."""
        return self.spec.reward_function()

    @property
    def location(self) -> str:
        """The location of the function."""
        function: Any = self.spec.function
        return reference_location(function)

    @property
    def needed(self) -> list[str]:
        """Columns that the function cannot do without: its parameters without a default."""
        return [
            name
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.default is parameter.empty
            and name not in GIVEN
        ]

    def arguments(self, order: Sequence[int] | None = None, *, as_messages: bool = False) -> dict[str, list[Any]]:
        """Arguments of a call with the rows in an order; completions and prompts as text or as messages."""
        rows = [copy.deepcopy(dict(self.rows[i])) for i in (range(len(self.rows)) if order is None else order)]
        prompts, completions = ([str(row.pop(key, "")) for row in rows] for key in ("prompt", "completion"))
        columns = {
            name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)
        }
        ids = [[ord(letter) % 100 for letter in text] for text in completions]
        if as_messages:
            return {
                "prompts": [[{"role": "user", "content": text}] for text in prompts],
                "completions": [[{"role": "assistant", "content": text}] for text in completions],
                "completion_ids": ids,
                **columns,
            }
        return {"prompts": prompts, "completions": completions, "completion_ids": ids, **columns}

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns; it gets those columns that it takes, as in a run."""
        parameters = inspect.signature(self.function).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in parameters}
        found = self.function(**arguments)
        if inspect.isawaitable(found):
            import asyncio

            async def wait() -> Any:
                return await found

            return asyncio.run(wait())
        return found
