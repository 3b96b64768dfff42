"""The size of MLPs as LFM2's configurations give it: from another size, by rules of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.hf.tables import Computed

SIZE_KEYS = (
    "intermediate_size", "block_ff_dim", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of",
)  # fmt: skip


def adjusted_size(raw: Mapping[str, Any]) -> int:
    """The size of MLPs: two thirds of the configured one, unless told otherwise, times a factor, and rounded up."""
    size = raw.get("block_ff_dim") or raw.get("intermediate_size") or 12288
    if not raw.get("block_auto_adjust_ff_dim", True):
        return int(size)
    size, factor = int(2 * size / 3), raw.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return size
    multiple = raw.get("block_multiple_of", 256)
    return int(multiple * -(-int(factor * size) // multiple))


def written_size(config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `adjusted_size`: those of the file as they are, if they give the size."""
    if adjusted_size(base) == config.intermediate_size:
        return {key: base[key] for key in SIZE_KEYS if key in base}
    key = "block_ff_dim" if "block_ff_dim" in base else "intermediate_size"
    return {key: config.intermediate_size, "block_auto_adjust_ff_dim": False}


MLP_SIZE = Computed(
    SIZE_KEYS, ("intermediate_size",), lambda raw, known: {"intermediate_size": adjusted_size(raw)}, written_size
)
