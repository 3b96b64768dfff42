"""What a check is, and the ways in which it can end other than well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S")
"""What a check looks at: the plugin under test with whatever tiny inputs it needs."""


@dataclass(frozen=True)
class Failure:
    """What a plugin did wrong, in four lines of which each may be empty but the first two.

    `where` is the place in the data (`sample 3, field 'loss_mask'`), `look_at` the place in the plugin, as precisely as
    it is known: a row of its table, or `my_data/dataset.py:34 (MyDataset.__getitem__)`.
    """

    expected: str
    seen: str
    where: str = ""
    look_at: str = ""

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line that says something."""
        labelled = {"expected": self.expected, "seen": self.seen, "where": self.where, "look at": self.look_at}
        return [(label, text) for label, text in labelled.items() if text]

    def __str__(self) -> str:
        return "\n".join(f"{label:<8}  {text}" for label, text in self.lines())


class CheckFailed(Exception):  # noqa: N818 - it is no error of the kit
    """Raised by a check: the plugin breaks its promise. Arguments are those of `Failure`."""

    def __init__(self, expected: str, seen: str, where: str = "", look_at: str = "") -> None:
        self.failure = Failure(*(" ".join(text.split()) for text in (expected, seen, where, look_at)))
        super().__init__(str(self.failure))


class Skipped(Exception):  # noqa: N818 - as above
    """Raised by a check that cannot be made here; the one line says what would have it made."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """One promise of a kind of plugin, and the function that finds out whether it is kept.

    Attributes:
        name: in kebab-case, such as `same-twice`.
        promise: what is promised, in one line without a full stop.
        function: returns a short line of what was seen (`5 samples, 3 keys`); see `reallm_devkit` for what it raises.
        needs: checks that must have passed before; if not, this one is skipped.
    """

    name: str
    promise: str
    function: Callable[[S], str]
    needs: tuple[Check[S], ...] = ()

    @property
    def test_name(self) -> str:
        """As a test suite calls it: `test_same_twice`."""
        return f"test_{self.name.replace('-', '_')}"


def check(*, needs: Sequence[Check[Any]] = ()) -> Callable[[Callable[[S], str]], Check[S]]:
    """Make a `Check` of a function: its name is the function's, its promise the first line of the docstring.

    @check(needs=[sample])
    def same_twice(subject: DatasetSubject) -> str:
        \"\"\"the same index gives the same sample\"\"\"
    """

    def made(function: Callable[[S], str]) -> Check[S]:
        promise = (function.__doc__ or "").strip().partition("\n")[0]
        assert promise, f"{function.__name__} has no docstring to promise anything"
        return Check(function.__name__.replace("_", "-"), promise, function, tuple(needs))

    return made
