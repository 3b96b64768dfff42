"""Reads rows of a dataset of the hub, through the `datasets` library: `hub:org/name:split`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, NamedTuple

from reallm.data.readers.record import Origin, Records
from reallm.data.readers.tables import table_records
from reallm.errors import DataError, did_you_mean, one_line, quoted

PREFIX = "hub:"

_FORM = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@]+))?"
    r"(?::(?P<config>[^:\[\]]+)(?=:))?(?::(?P<split>[^:\[\]]+(?:\[[^\]]*\])?))?"
)
_BATCH_SIZE = 1024


class HubSplit(NamedTuple):
    """A split of a dataset of the hub; without `config` its default one, without `split` the only one it has."""

    name: str
    revision: str | None
    config: str | None
    split: str | None

    @classmethod
    def of(cls, text: str) -> HubSplit:
        """Parse `hub:org/name:split`, `hub:org/name:config:split` or `hub:org/name@revision:split`.

        Raises:
            DataError: it has another form, or `datasets` is not installed.
        """
        parts = _FORM.fullmatch(text)
        if parts is None:
            raise DataError(f"{text}: wanted hub:org/name:split, or hub:org/name:config:split")
        if find_spec("datasets") is None:
            raise DataError(f"{text}: reading datasets of the hub needs datasets: pip install 'reallm-core[hub]'")
        return cls(**parts.groupdict())


def read_hub(split: HubSplit, origin: Origin) -> Records:
    """Rows of a split; downloaded unless it is in the cache of the `datasets` library.

    Raises:
        DataError: there is no such dataset, config or split, or it cannot be downloaded.
    """
    yield from table_records(_load(split, origin).iter(_BATCH_SIZE), origin)


def _load(wanted: HubSplit, origin: Origin) -> Any:
    import datasets

    try:
        builder = datasets.load_dataset_builder(wanted.name, wanted.config, revision=wanted.revision)
        builder.download_and_prepare()
        split = _existing_split(wanted.split, [str(name) for name in builder.info.splits or {}], origin)
        return builder.as_dataset(split=split).with_format("arrow")
    except DataError:
        raise
    except Exception as error:  # network, cache, files of any kind: the library raises errors of many libraries
        hint = ""
        if datasets.config.HF_HUB_OFFLINE or isinstance(error, ConnectionError):
            hint = "; without a network, only what is in the cache of datasets can be read"
        raise DataError(f"{origin.place}: {one_line(error).rstrip('.')}{hint}") from error


def _existing_split(wanted: str | None, names: list[str], origin: Origin) -> str:
    if wanted is None:
        if len(names) != 1:
            raise DataError(f"{origin.place}: choose one of its splits, {quoted(names, 8)}: {origin.place}:{names[0]}")
        return names[0]
    name = wanted.partition("[")[0]
    if name not in names:
        raise DataError(
            f"{origin.place}: no split '{name}'{did_you_mean(name, names)}; its splits are {quoted(names, 8)}"
        )
    return wanted
