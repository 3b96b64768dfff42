"""Loads a configuration object: defaults of its dataclass, overridden by YAML files, overridden by `key=value`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from reallm.arguments import check_items, check_path
from reallm.config.assignments import Assignment, from_arguments, from_yaml
from reallm.config.dataset import PATHS, dataset_name
from reallm.config.mixture import MIX
from reallm.config.presets import with_preset
from reallm.config.schema import Group, Key, dataset_fields, groups, in_group, missing_text
from reallm.config.structured import structured
from reallm.config.suggestions import unknown_key
from reallm.config.trust import TRUST_CODE, check_code_is_trusted, check_no_functions_in_files
from reallm.errors import ConfigError, ReallmError, did_you_mean, kind_of
from reallm.field_types import (
    allowed_text,
    is_list,
    is_mapping,
    is_optional,
    is_text,
    is_text_or_list,
    item_type,
    literals,
)
from reallm.options import REQUIRED, is_missing
from reallm.printable import printable


@dataclass(frozen=True)
class Configuration:
    """The value of each key (`"optimizer.lr"`); `REQUIRED` for a required one that is not given."""

    groups: tuple[Group, ...]
    values: Mapping[str, Any]

    def tree(self) -> dict[str, Any]:
        """The values as nested mappings, including the dataset's name."""
        tree: dict[str, Any] = {}
        for name, value in self.values.items():
            *parents, leaf = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = str(value) if isinstance(value, Path) else value
        return tree

    def to_yaml(self) -> str:
        """All values as YAML that `load` reads, with `???` for a required one that is missing."""
        text = OmegaConf.to_yaml(OmegaConf.create(self.tree()))
        if printable(text) == text:
            return text
        return yaml.safe_dump(self.tree(), sort_keys=False)  # all but ASCII as escapes, which YAML reads

    def build(self) -> Any:
        """An instance of the configuration dataclass.

        Raises:
            ConfigError: required values are missing (all are named), or the dataclass refuses a value.
        """
        if missing := self._missing():
            raise ConfigError("; ".join(missing_text(key) for key in missing))
        return self._instance("")

    def with_placeholders(self) -> Configuration:
        """The same, with a text for each required text that is not given: for what does not depend on any path."""
        missing = [key.name for key in self._missing() if is_text(key.type) or is_text_or_list(key.type)]
        placeholders: dict[str, Any] = dict.fromkeys(missing, "...")
        for keys in getattr(self._class, "one_of", ()):
            if not any(self.values[key] for key in keys):
                is_list = isinstance(self.values[keys[0]], list)
                placeholders[keys[0]] = ["..."] if is_list else "..."
        return dataclasses.replace(self, values={**self.values, **placeholders})

    @property
    def _class(self) -> type | None:
        """The configuration class."""
        return next(group.cls for group in self.groups if not group.name)

    def _missing(self) -> list[Key]:
        """The required keys that are not given."""
        return [
            key
            for group in self.groups
            for key in group.keys
            if is_missing(self.values[key.name]) and not self._is_replaced_by_mixture(key, group)
        ]

    def _is_replaced_by_mixture(self, key: Key, group: Group) -> bool:
        is_path = group.dataset is not None and key.leaf in (PATHS["train"], "path")
        return is_path and bool(self.values.get(f"{group.name}.{MIX}"))

    def _instance(self, name: str) -> Any:
        group = next(group for group in self.groups if group.name == name)
        assert group.cls is not None
        inner = [group.name for group in self.groups if group.name and group.name.rpartition(".")[0] == name]
        fields = {key.leaf: self.values[key.name] for key in group.keys}
        fields.update({inner_name.rpartition(".")[2]: self._instance(inner_name) for inner_name in inner})
        try:
            return group.cls(**fields)
        except (ReallmError, ValueError) as error:  # a plugin's dataclass may raise a ValueError
            raise ConfigError(in_group(name, group.cls, error)) from error


def load(
    config_class: type,
    files: Sequence[str | Path] = (),
    arguments: Sequence[str] = (),
    *,
    unused_in_files: Collection[str] = (),
) -> Configuration:
    """Load the values of a configuration dataclass: its defaults, then `files` in order, then `key=value` arguments.

        config = load(SFTConfig, ["run.yaml"], ["model.path=path/to/checkpoint", "epochs=2"]).build()

    Keys and groups named in `unused_in_files`, which the dataclass does not have, are passed over in files. Files may
    name code and read environment variables only if `--trust-code` is among the arguments.

    Raises:
        ConfigError: an argument, key, value or file is wrong; suggests the nearest right one in one line.
        PluginError: the chosen dataset is not installed.
    """
    _check_class(config_class)
    if not isinstance(files, str | Path | Sequence):
        raise ConfigError(f"files must be a list of paths, not {kind_of(files)}")
    paths = [Path(check_path("files", file)) for file in ([files] if isinstance(files, str | Path) else files)]
    check_items("arguments", arguments, str)
    assignments = [
        item
        for source in _sources(config_class, paths, arguments)
        for item in with_preset(config_class, source)
        if not item.origin or item.key.partition(".")[0] not in unused_in_files
    ]
    found = tuple(groups(config_class, _chosen(config_class, assignments)))
    keys = {key.name: key for group in found for key in group.keys}
    if TRUST_CODE not in arguments:
        check_no_functions_in_files(assignments)
    tree = _tree(config_class, found)
    for assignment in assignments:
        _assign(tree, _written_out(assignment, found), keys, found)
    values = {name: _read(tree, name) for name in keys}
    if TRUST_CODE not in arguments:
        check_code_is_trusted(values, assignments)
    return Configuration(found, values)


def describe(config: Any) -> Configuration:
    """The values of a configuration object, as `load` would return them: `describe(config).to_yaml()`."""
    _check_class(type(config))
    chosen = {name: dataset_name(getattr(config, name)) for name in dataset_fields(type(config))}
    found = tuple(groups(type(config), chosen))
    values: dict[str, Any] = {}
    for group in found:
        node = config
        for name in filter(None, group.name.split(".")):
            node = getattr(node, name)
        for key in group.keys:
            # The configuration of a dataset that was constructed in Python has no `name`.
            is_unnamed = group.dataset is not None and key.leaf == "name" and not hasattr(node, "name")
            values[key.name] = group.dataset if is_unnamed else getattr(node, key.leaf)
    return Configuration(found, values)


def _check_class(config_class: Any) -> None:
    if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
        raise ConfigError(f"{config_class!r} is not a configuration class, such as SFTConfig")


def default_settings(config: Any) -> dict[str, Any]:
    """The defaults of all keys of a configuration object, as nested mappings: what a key had before it existed."""
    found = describe(config).groups
    return Configuration(found, {key.name: key.default for group in found for key in group.keys}).tree()


def chosen_datasets(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> dict[str, str]:
    """The dataset names given by files or arguments, by dataset field of a configuration dataclass."""
    return _chosen(config_class, _assignments(config_class, files, arguments))


def given(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> dict[str, str]:
    """The keys that files and arguments give, each with its last value as text; keys set to null are left out."""
    values = {item.key: item for item in _assignments(config_class, files, arguments)}
    return {key: item.text or str(item.value) for key, item in values.items() if item.value is not None}


def _assignments(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> list[Assignment]:
    return [item for source in _sources(config_class, files, arguments) for item in source]


def _sources(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> list[list[Assignment]]:
    """The assignments of each file, and of the command line."""
    keys_and_values = [argument for argument in arguments if argument != TRUST_CODE]
    return [*map(from_yaml, files), from_arguments(keys_and_values, lambda: groups(config_class, tolerate=True))]


def _chosen(config_class: type, assignments: Sequence[Assignment]) -> dict[str, str]:
    names = {f"{field}.name": field for field in dataset_fields(config_class)}
    return {names[item.key]: item.text or str(item.value) for item in assignments if item.key in names}


def _tree(config_class: type, found: Sequence[Group]) -> DictConfig:
    """The dataclass as a typed OmegaConf tree, with the configurations of the chosen datasets."""
    tree = OmegaConf.structured(config_class)
    _thaw(tree)
    for group in found:
        if group.dataset is not None:
            assert group.cls is not None
            OmegaConf.update(tree, group.name, structured(group.cls))
    _thaw(tree)
    return tree


def _thaw(node: DictConfig) -> None:
    """Make the OmegaConf nodes of frozen dataclasses writable."""
    OmegaConf.set_readonly(node, False)
    for name in node:
        if not OmegaConf.is_missing(node, name) and OmegaConf.is_dict(node[name]):
            _thaw(node[name])


def _written_out(item: Assignment, found: Sequence[Group]) -> Assignment:
    """`reward.functions=[exact_match]` for `reward=exact_match`: a value of a group that has a `shorthand`."""
    shorthand = next((getattr(group.cls, "shorthand", "") for group in found if group.name == item.key), "")
    if not shorthand or not item.value or isinstance(item.value, dict):
        return item
    value = item.value if isinstance(item.value, list) else [str(item.value)]
    return dataclasses.replace(item, key=f"{item.key}.{shorthand}", value=value)


def _assign(tree: DictConfig, item: Assignment, keys: Mapping[str, Key], found: Sequence[Group]) -> None:
    if item.value in (None, {}) and any(group.name == item.key for group in found):
        return  # `optimizer:` with nothing below it in a YAML file
    key = keys.get(item.key) or _mapping_above(item.key, keys)
    if key is None:
        raise ConfigError(item.origin + unknown_key(item.key, found))
    hint = key.type if item.key == key.name else item_type(key.type)
    shown = item.text if item.text is not None else item.value
    if item.value is None and not is_optional(hint):
        raise ConfigError(f"{item.origin}{item.key} must not be null; it must be {allowed_text(hint)}")
    value = item.value
    if is_text(hint) or (is_text_or_list(hint) and not isinstance(value, list)):
        value = item.text if item.text is not None and value is not None else value
    if is_text_or_list(hint) and not _is_text_or_list(value):
        raise ConfigError(f"{item.origin}{item.key}={shown}: must be text or a list of texts")
    try:
        OmegaConf.update(tree, item.key, value)
    except GrammarParseError as error:
        raise ConfigError(f"{item.origin}{item.key}={shown}: a reference to a key is written ${{key}}") from error
    except OmegaConfBaseException as error:
        hint = did_you_mean(str(shown), literals(key.type))
        if is_list(key.type) and item.text is not None:
            hint = f"; write {item.key}=[{shown}]"
        if key.leaf == MIX and any(group.dataset and key in group.keys for group in found):
            hint = f"; name each source: {item.key}.NAME.path={shown if isinstance(value, str) else 'FILE'}"
            raise ConfigError(f"{item.origin}{item.key}={shown}: must be a mapping{hint}") from error
        raise ConfigError(f"{item.origin}{item.key}={shown}: must be {allowed_text(key.type)}{hint}") from error


def _is_text_or_list(value: Any) -> bool:
    return value is None or all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))


def _mapping_above(name: str, keys: Mapping[str, Key]) -> Key | None:
    """The key of type `dict` or `Any` that contains `name`: `dataset.extra` for `dataset.extra.a`."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in keys:
            return keys[name] if is_mapping(keys[name].type) else None
    return None


def _read(tree: DictConfig, name: str) -> Any:
    """The value of a key with `${...}` resolved; lists and mappings as plain Python objects."""
    try:
        parent, _, leaf = name.rpartition(".")
        node = OmegaConf.select(tree, parent) if parent else tree
        if OmegaConf.is_missing(node, leaf):
            return REQUIRED
        value = node[leaf]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
