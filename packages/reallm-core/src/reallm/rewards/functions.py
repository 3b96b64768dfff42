"""Reward functions as modules or files hold them: where one is, and what it reads.

A location is text that every process can import the function from: `package.module:function`, or
`/path/file.py:function` with an absolute path; `verl:` before it marks a function of verl's signature.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from reallm.errors import RewardError, did_you_mean, one_line
from reallm.rewards import verl

GIVEN = ("prompts", "completions", "completion_ids")
"""Arguments that every reward function is given, besides the columns of the rows."""
VERL = "verl:"
"""Beginning of the location of a function with verl's signature, `compute_score`."""


def load(location: str) -> Callable[..., Any]:
    """The function at a location, with TRL's signature.

    Raises:
        RewardError: there is none; one line that says why.
    """
    if location.startswith(VERL):
        return verl.adapted(load(location.removeprefix(VERL)))
    where, _, name = location.rpartition(":")
    try:
        module = _file_module(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ModuleNotFoundError as error:
        is_it = error.name is not None and f"{where}.".startswith(f"{error.name}.")
        missing = f"there is no module '{error.name}'"
        hint = _hint(where, name) if is_it else f", which {where} imports"
        raise RewardError(f"reward function '{location}': {missing}{hint}") from error
    except FileNotFoundError as error:
        raise RewardError(f"reward function '{location}': there is no file {where}") from error
    except Exception as error:  # the module is the user's code
        raise RewardError(
            f"reward function '{location}': {where} cannot be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
    function: Any = getattr(module, name, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(f"reward function '{location}': {where} has no '{name}'{did_you_mean(name, functions)}")
    if not callable(function):
        raise RewardError(f"reward function '{location}': '{name}' is not a function")
    return function


def _hint(module: str, function: str) -> str:
    """What to write instead of a module that there is not."""
    file = Path(f"{module.replace('.', '/')}.py")
    if file.is_file():
        return f"; for the function of the file, write {file}:{function}"
    return "; give package.module:function or file.py:function"


def needed_columns(function: Callable[..., Any]) -> list[str]:
    """The columns that a function cannot do without: its parameters that have no default."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.default is parameter.empty
        and name not in GIVEN
    ]


def accepted(function: Callable[..., Any], names: Collection[str]) -> list[str]:
    """Those of some arguments that a function takes: all with `**kwargs`, else its parameters."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return list(names)
    own = {parameter.name for parameter in parameters}
    return [name for name in names if name in own]


def _file_module(path: Path) -> Any:
    """The module of a file, imported once in a process."""
    name = f"reallm_reward_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
