"""Errors that a user can fix, each with a message of one line.

All of them derive from `ReallmError`. The message names the culprit and the remedy; the command line prints it alone,
without a traceback, and exits with code 2. A broken internal invariant is an `assert`, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from reallm.printable import printable_line


class ReallmError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do.

    It may quote anything: ends of lines and control characters become escapes.
    """

    def __str__(self) -> str:
        """The message."""
        return printable_line(super().__str__())


class ConfigError(ReallmError):
    """A configuration key, its type or its value is wrong, or does not fit another one."""


class DataError(ReallmError):
    """A file, a row of data or a `NamedArray` is wrong."""


class NoSamplesError(DataError):
    """A dataset has no sample left. `remarks` say what became of its rows: `"dropped: the prompt is empty"`."""

    def __init__(self, message: str, remarks: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.remarks = tuple(remarks)


class TooFewSamplesError(DataError):
    """A dataset has samples, but fewer than it needs to make one, because it takes a part of each from another row."""


class NonFiniteError(ReallmError):
    """A loss, gradients or logits are NaN or infinite. The parameters are as they were before."""


class CheckpointError(ReallmError):
    """A checkpoint folder or a file in it is wrong."""


class PeerError(ReallmError):
    """Another process of the job has ended, is stuck, or has sent something wrong."""


class MachineError(ReallmError):
    """The machine does not give what is needed: memory, files, threads, a disk that can be written."""


class PluginError(ReallmError):
    """A plugin is missing, broken, or in conflict with another."""


class RewardError(ReallmError):
    """A reward function is not found, or what it has returned are no rewards."""


class UnknownNameError(PluginError):
    """No installed plugin offers a family, dataset, algorithm, logger, callback or reward of this name."""


_LONGEST_NAME = 200
"""Longer texts are no misspelt names, and comparing them takes long."""


def close_matches(name: str, options: Iterable[str]) -> list[str]:
    """The options that `name` may be a misspelling of, at most three, the most similar one first.

    `llama` for `lama`, `sft` for `stf` and `bfloat16` for `bf16`, but not `best_mode` for `base_model`: a far-fetched
    suggestion is worse than none.
    """
    similarity = {option: _similarity(name, option) for option in options} if len(name) <= _LONGEST_NAME else {}
    return sorted((option for option in similarity if similarity[option]), key=lambda option: -similarity[option])[:3]


def _similarity(name: str, option: str) -> float:
    """From 0, not similar at all, to 1."""
    ratio = difflib.SequenceMatcher(None, option, name).ratio()
    if ratio >= 0.75:
        return ratio
    letters = iter(option)
    is_abbreviation = len(name) > 2 and name[0] == option[:1] and all(letter in letters for letter in name)
    are_swapped = len(name) > 2 and sorted(name) == sorted(option)
    return ratio if ratio >= 0.6 and (is_abbreviation or are_swapped) else 0.0


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option most similar to `name`; None if none is: `nearest("lama", ["llama", "mistral"]) == "llama"`."""
    return next(iter(close_matches(name, options)), None)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'llama'?"`, or an empty string if no option is similar."""
    similar = nearest(name, options)
    return f"; did you mean '{similar}'?" if similar else ""


def with_article(noun: str) -> str:
    """`a list`, `an int`."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def quoted(names: Sequence[str], at_most: int | None = None) -> str:
    """Format names for errors: `'a', 'b'`; with `at_most=2`, `'a', 'b' and 7 more`."""
    shown = ", ".join(f"'{name}'" for name in names[:at_most])
    n_more = 0 if at_most is None else len(names) - at_most
    return f"{shown} and {n_more} more" if n_more > 0 else shown


def cut(text: str, length: int) -> str:
    """A text of at most so many characters, the last three dots if it was longer."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def kind_of(value: object) -> str:
    """What a value is, for errors: `text`, `None`, `a list`, `an ndarray`."""
    return "text" if isinstance(value, str) else "None" if value is None else with_article(type(value).__name__)


def counted(n: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 step`, `2,000 steps`, or `2 batches` with the plural `batches`."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def one_line(error: BaseException) -> str:
    """The message of an error of another library, on one line; the error's type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def short_reason(error: BaseException) -> str:
    """What has gone wrong: the system's words, without the number and the path of its error, or else `one_line`."""
    return (isinstance(error, OSError) and error.strerror) or one_line(error)
