"""`HFFamily`: the tables that describe a HuggingFace model family to the core. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from reallm.hf.tables.config import ConfigTable
from reallm.hf.tables.weights import WeightTable


@dataclass(frozen=True, eq=False)
class HFFamily:
    """A family of HuggingFace checkpoints that `ReaLModel` reads and writes.

    `names` are those that users type (`ReaLModel.from_<name>`); `model_type` is that of `config.json`.
    `architectures` are class names in `config.json`; the first is written.
    `critic_architectures` are those of models with a scalar head (`LlamaForSequenceClassification`), or empty.
    """

    names: tuple[str, ...]
    model_type: str
    architectures: tuple[str, ...]
    config: ConfigTable
    weights: WeightTable
    critic_architectures: tuple[str, ...] = ()
    description: str = ""
