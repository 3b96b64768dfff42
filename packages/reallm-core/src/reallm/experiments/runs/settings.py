"""The settings of a run: read back from its folder, flattened to dotted keys, and compared. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm.config.args import CallArgs
from reallm.config.optimizer import OPTIONS
from reallm.errors import ConfigError
from reallm.experiments.runs.folder import RunFolder, has_state, n_ranks
from reallm.foreign_files import read_bytes, reading
from reallm.foreign_yaml import parse_yaml
from reallm.parallel.layout import Layout

LOCATION_KEYS = frozenset({"resume", "name", "output_dir"})
"""Keys that determine where a run writes, not what it computes."""

CALL_KEYS = frozenset(item.name for item in dataclasses.fields(CallArgs))
"""Keys of a call's group, such as `layout` of `actor_gen.layout`. They do not change what a run computes."""

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
    with reading(file, "start a new run", error=ConfigError):
        content = parse_yaml(read_bytes(file).decode("utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no settings; start a new run")
    return content


def path_key(file: Path) -> str:
    """The key of the checkpoint that the run of a `config.yaml` trains: `model.path`, or `actor.path`."""
    try:
        settings = read_settings(file)
    except ConfigError:
        settings = {}
    return f"{trained_role(settings)}.path"


def trained_role(settings: Mapping[str, Any]) -> str:
    """The role whose model a run trains, the first one of several: `model`, or `actor`."""
    groups = {name: group for name, group in settings.items() if isinstance(group, Mapping)}
    return next((name for name, group in groups.items() if {"path", "dtype"} <= group.keys()), "model")


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
    groups = {"parallel", "allocation", "plan", *_calls(settings)}
    return {key: values for key, values in changed.items() if _group(key) not in groups}


def of_plan(changed: Diff, settings: Mapping[str, Any]) -> Diff:
    """The changed settings that split a run over processes and micro-batches; arguments as for `without_parallel`."""
    groups = {"parallel", *_calls(settings)}
    return {key: values for key, values in changed.items() if _group(key) in groups and key != "parallel.timeout_s"}


def n_processes(settings: Mapping[str, Any]) -> int:
    """Number of processes that settings of a run, as nested mappings, take: by `parallel.*` and layouts of calls.

    Raises:
        ConfigError: a size or a layout is wrong.
    """
    layouts = [Layout.parse(str(call["layout"])) for call in _calls(settings).values() if call.get("layout")]
    group = settings.get("parallel")
    dp, pp, tp = ((group.get(axis) if isinstance(group, Mapping) else None) or 1 for axis in ("dp", "pp", "tp"))
    return max(max(layout.ranks) + 1 for layout in (Layout(dp, pp, tp), *layouts))


def n_processes_of(folder: RunFolder) -> int:
    """Number of processes that trained a run last, some of them perhaps idle; by its settings until it has saved."""
    saved = [path for path in folder.saved_steps().values() if has_state(path)]
    return n_ranks(saved[-1]) if saved else n_processes(read_settings(folder.config))


def _calls(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups of settings that say where and how a call is computed: those with keys of `CallArgs` alone.

    Settings of earlier versions may lack some of these keys.
    """
    groups = {name: group for name, group in settings.items() if isinstance(group, Mapping) and group}
    return {name: group for name, group in groups.items() if group.keys() <= CALL_KEYS}


def _group(key: str) -> str:
    return key.partition(".")[0]
