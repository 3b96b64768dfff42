"""Mixtures: several datasets as one, each with a share of the samples of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from reallm.errors import ConfigError, counted

if TYPE_CHECKING:
    from reallm.data.datasets import Dataset, Samples
    from reallm.data.namedarray import NamedArray


@dataclass(frozen=True)
class Mixture:
    """Datasets to be mixed.

    Args:
        sources: name of a source -> its dataset.
        weights: name of a source -> its share of the samples of an epoch, relative to the others; empty: all samples
            are taken as often.
        may_lack_sources: whether sources without any sample are left out, and not an error: those of which a split
            holds out too few rows.
    """

    sources: Mapping[str, Dataset]
    weights: Mapping[str, float]
    may_lack_sources: bool = False

    @property
    def name(self) -> str:
        """The name of the datasets' plugin."""
        return next(iter(self.sources.values())).name


@dataclass(frozen=True)
class MixedSamples:
    """The samples of several datasets, one dataset after the other; a map-style dataset itself.

    The id of a sample begins with the name of its source: `math/train.jsonl:12`.

    Args:
        sources: name of a source -> its samples.
        weights: see `Mixture`.
    """

    sources: Mapping[str, Samples]
    weights: Mapping[str, float]

    @cached_property
    def starts(self) -> dict[str, int]:
        """Name of a source -> index of its first sample."""
        sizes = [len(samples) for samples in self.sources.values()]
        return dict(zip(self.sources, accumulate(sizes[:-1], initial=0), strict=True))

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int, /) -> NamedArray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name, start = next((name, start) for name, start in reversed(self.starts.items()) if start <= index)
        sample = self.sources[name][index - start]
        ids = sample.metadata.get("ids")
        return sample if ids is None else sample.with_metadata(ids=[f"{name}/{one}" for one in ids])

    def report(self) -> str:
        """One line: the samples of each source and, with weights, how many of them an epoch has."""
        of = f"{counted(len(self), 'sample')} of {counted(len(self.sources), 'source')}"
        if not self.weights:
            return f"{of}: {', '.join(f'{name} {len(samples):,}' for name, samples in self.sources.items())}"
        parts = [
            f"{name} {quota / len(self):.1%}, {quota / len(samples):.3g} passes over {len(samples):,}"
            for (name, samples), quota in zip(self.sources.items(), self.quotas, strict=True)
        ]
        return f"an epoch has {of}: {'; '.join(parts)}"

    @property
    def quotas(self) -> list[int]:
        """Samples of each source in an epoch, which has as many as all sources together.

        Raises:
            ConfigError: a weight is so small that an epoch has no sample of its source.
        """
        sizes = [len(samples) for samples in self.sources.values()]
        if not self.weights:
            return sizes
        quotas = apportion(len(self), [self.weights[name] for name in self.sources])
        for name, quota in zip(self.sources, quotas, strict=True):
            if not quota:
                raise ConfigError(
                    f"dataset.mix.{name}.weight={self.weights[name]} gives no sample of an epoch of {len(self):,}; "
                    "raise it, or leave the source out"
                )
        return quotas


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` into whole numbers in proportion to weights (largest remainders): `(10, [1, 2])` gives `[3, 7]`."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares
