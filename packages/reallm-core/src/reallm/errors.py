"""What a user did wrong, said in one line.

Every error a user can cause derives from `ReallmError`. Its message names the culprit and the remedy;
the command line prints it alone, without a traceback, and exits with code 2.
A broken invariant of our own is an `assert`, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReallmError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""


class ConfigError(ReallmError):
    """A configuration key, its type or its value."""


class DataError(ReallmError):
    """A data file, a row of it, or a `NamedArray` that does not fit."""


class NonFiniteError(ReallmError):
    """A loss or gradients that are NaN or infinite. The parameters are as they were before the step."""


class CheckpointError(ReallmError):
    """A checkpoint folder or a file in it."""


class PeerError(ReallmError):
    """Another process of a job that has ended, is stuck, or sent something wrong."""


class PluginError(ReallmError):
    """A plugin that is missing, broken, or in conflict with another."""


class UnknownNameError(PluginError):
    """A name (of a family, dataset, algorithm, logger) that no installed plugin offers."""


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, or None if none is alike: `nearest("lama", ["llama", "mistral"]) == "llama"`."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'llama'?"`, or an empty string if nothing is near."""
    near = nearest(name, options)
    return f"; did you mean '{near}'?" if near else ""
