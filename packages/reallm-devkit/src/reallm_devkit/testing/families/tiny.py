"""Small configurations of a family, derived from transformers' default configuration."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reallm.errors import ConfigError, ReallmError, one_line
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig, RopeConfig
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.families.block_kinds import block_kinds
from reallm_devkit.testing.families.lines import TableLines
from reallm_devkit.testing.families.reference import hf_class, hf_config

MAX_KINDS = 4
"""Number of kinds of blocks that a small configuration has at most."""
MAX_BLOCKS = 8
"""Number of blocks that it has at most, to have blocks of each kind if the table cannot state fewer."""
SIZES = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 97, "max_positions": 64}
HEADS = ((32, 16), (32, 8), (64, 16), (128, 32))
"""(hidden size, head dim) to try; the first has heads wider than the hidden size, if the family allows it."""
MIN_ROTARY_DIM = 4
"""`dynamic` RoPE divides by the number of rotated dims less 2."""
WINDOW = 5
PRETRAINED_POSITIONS = 16
"""Context length from which scaled RoPE applies; the longest compared sequence has 40 tokens."""

Raw = Mapping[str, Any]


def tiny_config(lines: TableLines) -> Raw:
    """transformers' default `config.json` of the model type, with small sizes.

    Raises:
        CheckFailed: transformers has no such model, or the table cannot read or write the configuration.
    """
    family = lines.family
    default = default_config(lines)
    try:
        config = config_from_hf(family, default, source=f"the default {family.model_type} configuration")
    except ReallmError as error:
        if error.__cause__ is not None and _is_of_plugin(error.__cause__):
            raise error.__cause__ from None  # the file is transformers' own, so the function is wrong
        expected = f"a table that reads transformers' default configuration of model_type '{family.model_type}'"
        raise CheckFailed(expected, str(error), look_at=lines.mentioned_in(str(error))) from error
    theirs = kinds_of(default)
    reason, best = "", None
    for small, blocks in _candidates(family, config, theirs):
        try:
            raw = family.config.write(small, _of_blocks(default, config.n_layers, blocks))
            hf_config(raw)  # transformers may refuse some sizes
            n_kinds = len(set(block_kinds(raw))) if theirs else 0
        except Exception as error:  # of transformers about sizes, or of the plugin's functions
            kind = "" if isinstance(error, ReallmError) else f"{type(error).__name__}: "
            reason = reason or f"{kind}{one_line(error)}"
            continue
        if n_kinds >= min(len(set(theirs)), MAX_KINDS):
            return raw
        best = best or raw  # the check `blocks` says what it lacks
    if best is not None:
        return best
    raise CheckFailed(
        "a table that states small sizes, in a file that it reads to the same ones",
        reason or "no sizes that the kit knows fit this family",
        look_at=f"{lines.config()}; or state sizes that fit, check_configs={{'tiny': {{...}}}} of the HFFamily",
    )


def _is_of_plugin(error: BaseException) -> bool:
    """Whether an exception was raised by code outside of the core."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and not frames[-1].f_globals.get("__name__", "").startswith("reallm.")


def kinds_of(raw: Raw) -> tuple[int, ...]:
    """The kinds of blocks of transformers' model; empty if it cannot be made without values."""
    try:
        return block_kinds(raw)
    except Exception:  # transformers raises anything
        return ()


def default_config(lines: TableLines) -> dict[str, Any]:
    """transformers' default `config.json` of the model type, without token ids.

    Raises:
        CheckFailed: transformers does not know the model type or the architecture.
    """
    from transformers import CONFIG_MAPPING

    family = lines.family
    architecture = family.architectures[0]
    if family.model_type not in CONFIG_MAPPING:
        raise CheckFailed(
            f"a model type of transformers, to compare '{family.names[0]}' with",
            f"model_type '{family.model_type}', which transformers does not know",
            look_at=f"model_type of the HFFamily, {lines.family_line()}",
        )
    if hf_class(architecture) is None:
        raise CheckFailed(
            f"a model class of transformers, to compare '{family.names[0]}' with",
            f"architecture '{architecture}', which transformers does not have",
            look_at=f"architectures of the HFFamily, {lines.family_line()}",
        )
    raw: dict[str, Any] = CONFIG_MAPPING[family.model_type]().to_dict()
    return without_token_ids({**raw, "architectures": [architecture]})


def without_token_ids(raw: Raw) -> dict[str, Any]:
    """The configuration with all special token ids None, since they may be outside of a small vocabulary."""
    return {key: None if key.endswith("_token_id") else value for key, value in raw.items()}


def completed(family: HFFamily, raw: Raw) -> Raw:
    """An author's configuration with model type, architecture and token ids added if missing."""
    known = {"model_type": family.model_type, "architectures": [family.architectures[0]]}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {**known, **ids, **raw}


def with_other_head(family: HFFamily, raw: Raw) -> Raw | None:
    """The configuration with `tied_embeddings` negated; None if the table cannot write that."""
    try:
        config = config_from_hf(family, raw)
        return family.config.write(config.replace(tied_embeddings=not config.tied_embeddings), raw)
    except Exception:  # the family's functions may raise anything; checks of the first configuration say it
        return None


def _candidates(
    family: HFFamily, config: ReaLModelConfig, kinds: Sequence[int]
) -> Iterator[tuple[ReaLModelConfig, Sequence[int]]]:
    """Yields (small configuration, blocks that it keeps), those that reveal more mistakes first.

    They are one of each kind, `kinds` being those of transformers; if the table cannot state these, the first ones.
    """
    chosen = _chosen_blocks(config, kinds)
    up_to_last = range(min(max(chosen) + 1, MAX_BLOCKS))
    for hidden_size, head_dim in HEADS:
        for blocks in dict.fromkeys((tuple(chosen), tuple(range(len(chosen))), tuple(up_to_last))):
            try:
                shortened = config.with_blocks(*blocks)
                changes = {**_small(shortened, head_dim), "hidden_size": hidden_size}
                known = {item.name: getattr(shortened, item.name) for item in dataclasses.fields(shortened)} | changes
                computed = {name: value(known) for name, value in family.config.constants.items() if callable(value)}
                small = shortened.replace(**{**changes, **computed})
            except Exception:  # sizes that the family's functions or RoPE cannot have
                continue
            yield small, blocks


def _of_blocks(raw: Raw, n_layers: int, blocks: Sequence[int]) -> Raw:
    """The configuration with lists that have an entry per block, or the numbers of all, cut to some blocks."""

    def cut(values: list[Any]) -> list[Any]:
        numbers = values == list(range(n_layers))
        return list(range(len(blocks))) if numbers else [values[block] for block in blocks]

    return {
        key: cut(value) if isinstance(value, list) and len(value) == n_layers else value for key, value in raw.items()
    }


def _chosen_blocks(config: ReaLModelConfig, kinds: Sequence[int]) -> list[int]:
    """The first block of each kind, ours and transformers', and at least two."""
    experts = set(config.expert_blocks)
    theirs = kinds if len(kinds) == config.n_layers else (0,) * config.n_layers
    first: dict[tuple[object, ...], int] = {}
    for block, kind in enumerate(zip(theirs, config.windows, config.ropes, config.attn_scales, strict=True)):
        first.setdefault((*kind, block in experts), block)
    chosen = sorted(first.values())[:MAX_KINDS]
    return chosen if len(chosen) > 1 else list(range(min(2, config.n_layers)))


def _small(config: ReaLModelConfig, head_dim: int) -> dict[str, Any]:
    n_kv_heads = {config.n_q_heads: 4, 1: 1}.get(config.n_kv_heads, 2)
    changes: dict[str, Any] = {**SIZES, "n_q_heads": 4, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
    if config.moe is not None:
        top_k = min(config.moe.top_k, 2)
        inner = None if config.moe.intermediate_size is None else 24
        changes["moe"] = dataclasses.replace(config.moe, n_experts=4, top_k=top_k, intermediate_size=inner)
    changes["sliding_window"] = _each(config.sliding_window, lambda window: WINDOW)
    changes["rope"] = _each(config.rope, lambda rope: _small_rope(rope, head_dim / config.head_dim))
    return changes


def _small_rope(rope: RopeConfig, ratio: float) -> RopeConfig:
    changes: dict[str, Any] = {}
    if rope.rotary_dim is not None:
        rotary_dim = 2 * int(rope.rotary_dim * ratio / 2)  # RoPE rotates pairs
        if rotary_dim < MIN_ROTARY_DIM:
            raise ConfigError(f"rope.rotary_dim={rotary_dim} must be at least {MIN_ROTARY_DIM}")
        changes["rotary_dim"] = rotary_dim
    if rope.original_max_positions is not None:
        changes["original_max_positions"] = PRETRAINED_POSITIONS
    for name in ("short_factor", "long_factor"):
        factors = getattr(rope, name)
        if factors is not None:
            changes[name] = factors[: max(1, int(len(factors) * ratio))]
    return dataclasses.replace(rope, **changes)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(None if one is None else change(one) for one in value)
    return None if value is None else change(value)
