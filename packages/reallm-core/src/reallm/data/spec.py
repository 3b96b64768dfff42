"""What a plugin says of a dataset. Imports no torch: discovery reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reallm.plugins.lazy import TypeOrPath, resolve


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset class and the dataclass that configures it, each a class or a lazy `"module:Class"`.

    The dataset is a map-style `torch.utils.data.Dataset` whose constructor takes `util: DatasetUtility` and
    the fields of its configuration as keyword arguments, and whose `__getitem__` returns a `NamedArray` of
    one sample with its `seqlens`.
    """

    dataset: TypeOrPath
    config: TypeOrPath
    description: str = ""

    def dataset_class(self) -> Any:
        """The dataset class, imported now."""
        return resolve(self.dataset)

    def config_class(self) -> Any:
        """The configuration dataclass, imported now."""
        return resolve(self.config)
