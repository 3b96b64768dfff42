"""The settings of a run: read back from its folder, flattened to dotted keys, and compared. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from reallm.config.args import CallArgs
from reallm.config.optimizer import OPTIONS
from reallm.config.parallel import PREFIX
from reallm.config.plan import PLAN_PREFIX
from reallm.errors import ConfigError
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder, n_ranks
from reallm.parallel.layout import Layout

LOCATION_KEYS = frozenset({"resume", "name", "output_dir"})
"""Keys that determine where a run writes, not what it computes."""

CALL_KEYS = frozenset(item.name for item in dataclasses.fields(CallArgs))
"""Keys that say where and how a call is computed, without its name. They do not change what a run computes."""

Diff = dict[str, tuple[Any, Any]]
"""Dotted key -> values before and now; None if a key is missing."""


def plain(value: Any) -> Any:
    """Convert settings to mappings, lists and values of YAML and JSON; anything else, such as a function, to text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in the `config.yaml` of a run, as nested mappings.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); start a new run") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no settings; start a new run")
    return content


def path_key(file: Path) -> str:
    """The key of the checkpoint that the run of a `config.yaml` trains: `model.path`, or `actor.path`."""
    try:
        settings = read_settings(file)
    except ConfigError:
        settings = {}
    models = [name for name, group in settings.items() if isinstance(group, dict) and {"path", "dtype"} <= group.keys()]
    return f"{models[0] if models else 'model'}.path"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted key: `{"optimizer": {"lr": 1e-5}}` -> `{"optimizer.lr": 1e-5}`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def diff(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Diff:
    """The settings that differ between two runs, all given as nested mappings, except location keys.

    A key that `before` does not have, because its version of reallm did not, has its value in `defaults`.
    """
    old, new = flatten(before), flatten(now)
    for key, value in flatten(defaults or {}).items():
        if not any(
            name.startswith(f"{key}.") for name in old
        ):  # {} is the default of a mapping with values in `before`
            old.setdefault(key, value)
    old, new = with_optimizer_options(old), with_optimizer_options(new)
    return {
        key: (old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if key not in LOCATION_KEYS and old.get(key) != new.get(key)
    }


def with_optimizer_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Flat settings with the values in force of the optimizer's options that are null.

    `config.yaml` of earlier versions has these values.
    """
    options = OPTIONS.get(settings.get("optimizer.name", ""), {})
    found = {f"optimizer.{name}": value for name, value in options.items()}
    return settings | {key: value for key, value in found.items() if settings.get(key) is None}


def without_parallel(changed: Diff, settings: Mapping[str, Any]) -> Diff:
    """The changed settings that may alter results; the split of a run over processes and micro-batches does not.

    Args:
        changed: the changed settings.
        settings: all settings, as nested mappings.
    """
    prefixes, ignored = (PREFIX, PLAN_PREFIX), ("allocation", *_keys_of_calls(settings))
    return {key: values for key, values in changed.items() if not key.startswith(prefixes) and key not in ignored}


def of_plan(changed: Diff, settings: Mapping[str, Any]) -> Diff:
    """The changed settings that split the calls of a run over processes and micro-batches in another way; arguments as
    for `without_parallel`."""
    keys = _keys_of_calls(settings)
    return {
        key: values
        for key, values in changed.items()
        if key in keys or (key.startswith(PREFIX) and key != f"{PREFIX}timeout_s")
    }


def n_processes(settings: Mapping[str, Any]) -> int:
    """Number of processes that settings of a run, as nested mappings, take: by `parallel.*` and layouts of calls."""
    flat = flatten(settings)
    layouts = [Layout.parse(text) for key, text in flat.items() if key.endswith(".layout") and text]
    sizes = [flat.get(PREFIX + axis) or 1 for axis in ("dp", "pp", "tp")]
    return max(math.prod(sizes), *(max(layout.ranks) + 1 for layout in layouts), 1)


def n_processes_of(folder: RunFolder) -> int:
    """Number of processes that trained a run last, some of which its plan may leave idle; that of its settings until
    it has saved."""
    saved = [path for path in folder.saved_steps().values() if (path / TRAINING_STATE).is_dir()]
    return n_ranks(saved[-1]) if saved else n_processes(read_settings(folder.config))


def _keys_of_calls(settings: Mapping[str, Any]) -> set[str]:
    """The keys that say where and how calls are computed, such as `actor_gen.layout`: those of their `CallArgs`."""
    calls = [name for name, group in settings.items() if isinstance(group, Mapping) and group.keys() >= CALL_KEYS]
    return {f"{call}.{key}" for call in calls for key in CALL_KEYS}
