"""`Check`, one promise of a plugin, and what a check raises when the promise is broken or cannot be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S")
"""The subject of a check: the plugin under test with the tiny inputs it needs."""


@dataclass(frozen=True)
class Failure:
    """What a plugin did wrong. `where` and `look_at` may be empty.

    Attributes:
        expected: what the promise asks for.
        seen: what happened instead.
        where: the position in the data: `sample 3, field 'loss_mask'`.
        look_at: the position in the plugin's source, as precisely as it is known: a row of its table, or
            `my_data/dataset.py:34 (MyDataset.__getitem__)`.
    """

    expected: str
    seen: str
    where: str = ""
    look_at: str = ""

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line that is not empty."""
        labelled = {"expected": self.expected, "seen": self.seen, "where": self.where, "look at": self.look_at}
        return [(label, text) for label, text in labelled.items() if text]

    def __str__(self) -> str:
        return "\n".join(f"{label:<8}  {text}" for label, text in self.lines())


class CheckFailed(Exception):  # noqa: N818 - not an error of the kit
    """Raised by a check when the plugin breaks its promise. Takes the arguments of `Failure`."""

    def __init__(self, expected: str, seen: str, where: str = "", look_at: str = "") -> None:
        self.failure = Failure(*(" ".join(text.split()) for text in (expected, seen, where, look_at)))
        super().__init__(str(self.failure))


class Skipped(Exception):  # noqa: N818 - as above
    """Raised by a check that cannot run; the message is one line that says what it would need."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """One promise of a kind of plugin, and the function that tests it.

    Attributes:
        name: in kebab-case, such as `same-twice`.
        promise: one line without a full stop.
        function: takes the subject and returns a short line on what it saw (`5 samples, 3 keys`); raises `CheckFailed`
            or `Skipped`.
        needs: checks that have to pass first; otherwise this one is skipped.
    """

    name: str
    promise: str
    function: Callable[[S], str]
    needs: tuple[Check[S], ...] = ()

    @property
    def test_name(self) -> str:
        """The name of the test method: `test_same_twice`."""
        return f"test_{self.name.replace('-', '_')}"


def check(*, needs: Sequence[Check[Any]] = ()) -> Callable[[Callable[[S], str]], Check[S]]:
    """Decorate a function as a `Check`, with the function's name and the first line of its docstring as the promise.

    @check(needs=[sample])
    def same_twice(subject: DatasetSubject) -> str:
        \"\"\"the same index gives the same sample\"\"\"
    """

    def decorate(function: Callable[[S], str]) -> Check[S]:
        promise = (function.__doc__ or "").strip().partition("\n")[0]
        assert promise, f"{function.__name__} has no docstring to take the promise from"
        return Check(function.__name__.replace("_", "-"), promise, function, tuple(needs))

    return decorate
