"""Configurations of the four datasets. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from reallm.config.dataset import check_splits
from reallm.config.group import ConfigGroup
from reallm.config.mixture import mix_sources
from reallm.data.chat.template import TrainOn
from reallm.data.row_formats.formats import FORMATS, check_columns
from reallm.data.row_sources import RowSource, check_source
from reallm.data.rows import check_rows
from reallm.errors import ConfigError, DataError
from reallm.options import REQUIRED, option

Overlong = Literal["truncate", "drop"]

_SOURCE = (
    "files, folders or patterns (.jsonl, .json, .csv, .tsv, .parquet, .arrow), hub:org/name:split, module:function, "
    "or a list of these"
)
_FORMAT = f"format of the rows: {', '.join(FORMATS)}; null: recognised by the keys of the first ones"
_COLUMNS = "keys that the rows have under other names, such as columns.prompt=question"
_VALID_FRACTION = "share of the rows to evaluate on, chosen by a hash of each row: 0.02; null: none"
_MIX = "sources to mix instead: mix.NAME.path=..., with mix.NAME.weight, .format and .columns.KEY as you like"
_CHAT_TEMPLATE = (
    "chat template to use instead of the checkpoint's, and to save with the model: chatml or another known name, a "
    "file (.jinja), or the template itself; null: the checkpoint's"
)
_TOOLS = "JSON file with the functions that the model may call, for conversations without tools of their own"

_NUM_PROC = "processes that tokenize many rows, at most; null: one for each core"
_CACHE_DIR = "folder that keeps the tokens of large files; auto: ~/.cache/reallm/tokenized; null: none"


class RowsConfig(ConfigGroup, group="dataset"):
    """Base class of the four configurations: the checks of the fields that all of them declare."""

    train_path: str | list[str] | None
    valid_path: str | list[str] | None
    mix: dict[str, Any]
    format: str | None
    columns: dict[str, str]
    overlong: Overlong
    train_bs_n_seqs: int
    valid_bs_n_seqs: int
    tools_path: str | None
    num_proc: int | None

    def __post_init__(self) -> None:
        if self.mix and self.train_path == REQUIRED:
            self.train_path = None
        check_at_least("train_bs_n_seqs", self.train_bs_n_seqs, 1)
        check_at_least("valid_bs_n_seqs", self.valid_bs_n_seqs, 1)
        check_overlong(self.overlong)
        check_num_proc(self.num_proc)

    def check(self) -> None:
        """Raise ConfigError unless the files exist, can be read, and have first rows of a known format."""
        check_columns(self.columns)
        check_splits(self)
        for name, source in mix_sources(self).items():
            with _named(f"mix.{name}"):
                check_rows(RowSource(source.path, source.format or self.format, source.columns or self.columns))
        for name, path in (("train_path", self.train_path), ("valid_path", self.valid_path)):
            if path is not None:
                with _named(name):
                    check_rows(RowSource(path, self.format, self.columns))
        if self.tools_path is not None:
            with _named("tools_path"):
                check_source(self.tools_path)


@dataclass
class PromptAnswerDatasetConfig(RowsConfig):
    """Prompts with their answers, or conversations; the loss is on the answers."""

    train_path: str | list[str] | None = option(REQUIRED, f"rows to train on: {_SOURCE}")
    valid_path: str | list[str] | None = option(None, "rows to evaluate on, likewise; null: no evaluation")
    valid_fraction: float | None = option(None, _VALID_FRACTION)
    mix: dict[str, Any] = option({}, _MIX)
    format: str | None = option(None, _FORMAT)
    columns: dict[str, str] = option({}, _COLUMNS)
    max_seqlen: int = option(1024, "longest sequence, in tokens of prompt and answer together")
    overlong: Overlong = option("truncate", "what to do with a longer one: cut its end off, or drop it")
    train_bs_n_seqs: int = option(32, "batch size: sequences in an optimizer step")
    valid_bs_n_seqs: int = option(32, "sequences in an evaluation batch")
    pad_to_max_length: bool = option(False, "pad all sequences to max_seqlen; useful only for benchmarks")
    train_on: TrainOn = option(
        "assistant",
        "what of a row is trained: the answer or all turns of the assistant; last: only the last of these turns; "
        "all: the prompt too",
    )
    chat_template: str | None = option(None, _CHAT_TEMPLATE)
    tools_path: str | None = option(None, _TOOLS)
    num_proc: int | None = option(None, _NUM_PROC)
    cache_dir: str | None = option("auto", _CACHE_DIR)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("max_seqlen", self.max_seqlen, 2)
        check_train_on(self.train_on)


@dataclass
class PairedComparisonDatasetConfig(RowsConfig):
    """Prompts, each with answers of which one is better than the other."""

    train_path: str | list[str] | None = option(REQUIRED, f"rows to train on: {_SOURCE}")
    valid_path: str | list[str] | None = option(None, "rows to evaluate on, likewise; null: no evaluation")
    valid_fraction: float | None = option(None, _VALID_FRACTION)
    mix: dict[str, Any] = option({}, _MIX)
    format: str | None = option(None, _FORMAT)
    columns: dict[str, str] = option({}, _COLUMNS)
    max_pairs_per_prompt: int = option(2, "maximum number of pairs of a row, chosen at random by the seed")
    max_seqlen: int = option(1024, "longest sequence, in tokens of prompt and answer together")
    overlong: Overlong = option("truncate", "what to do with a longer one: cut its end off, or drop the pair")
    train_bs_n_seqs: int = option(32, "batch size: rows in an optimizer step")
    valid_bs_n_seqs: int = option(32, "rows in an evaluation batch")
    chat_template: str | None = option(None, _CHAT_TEMPLATE)
    tools_path: str | None = option(None, _TOOLS)
    num_proc: int | None = option(None, _NUM_PROC)
    cache_dir: str | None = option("auto", _CACHE_DIR)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("max_pairs_per_prompt", self.max_pairs_per_prompt, 1)
        check_at_least("max_seqlen", self.max_seqlen, 2)


@dataclass
class UnpairedPreferenceDatasetConfig(RowsConfig):
    """Completions of prompts, each with a label that says whether it is good."""

    train_path: str | list[str] | None = option(REQUIRED, f"rows to train on: {_SOURCE}")
    valid_path: str | list[str] | None = option(None, "rows to evaluate on, likewise; null: no evaluation")
    valid_fraction: float | None = option(None, _VALID_FRACTION)
    mix: dict[str, Any] = option({}, _MIX)
    format: str | None = option(None, _FORMAT)
    columns: dict[str, str] = option({}, _COLUMNS)
    max_seqlen: int = option(1024, "longest sequence, in tokens of prompt and completion together")
    overlong: Overlong = option("truncate", "what to do with a longer one: cut its end off, or drop it")
    train_bs_n_seqs: int = option(32, "batch size: completions in an optimizer step")
    valid_bs_n_seqs: int = option(32, "completions in an evaluation batch")
    chat_template: str | None = option(None, _CHAT_TEMPLATE)
    tools_path: str | None = option(None, _TOOLS)
    num_proc: int | None = option(None, _NUM_PROC)
    cache_dir: str | None = option("auto", _CACHE_DIR)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("max_seqlen", self.max_seqlen, 2)


@dataclass
class PromptOnlyDatasetConfig(RowsConfig):
    """Prompts alone, for a model to answer."""

    train_path: str | list[str] | None = option(REQUIRED, f"prompts to train on: {_SOURCE}")
    valid_path: str | list[str] | None = option(None, "prompts to evaluate on, likewise; null: no evaluation")
    valid_fraction: float | None = option(None, _VALID_FRACTION)
    mix: dict[str, Any] = option({}, _MIX)
    format: str | None = option(None, _FORMAT)
    columns: dict[str, str] = option({}, _COLUMNS)
    max_prompt_len: int = option(256, "longest prompt, in tokens")
    overlong: Overlong = option("drop", "what to do with a longer one: cut its beginning off, or drop it")
    train_bs_n_seqs: int = option(32, "batch size: prompts in a step")
    valid_bs_n_seqs: int = option(32, "prompts in an evaluation batch")
    pad_to_max_length: bool = option(False, "pad all prompts to max_prompt_len; useful only for benchmarks")
    chat_template: str | None = option(None, _CHAT_TEMPLATE)
    tools_path: str | None = option(None, _TOOLS)
    num_proc: int | None = option(None, _NUM_PROC)
    cache_dir: str | None = option("auto", _CACHE_DIR)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("max_prompt_len", self.max_prompt_len, 1)


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError unless `value` is a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {least}")


def check_num_proc(value: int | None) -> None:
    """Raise ConfigError unless `value` is None or a whole number of 1 or more."""
    if value is not None:
        check_at_least("num_proc", value, 1)


def check_overlong(value: str) -> None:
    """Raise ConfigError unless `value` is "truncate" or "drop"."""
    if value not in ("truncate", "drop"):
        raise ConfigError(f"overlong={value!r} must be 'truncate' or 'drop'")


def check_train_on(value: str) -> None:
    """Raise ConfigError unless `value` is one of `TrainOn`."""
    if value not in get_args(TrainOn):
        raise ConfigError(f"train_on={value!r} must be 'assistant', 'last' or 'all'")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors about data name the field."""
    try:
        yield
    except DataError as error:
        raise ConfigError(f"{name}: {error}") from error
