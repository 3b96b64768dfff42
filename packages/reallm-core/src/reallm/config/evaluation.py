"""The configuration of an evaluation: the keys of an algorithm that do not concern training. Imports no torch."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reallm.config.dataset import PATHS, VALID_FRACTION
from reallm.config.load import Configuration, chosen_datasets, describe, load
from reallm.config.mixture import MIX
from reallm.config.schema import call_fields, dataset_fields, groups
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError, ReallmError
from reallm.options import copy_of_field, is_missing

SHARED = ("dataset", "parallel", "max_tokens_per_microbatch", "seed", "deterministic")
"""The keys of `TrainingConfig` that an evaluation has too; it also has the keys that an algorithm adds."""
ROWS = "path"
"""The key of a dataset that names rows to evaluate: `dataset.path`, which is short for `dataset.train_path`."""

OTHER_ROWS: dict[str, Any] = {PATHS["valid"]: None, VALID_FRACTION: None, MIX: {}}
"""Keys of a dataset that `dataset.path` replaces, with the value that turns each off."""


def evaluation_class(config_class: type, *, with_rows: bool = True) -> type:
    """A dataclass with those fields of an algorithm's configuration that an evaluation needs.

    Args:
        config_class: the algorithm's configuration.
        with_rows: whether it has the fields for datasets and for the layouts of calls.
    """
    unused = _unused(config_class, with_rows)
    hints = typing.get_type_hints(config_class)
    kept = [item for item in dataclasses.fields(config_class) if item.init and item.name not in unused]
    kept.sort(key=lambda item: item.name in SHARED)  # models come first
    fields = [(item.name, hints[item.name], copy_of_field(item)) for item in kept]
    return dataclasses.make_dataclass("EvaluationConfig", fields, frozen=True, kw_only=True)


def _unused(config_class: type, with_rows: bool = True) -> set[str]:
    """Names of the fields that an evaluation does not have."""
    names = {item.name for item in dataclasses.fields(TrainingConfig)}.difference(SHARED)
    return names if with_rows else names.union(dataset_fields(config_class), call_fields(config_class))


def load_evaluation(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> Any:
    """An instance of an algorithm's configuration from the keys of an evaluation.

    `dataset.path` names the rows, whatever data a file names. Without it, the rows are those that training would
    evaluate: the dataset's validation data, or its training data if it has no other. Files may be those of training;
    what concerns training alone is not used.

    Raises:
        ConfigError: a key or a value is wrong, or one is missing.
    """
    cls = evaluation_class(config_class)
    short = _short_names(cls, files, arguments)
    loaded = load(
        cls, files, [_in_full(argument, short) for argument in arguments], unused_in_files=_unused(config_class)
    )
    values = dict(loaded.values)
    for rows, train in short.items():
        dataset = train.rpartition(".")[0]
        if any(argument.startswith(f"{rows}=") for argument in arguments):
            for key, none in ((f"{dataset}.{other}", none) for other, none in OTHER_ROWS.items()):
                if any(argument.startswith((f"{key}=", f"{key}.")) for argument in arguments):
                    raise ConfigError(f"{rows} and {key} both name rows to evaluate; leave one of them out")
                if key in values:
                    values[key] = none  # a file has the data of a training run
        elif is_missing(values[train]) and not values.get(f"{dataset}.{MIX}"):
            valid = values.get(f"{dataset}.{PATHS['valid']}")
            if valid is None:
                raise ConfigError(f"{rows} is required: the rows to evaluate")
            values[train] = valid  # training data is not read if there is validation data
    parsed = Configuration(loaded.groups, values).build()
    return config_class(**{item.name: getattr(parsed, item.name) for item in dataclasses.fields(parsed)})


def load_without_rows(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> Any:
    """An instance of `evaluation_class(config_class, with_rows=False)`: models and layout alone.

    Raises:
        ConfigError: a key or a value is wrong, or one is missing.
    """
    for name in dataset_fields(config_class):
        if any(argument.startswith(f"{name}.") for argument in arguments):
            raise ConfigError(f"{name}.* names rows, but --lm-eval evaluates on tasks; leave one of them out")
    cls = evaluation_class(config_class, with_rows=False)
    return load(cls, files, arguments, unused_in_files=_unused(config_class, with_rows=False)).build()


@contextmanager
def keys_as_written(config_class: type, files: Sequence[Path], arguments: Sequence[str]) -> Iterator[None]:
    """Context in which errors speak of `dataset.path` if the arguments do, and not of `dataset.train_path`."""
    try:
        yield
    except ReallmError as error:
        message = str(error)
        for rows, train in _short_names(evaluation_class(config_class), files, arguments).items():
            if any(argument.startswith(f"{rows}=") for argument in arguments):
                message = message.replace(train, rows)
        raise type(error)(message) from error


def evaluation_settings(config: Any) -> dict[str, Any]:
    """The settings of a configuration that an evaluation uses, as nested mappings."""
    kept = {item.name for item in dataclasses.fields(evaluation_class(type(config)))}
    return {name: value for name, value in describe(config).tree().items() if name in kept}


def _short_names(cls: type, files: Sequence[Path], arguments: Sequence[str]) -> dict[str, str]:
    """`{"dataset.path": "dataset.train_path"}`, for datasets that have the second key and not the first."""
    found = groups(cls, chosen_datasets(cls, files, arguments), tolerate=True)
    known = {key.name for group in found for key in group.keys}
    names = {f"{name}.{ROWS}": f"{name}.{PATHS['train']}" for name in dataset_fields(cls)}
    return {rows: train for rows, train in names.items() if rows not in known and train in known}


def _in_full(argument: str, short: dict[str, str]) -> str:
    key, equals, value = argument.partition("=")
    return f"{short[key]}={value}" if equals and key in short else argument
