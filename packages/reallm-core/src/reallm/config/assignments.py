"""Parses YAML files and `key=value` arguments into assignments, in order. Keys are not checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reallm.config.schema import Group
from reallm.config.suggestions import not_an_assignment
from reallm.errors import ConfigError
from reallm.foreign_files import read_bytes, reading
from reallm.foreign_yaml import compose_yaml

_LARGEST_YAML = 1 << 20
_WITH_MESSAGES = (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException)


@dataclass(frozen=True)
class Assignment:
    """A key and its value. `text` is the value as written, for keys whose text is not parsed (`007`)."""

    key: str
    value: Any
    text: str | None = None
    origin: str = ""
    """The beginning of an error message, such as `run.yaml:3: `; empty for the command line."""


def from_arguments(arguments: Sequence[str], groups: Callable[[], Sequence[Group]]) -> list[Assignment]:
    """The assignments of a command line, `["optimizer.lr=1e-4"]`; `groups` is called only to explain a mistake.

    Raises:
        ConfigError: an argument is not `key=value`; says how to write it.
    """
    found = []
    for index, argument in enumerate(arguments):
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-") or " " in key:
            raise ConfigError(not_an_assignment(arguments, index, groups()))
        if not text:
            raise ConfigError(f"'{argument}' has no value; write {key}=VALUE without spaces (null for none)")
        found.append(Assignment(key, _parse(text), text))
    return found


def from_yaml(path: Path) -> list[Assignment]:
    """The assignments of a YAML file: a mapping of mappings, or dotted keys, or both.

    Raises:
        ConfigError: the file does not exist, is not YAML, or not a mapping; names file and line.
    """
    try:
        with reading(path, error=ConfigError, passing=_WITH_MESSAGES):
            text = read_bytes(path, at_most=_LARGEST_YAML).decode("utf-8-sig")
            root = compose_yaml(text)
            if root is None:
                return []
            if not isinstance(root, yaml.MappingNode):
                raise ConfigError(f"{path}:1: a configuration is 'key: value' lines, not a single value or a list")
            values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        where = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    written: dict[str, tuple[int | None, str | None]] = dict(_written(root, ""))
    found = []
    for key, value in _leaves(values, ""):
        line, raw = written.get(key, (None, None))  # missing for the keys of a YAML merge (`<<`)
        found.append(Assignment(key, value, raw, f"{path}:{line}: " if line else f"{path}: "))
    return found


def _leaves(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `("a.b", 1)`."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _written(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, tuple[int | None, str | None]]]:
    """Dotted key -> its line and, for a scalar, its text."""
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        yield key, (name.start_mark.line + 1, value.value if isinstance(value, yaml.ScalarNode) else None)
        if isinstance(value, yaml.MappingNode):
            yield from _written(value, f"{key}.")


def _parse(text: str) -> Any:
    """The value of `text` as YAML, or the text itself if it is not YAML (`@x`)."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        return values["value"]
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError):
        return text
