"""The building blocks of a family's tables. Imports no torch.

A `ConfigTable` gives the meaning of the keys of `config.json`, a `WeightTable` the places of our parameters in
checkpoints. Each converts in both directions, so that loading and saving cannot diverge. Tables that most decoders
share are in `reallm.hf.standard`.
"""

from __future__ import annotations

from typing import Any

from reallm.deprecation import deprecated
from reallm.hf.tables.arrangements import Arrangement, Fused, Same, Source, Transposed, fused, transposed
from reallm.hf.tables.blocks import (
    AttentionInBlocks,
    Blocks,
    ExpertBlocks,
    InBlocks,
    LaterBlocks,
    ListedBlocks,
    WindowedBlocks,
    all_except_every,
)
from reallm.hf.tables.config import ConfigTable
from reallm.hf.tables.fields import (
    INVERSE_SQUARE_ROOT,
    RECIPROCAL,
    REQUIRED,
    Computed,
    Conversion,
    Derived,
    FieldRow,
    Key,
    Nested,
)
from reallm.hf.tables.ignored_keys import Allowed
from reallm.hf.tables.layer_fields import (
    LayerRopes,
    LayerTypes,
    always_sliding,
    sliding_except_every,
    sliding_without,
)
from reallm.hf.tables.rope import RopeDialect, RopeRow
from reallm.hf.tables.weights import WeightTable
from reallm.model.sharding import Shape

__all__ = [
    "INVERSE_SQUARE_ROOT",
    "RECIPROCAL",
    "REQUIRED",
    "Allowed",
    "Arrangement",
    "AttentionInBlocks",
    "Blocks",
    "Computed",
    "ConfigTable",
    "Conversion",
    "Derived",
    "ExpertBlocks",
    "FieldRow",
    "Fused",
    "InBlocks",
    "Key",
    "LaterBlocks",
    "LayerRopes",
    "LayerTypes",
    "ListedBlocks",
    "Nested",
    "RopeDialect",
    "RopeRow",
    "Same",
    "Shape",
    "Source",
    "Transposed",
    "WeightTable",
    "WindowedBlocks",
    "all_except_every",
    "always_sliding",
    "fused",
    "sliding_except_every",
    "sliding_without",
    "transposed",
]

_RENAMED = {"Row": FieldRow, "Stored": Source}
"""Names of hook API 1.0 -> their replacements."""


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    deprecated(f"{__name__}.{name}", instead=f"'{_RENAMED[name].__name__}'", since="1.1", removed_in="2.0")
    return _RENAMED[name]
