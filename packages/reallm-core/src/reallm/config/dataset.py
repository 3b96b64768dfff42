"""The dataset of a configuration: the dataclass for a dataset's name, and the splits that it describes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reallm.config.mixture import MIX, MixSource, mix_sources
from reallm.errors import ConfigError, PluginError
from reallm.options import REQUIRED, option
from reallm.plugins import registry

if TYPE_CHECKING:
    from reallm.data.datasets import Dataset
    from reallm.data.mixture import Mixture
    from reallm.data.row_sources import RowSource

PATHS = {"train": "train_path", "valid": "valid_path"}
"""Split -> the field with its file, which a dataset class receives as `path`."""
ROW_FIELDS = ("format", "columns")
"""Fields about the rows of all files, which a dataset class receives as part of `path`, a `RowSource`."""
VALID_FRACTION = "valid_fraction"
"""Field with the share of the rows that are held out, in configurations that have `ROW_FIELDS`."""
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


def splits(config: Any) -> dict[str, Dataset | Mixture]:
    """Split -> what it is made of: `"train"`, and `"valid"` if there are rows to evaluate on; see `split_args`.

    With sources in `mix`, the training data is their mixture, and so are the rows that `valid_fraction` holds out.

    Raises:
        ConfigError: settings contradict each other, or a source of the mixture is wrong; names the field.
    """
    from reallm.data.datasets import Dataset
    from reallm.data.mixture import Mixture

    check_splits(config)
    name, sources = dataset_name(config), mix_sources(config)
    if not sources:
        return {split: Dataset(name, args) for split, args in split_args(config).items()}
    args = {source: split_args(_of_source(config, about)) for source, about in sources.items()}
    weights = {source: about.weight for source, about in sources.items() if about.weight is not None}
    found: dict[str, Dataset | Mixture] = {
        split: Mixture({source: Dataset(name, args[source][split]) for source in sources}, of_split, split == "valid")
        for split, of_split in {"train": weights, "valid": {}}.items()
        if split in next(iter(args.values()))
    }
    valid_path = getattr(config, PATHS["valid"], None)
    if valid_path is not None:
        found["valid"] = Dataset(name, split_args(_of_source(config, MixSource(valid_path)))["train"])
    return found


def check_splits(config: Any) -> None:
    """Check what a dataset's configuration says about its rows: paths, mixture and split.

    Raises:
        ConfigError: settings contradict each other, or a source of the mixture is wrong; names the field.
    """
    train = _train_field(config)
    if hasattr(config, MIX):
        path, is_mixture = getattr(config, train, None), bool(mix_sources(config))
        if is_mixture and path not in (None, REQUIRED):
            raise ConfigError(f"{train}={path}: the sources of {MIX} are the rows to train on; give one or the other")
        if not is_mixture and path is None:
            raise ConfigError(f"{train} is required, or sources of a mixture ({MIX}.NAME.path=...)")
    fraction = getattr(config, VALID_FRACTION, None)
    if fraction is None:
        return
    if not 0 < fraction < 1:
        raise ConfigError(f"{VALID_FRACTION}={fraction} must be above 0 and below 1")
    if getattr(config, PATHS["valid"], None) is not None:
        raise ConfigError(
            f"{VALID_FRACTION}={fraction}: {PATHS['valid']} gives the rows to evaluate on; give one or the other"
        )


def _of_source(config: Any, source: MixSource) -> Any:
    """The configuration of a dataset with the rows of one source alone."""
    names = {item.name for item in dataclasses.fields(config)}
    changes = {_train_field(config): source.path, MIX: {}}
    about = {"format": source.format, "columns": source.columns}
    changes |= {name: value for name, value in about.items() if value and name in names}
    if PATHS["valid"] in names:
        changes[PATHS["valid"]] = None
    return dataclasses.replace(config, **changes)


def _train_field(config: Any) -> str:
    """The field with the rows to train on."""
    return PATHS["train"] if hasattr(config, PATHS["train"]) else "path"


def split_args(config: Any) -> dict[str, dict[str, Any]]:
    """Split -> the arguments that a dataset class is constructed with: `{"train": {"path": "a.jsonl", ...}}`.

    These are the fields of `config` except paths, batch sizes, chat template, name and those about splits, plus `path`
    with the split's file: as it is written, or a `RowSource` if the configuration has the fields `format` and
    `columns`. A configuration without `train_path` has only the split `"train"`, without `path` unless that is a field.
    With `valid_fraction` both splits have the same file, of which each takes its rows. A configuration whose samples
    come from no file may have a method `split_args`, which decides itself.
    """
    if hasattr(config, "split_args"):
        own: dict[str, dict[str, Any]] = config.split_args()
        return own
    not_passed = {"name", CHAT_TEMPLATE, MIX, *PATHS.values(), *BATCH_SIZES.values()}
    args = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in not_passed}
    is_row_source = all(name in args for name in ROW_FIELDS)
    about = {name: args.pop(name) for name in ROW_FIELDS} if is_row_source else {}
    fraction = args.pop(VALID_FRACTION, None) if is_row_source else None
    if not hasattr(config, _train_field(config)):
        return {"train": args}
    args.pop("path", None)
    train, valid = getattr(config, _train_field(config)), getattr(config, PATHS["valid"], None)
    paths = {"train": train, "valid": valid if fraction is None else train}
    return {
        split: {"path": _source(path, split, about, fraction) if is_row_source else path, **args}
        for split, path in paths.items()
        if split == "train" or path is not None
    }


def _source(path: Any, split: str, about: Mapping[str, Any], valid_fraction: float | None) -> RowSource:
    from reallm.data.row_sources import RowSource
    from reallm.data.row_split import RowSplit

    part = None if valid_fraction is None else RowSplit(valid_fraction, is_valid=split == "valid")
    return RowSource(path, **about, split=part)


def batch_size(config: Any, split: str) -> int:
    """Sequences in a batch of `split` ("train" or "valid"), given by the dataset's configuration or the default."""
    return getattr(config, BATCH_SIZES[split], DEFAULT_BATCH_SIZE)
