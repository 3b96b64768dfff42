"""`DatasetKit`, the conformance kit for datasets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from omegaconf.errors import OmegaConfBaseException

from reallm.config.args import dataset_option
from reallm.config.dataset import split_args
from reallm.config.load import load
from reallm.errors import CheckpointError, ConfigError, PluginError, did_you_mean
from reallm.experiments.preflight import checks as experiment_checks
from reallm.hf.checkpoint_folder import resolve_path
from reallm.hf.conversion.transformers_io import load_tokenizer
from reallm.options import option
from reallm.specs import DatasetSpec
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.datasets import configuration, items, order, processes, rows
from reallm_devkit.testing.datasets.subject import DatasetSubject, is_required
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.scratch import ScratchFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reallm.plugins.loader import Offer

DATASET_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    configuration.configuration,
    items.construction,
    items.sample,
    items.keys,
    items.seqlens,
    items.tokens,
    items.ids,
    items.same_twice,
    items.indices,
    items.packing,
    order.seed,
    order.ranks,
    processes.pickling,
    processes.another_process,
    processes.side_effects,
    configuration.report,
    rows.empty_file,
    rows.single_row,
    rows.bad_row,
)
"""The checks of a dataset."""

PATH_KEYS = ("train_path", "path")
"""Keys of a configuration that may name the file with the rows, the usual one first."""


class DatasetKit(PluginKit[DatasetSubject]):
    """The checks of a dataset. As a test suite:

    class TestMyDataset(DatasetKit):
        dataset = "my-dataset"
        config = {"my_arg": 2}
        rows = ["the first line", "the second", "and one more"]
    """

    kind = "dataset"
    checks: ClassVar[tuple[Check[Any], ...]] = DATASET_CHECKS

    dataset: ClassVar[str | DatasetSpec] = ""
    """The name it is installed under, or the `DatasetSpec` of one that is not installed yet."""

    config: ClassVar[Mapping[str, Any]] = {}
    """Values of its keys, among them the path of a file with a few rows: `{"train_path": "tests/rows.jsonl"}`."""

    rows: ClassVar[Sequence[Mapping[str, Any] | str]] = ()
    """Rows instead of a path: mappings are written to a `.jsonl` file, strings to the lines of a `.txt` file."""

    tokenizer: ClassVar[PreTrainedTokenizerBase | str | Path | None] = None
    """The tokenizer for the dataset, or its folder or hub id; None for one with a token per byte."""

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for `reallm plugins check my-dataset dataset.train_path=lines.txt tokenizer=path/to/model`."""
        if checkpoint is not None:
            raise ConfigError("--checkpoint is for model families; a dataset takes tokenizer=PATH")
        name = f"dataset.name={offer.name}"
        given = {argument.partition("=")[0] for argument in arguments}
        example = [f"dataset.{each}" for each in offer.value.example]
        try:
            loaded = load(
                _CommandConfig,
                (),
                [name, *(each for each in example if each.partition("=")[0] not in given), *arguments],
            )
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise PluginError(f"dataset '{offer.name}': its configuration cannot be read: {reason}") from error
        config = loaded.build()
        if config.dataset.name != offer.name:
            raise ConfigError(f"dataset.name={config.dataset.name} is another dataset than {offer.name}; leave it out")
        experiment_checks.check_dataset("dataset", config.dataset)
        values = {item.name: getattr(config.dataset, item.name) for item in dataclasses.fields(config.dataset)}
        keys = {item.name for item in dataclasses.fields(offer.value.config_class())}
        known = {name: value for name, value in values.items() if name in keys}
        return cls.of(dataset=offer.name, config=known, tokenizer=config.tokenizer)

    def subject(self, case: str) -> DatasetSubject:
        """Make the subject, and write `rows` to a file if they are given."""
        spec: DatasetSpec = self._spec()
        config_class = spec.config_class()
        if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
            raise PluginError(f"dataset '{self.title()}': its configuration {config_class!r} is not a dataclass")
        folder = ScratchFolder() if self.rows else None
        values = self._values(config_class, folder)
        for item in dataclasses.fields(config_class):
            if item.name not in values and is_required(item):
                help_text = item.metadata.get("help", "")
                raise ConfigError(f"dataset.{item.name} is required" + (f": {help_text}" if help_text else ""))
        config = config_class(**values)
        args = split_args(config)["train"]
        return DatasetSubject(
            title=f"dataset '{self.title()}'" + (f" of {self.provided_by()}" if self.provided_by() else ""),
            spec=spec,
            config=config,
            args=args,
            path_arg="path" if "path" in args else None,
            tokenizer=self._tokenizer(),
            table=self._table(),
            light_modules=self._light_modules(),
            folder=folder,
        )

    def _values(self, config_class: type, folder: ScratchFolder | None) -> dict[str, Any]:
        keys = [item.name for item in dataclasses.fields(config_class)]
        values = {name: str(value) if isinstance(value, Path) else value for name, value in self.config.items()}
        for name in values:
            if name not in keys:
                hint = did_you_mean(name, keys) or f"; keys: {', '.join(keys)}"
                raise ConfigError(f"config has '{name}', which is not a key of dataset '{self.title()}'{hint}")
        if folder is not None:
            key = next((key for key in PATH_KEYS if key in keys), None)
            if key is None:
                raise ConfigError(f"rows: dataset '{self.title()}' has no key {' or '.join(PATH_KEYS)} to read them by")
            values[key] = str(_write_rows(self.rows, folder.path))
        return values

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            from reallm.demo.tokenizer import byte_tokenizer

            return byte_tokenizer()
        if isinstance(self.tokenizer, str | Path):
            try:
                return load_tokenizer(resolve_path(self.tokenizer))
            except CheckpointError as error:
                raise ConfigError(f"tokenizer={self.tokenizer}: {error}") from error
        return self.tokenizer

    def _light_modules(self) -> tuple[str, ...]:
        config = self._spec().config
        config_module = (config.partition(":")[0],) if isinstance(config, str) else ()
        return tuple(dict.fromkeys(super()._light_modules() + config_module))


def check_dataset(
    dataset: str | DatasetSpec,
    *,
    config: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, Any] | str] = (),
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Check a dataset; the arguments are the attributes of `DatasetKit`: `assert check_dataset(...).passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    kit = DatasetKit.of(dataset=dataset, config=config or {}, rows=rows, tokenizer=tokenizer, skip=skip or {})
    return kit.run()


@dataclass(frozen=True)
class _CommandConfig:
    """The arguments of `reallm plugins check` for a dataset."""

    dataset: Any = dataset_option("prompt_answer", "the dataset's own keys")
    tokenizer: str | None = option(
        None, "folder or hub id of the tokenizer for the dataset; null: one with a token per byte"
    )


def _write_rows(rows: Sequence[Mapping[str, Any] | str], folder: Path) -> Path:
    texts = [row for row in rows if isinstance(row, str)]
    if texts and len(texts) < len(rows):
        raise ConfigError("rows are either all objects or all texts")
    path = folder / ("rows.txt" if texts else "rows.jsonl")
    lines = texts or [json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
