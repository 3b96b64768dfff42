"""All that a family's tables are written with. Imports no torch.

A `ConfigTable` says what the keys of `config.json` mean, a `WeightTable` where checkpoints hold our parameters. Each is
read in both directions, so that loading and saving cannot drift apart. What most decoders share is in
`reallm.hf.standard`.
"""

from reallm.hf.arrangements import Arrangement, Fused, Same, Shape, Stored, Transposed, fused, transposed
from reallm.hf.config_table import ConfigTable
from reallm.hf.keys import Allowed
from reallm.hf.layer_rows import LayerRopes, LayerTypes, always_sliding, sliding_except_every
from reallm.hf.rope_io import RopeDialect, RopeRow
from reallm.hf.rows import INVERSE_SQUARE_ROOT, RECIPROCAL, REQUIRED, Computed, Conversion, Derived, Key, Nested, Row
from reallm.hf.weight_table import WeightTable

__all__ = [
    "INVERSE_SQUARE_ROOT",
    "RECIPROCAL",
    "REQUIRED",
    "Allowed",
    "Arrangement",
    "Computed",
    "ConfigTable",
    "Conversion",
    "Derived",
    "Fused",
    "Key",
    "LayerRopes",
    "LayerTypes",
    "Nested",
    "RopeDialect",
    "RopeRow",
    "Row",
    "Same",
    "Shape",
    "Stored",
    "Transposed",
    "WeightTable",
    "always_sliding",
    "fused",
    "sliding_except_every",
    "transposed",
]
