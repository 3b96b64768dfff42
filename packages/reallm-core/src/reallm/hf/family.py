"""`HFFamily`: the tables that describe a HuggingFace model family to the core. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reallm.errors import ConfigError, kind_of
from reallm.hf.tables.config import ConfigTable
from reallm.hf.tables.weights import WeightTable


@dataclass(frozen=True, eq=False)
class HFFamily:
    """A family of HuggingFace checkpoints that `ReaLModel` reads and writes.

    `names` are those that users type (`ReaLModel.from_<name>`); `model_type` is that of `config.json`.
    `architectures` are class names in `config.json`; the first is written.
    `critic_architectures` are those of models with a scalar head (`LlamaForSequenceClassification`), or empty.
    `check_configs` are small configurations for the conformance kit, by name: keys of `config.json`, all others having
    the defaults of the transformers class. If it is empty the kit derives some from these defaults.

    Raises:
        ConfigError: a check configuration is not a mapping.
    """

    names: tuple[str, ...]
    model_type: str
    architectures: tuple[str, ...]
    config: ConfigTable
    weights: WeightTable
    critic_architectures: tuple[str, ...] = ()
    description: str = ""
    check_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, raw in self.check_configs.items():
            if not isinstance(raw, Mapping):
                raise ConfigError(
                    f"check_configs['{name}'] of family '{self.names[0]}' is {kind_of(raw)}, not a mapping"
                )
