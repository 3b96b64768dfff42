"""The dataset of a configuration: the dataclass for a dataset's name, and the splits that it describes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reallm.errors import ConfigError, PluginError
from reallm.options import option
from reallm.plugins import registry

if TYPE_CHECKING:
    from reallm.data.datasets import Dataset

PATHS = {"train": "train_path", "valid": "valid_path"}
"""Split -> the field with its file, which a dataset class receives as `path`."""
ROW_FIELDS = ("format", "columns")
"""Fields about the rows of all files, which a dataset class receives as part of `path`, a `RowSource`."""
BATCH_SIZES = {"train": "train_bs_n_seqs", "valid": "valid_bs_n_seqs"}
"""Split -> the field with its batch size in sequences, which a dataset class does not receive."""
CHAT_TEMPLATE = "chat_template"
"""Field with a chat template for the tokenizer, which a dataset class receives already changed."""
DEFAULT_BATCH_SIZE = 32


def config_class(name: str) -> type:
    """The configuration dataclass of dataset `name`, with an additional field `name` whose default is that name.

    Raises:
        PluginError: no installed plugin offers the dataset, or its configuration is not a usable dataclass.
    """
    cls = registry.get("dataset", name).config_class()
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise PluginError(f"dataset '{name}': its configuration {cls!r} is not a dataclass")
    for item in dataclasses.fields(cls):
        if item.name == "name":
            if item.default != name:
                raise PluginError(
                    f"dataset '{name}': its configuration {cls.__qualname__} has a field 'name', "
                    "but dataset.name chooses the dataset; rename the field"
                )
            return cls
    return _with_name(cls, name, f"which dataset; installed: {', '.join(registry.declared('dataset'))}")


@functools.cache  # the same class each time, so that configurations compare equal
def _with_name(cls: type, name: str, about: str) -> type:
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]  # a frozen class has only frozen subclasses
    fields = [("name", str, option(name, about))]
    named = dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=frozen, kw_only=True)
    named.__module__, named.__qualname__, named.__doc__ = cls.__module__, cls.__qualname__, cls.__doc__
    return named


def dataset_name(config: Any) -> str:
    """The name of the dataset whose configuration this is.

    Raises:
        ConfigError: no installed plugin offers a dataset with this class of configuration.
    """
    name = getattr(config, "name", None)
    if isinstance(name, str):
        return name
    cls = type(config)
    for name, spec in registry.offers("dataset").items():
        # References are compared as text, so that no other plugin is imported.
        if spec.config is cls or spec.config == f"{cls.__module__}:{cls.__qualname__}":
            return name
    raise ConfigError(f"dataset: {cls.__qualname__} is not the configuration of an installed dataset")


def splits(config: Any) -> dict[str, Dataset]:
    """Split -> `Dataset(name, args)`: `"train"`, and `"valid"` if its file is given; see `split_args`."""
    from reallm.data.datasets import Dataset

    name = dataset_name(config)
    return {split: Dataset(name, args) for split, args in split_args(config).items()}


def split_args(config: Any) -> dict[str, dict[str, Any]]:
    """Split -> the arguments that a dataset class is constructed with: `{"train": {"path": "a.jsonl", ...}}`.

    These are the fields of `config` except paths, batch sizes, chat template and name, plus `path` with the split's
    file: as it is written, or a `RowSource` if the configuration has the fields `format` and `columns`. A configuration
    without `train_path` has only the split `"train"`, without `path` unless that is a field.
    """
    not_passed = {"name", CHAT_TEMPLATE, *PATHS.values(), *BATCH_SIZES.values()}
    args = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in not_passed}
    wrap = _row_source(args)
    if not hasattr(config, PATHS["train"]):
        return {"train": {name: wrap(value) if name == "path" else value for name, value in args.items()}}
    paths = {split: getattr(config, field, None) for split, field in PATHS.items()}
    return {split: {"path": wrap(path), **args} for split, path in paths.items() if path is not None}


def _row_source(args: dict[str, Any]) -> Callable[[Any], Any]:
    """A function that puts a path in a `RowSource` with the `format` and `columns` of `args`, which it removes."""
    if not all(name in args for name in ROW_FIELDS):
        return lambda path: path
    from reallm.data.row_sources import RowSource

    about = {name: args.pop(name) for name in ROW_FIELDS}
    return lambda path: RowSource(path, **about)


def batch_size(config: Any, split: str) -> int:
    """Sequences in a batch of `split` ("train" or "valid"), given by the dataset's configuration or the default."""
    return getattr(config, BATCH_SIZES[split], DEFAULT_BATCH_SIZE)
