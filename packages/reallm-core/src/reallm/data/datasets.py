"""Makes a dataset from its name and arguments, using the plugin that offers the name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from reallm.arguments import NamedFields, check_count, check_instance
from reallm.data.mixture import MixedSamples, Mixture
from reallm.errors import ConfigError, DataError, NoSamplesError, PluginError, counted, did_you_mean
from reallm.field_types import check_fields
from reallm.plugins import registry
from reallm.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reallm.data.namedarray import NamedArray
    from reallm.specs import DatasetSpec

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetUtility:
    """Arguments that every dataset gets in addition to those of its configuration.

    Each of `dp_size` data-parallel ranks holds a different slice of the rows: see `shard`.

    Raises:
        ConfigError: a number is out of range, or the tokenizer is a path.
    """

    seed: int
    dp_rank: int
    dp_size: int
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        check_count("seed", self.seed, at_least=0)
        if isinstance(self.tokenizer, str | os.PathLike):
            raise ConfigError(
                f"tokenizer must be a tokenizer, not a path ({self.tokenizer}); AutoTokenizer.from_pretrained loads one"
            )
        check_count("dp_size", self.dp_size)
        if check_count("dp_rank", self.dp_rank, at_least=0) >= self.dp_size:
            raise ConfigError(f"dp_rank={self.dp_rank} is not a rank of dp_size={self.dp_size}")

    def shard(self, rows: Sequence[T]) -> list[T]:
        """This rank's rows, shuffled. The same seed gives the same slices; each row is on exactly one rank.

        Raises:
            DataError: there are fewer rows than ranks.
        """
        if len(rows) < self.dp_size:
            raise DataError(
                f"{counted(len(rows), 'row')} cannot be shared by {counted(self.dp_size, 'data-parallel rank')}"
            )
        order = np.random.default_rng(derive_seed(self.seed, "dataset rows")).permutation(len(rows))
        return [rows[i] for i in order[self.dp_rank :: self.dp_size]]


@dataclass(frozen=True)
class Dataset(NamedFields):
    """A dataset to be made: the name under which a plugin offers it, and its arguments.

    Raises:
        ConfigError: the name is not text, or the arguments are not a mapping.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class Samples(Protocol):
    """A map-style dataset, like `torch.utils.data.Dataset`; each item is one sample with its `seqlens`.

    An optional method `report() -> str` returns one line about the use of its rows. An optional method
    `cache_key() -> str | None` returns a text that differs between datasets unless all their samples are the same, in
    the same order; None if nothing is known about them without reading all.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NamedArray: ...


def own_report(samples: Samples) -> str | None:
    """What the dataset's method `report` returns; None if it has none."""
    report: Callable[[], str] | None = getattr(samples, "report", None)
    return report() if callable(report) else None


def own_cache_key(samples: Samples) -> str | None:
    """What the dataset's method `cache_key` returns, with the name of its class; None if it has none."""
    cache_key: Callable[[], str | None] | None = getattr(samples, "cache_key", None)
    key = cache_key() if callable(cache_key) else None
    return key and f"{type(samples).__module__}:{type(samples).__qualname__} {key}"


def make_dataset(
    dataset: Dataset | Mixture | str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 1,
    dp_rank: int = 0,
    dp_size: int = 1,
    **args: Any,
) -> Samples:
    """Find the dataset's class through the plugin that offers its name, and construct it; or the datasets of a mixture.

        make_dataset("prompt_answer", path="train.jsonl", tokenizer=tokenizer)

    Args:
        dataset: the dataset's name, or a `Dataset`, which has its arguments with it, or a mixture of these.
        tokenizer: tokenizer of the model.
        seed: seed of the order of its samples, and of all that it draws.
        dp_rank: data-parallel rank whose share of the rows it has.
        dp_size: number of data-parallel ranks.
        args: arguments of the dataset that is named.

    Raises:
        UnknownNameError: no installed plugin offers the name.
        ConfigError: the class does not take the arguments; names the dataset, its distribution and the argument.
        DataError: its data is invalid.
    """
    if isinstance(dataset, str):
        dataset, args = Dataset(dataset, args), {}
    if args:
        raise ConfigError(f"'{next(iter(args))}' is given twice: a Dataset has its arguments in Dataset.args")
    if isinstance(dataset, Mixture):
        made: dict[str, Samples] = {}
        errors: list[NoSamplesError] = []
        for name, source in dataset.sources.items():
            try:
                made[name] = make_dataset(source, seed=seed, tokenizer=tokenizer, dp_rank=dp_rank, dp_size=dp_size)
            except NoSamplesError as error:
                if not dataset.may_lack_sources:
                    raise
                errors.append(error)
        if not made:
            raise errors[0]
        return MixedSamples(made, dataset.weights)
    check_instance("dataset", dataset, Dataset, 'write make_dataset("prompt_answer", path=..., tokenizer=...)')
    util = DatasetUtility(seed, dp_rank, dp_size, tokenizer)
    offer = registry.registry().offer("dataset", dataset.name)
    return construct(f"dataset '{dataset.name}' of {offer.plugin.release}", offer.value, util, dataset.args)


def construct(title: str, spec: DatasetSpec, util: DatasetUtility, args: Mapping[str, Any]) -> Samples:
    """Construct the dataset that a plugin describes.

    Args:
        title: the dataset's name in errors.
        spec: spec of the dataset, with its class.
        util: the argument `util` of every dataset.
        args: the other arguments.

    Raises:
        PluginError: the class cannot be imported, or is not a map-style dataset.
        ConfigError: the class does not take the arguments; names the argument.
        DataError: its data is invalid.
    """
    cls = spec.dataset_class()
    _check_args(title, cls, args)
    dataset = cls(util=util, **args)
    missing = [method for method in ("__len__", "__getitem__") if not hasattr(dataset, method)]
    if missing:
        raise PluginError(f"{title} is not a map-style dataset: {cls.__qualname__} has no {' and no '.join(missing)}")
    samples: Samples = dataset
    return samples


def _check_args(title: str, cls: Any, args: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if "util" not in parameters:
        raise PluginError(f"{title}: the constructor of {cls.__qualname__} does not take 'util'")
    names = [name for name in parameters if name != "util"]
    for name in args:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has: {', '.join(names) or 'none'}"
            raise ConfigError(f"{title} has no argument '{name}'{hint}")
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in args:
            raise ConfigError(f"{title} needs the argument '{name}'")
