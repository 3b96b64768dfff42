"""Drafts `ConfigTable.rows` of a new family from a configuration of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm.hf.standard import ACTIVATIONS, ATTENTION_BIAS, MLP_BIAS, QKV_BIAS
from reallm_devkit.scaffold.architecture import Architecture
from reallm_devkit.scaffold.code import call, literal, quoted_tuple
from reallm_devkit.scaffold.names import AUX_LOSS_KEYS, EXPERT_KEYS, KEYS, STANDARD_FIELDS, STANDARD_KEYS, FieldMeaning
from reallm_devkit.scaffold.switches import Switch
from reallm_devkit.scaffold.tiny import SIZES
from reallm_devkit.scaffold.weights import MatchedModules

COLUMN = 12
"""The indentation of a row."""
FULL, SLIDING = "full_attention", "sliding_attention"
MAX_STANDARD_CHANGES = 3
"""How many rows of `decoder_rows` may be replaced; with more, all rows are written out."""
BIAS_FIELDS = {"ATTENTION_BIAS": ATTENTION_BIAS, "QKV_BIAS": QKV_BIAS, "MLP_BIAS": MLP_BIAS}
LAST_LAYERS_SLIDE = "last_layers_slide"
"""Name of the helper for classes whose layers from `max_window_layers` on have a sliding window."""

DEFAULT_AUX_LOSS = 0.001
"""The coefficient of `AUX_LOSS`."""
FOUR_TIMES = 'lambda known: 4 * known["hidden_size"]'
UNNAMED_ARGUMENT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "initializer_range", "attention_dropout",
)  # fmt: skip
"""Standard keys that `decoder_rows` takes no other name for."""

KINDS = {"hidden_act": "str", "rms_norm_eps": "float", "initializer_range": "float", "attention_dropout": "float"}
"""Types of standard keys; all others are int."""


@dataclass
class Rows:
    """Rows drafted so far, and the keys that have no row yet.

    Attributes:
        rows: the rows as source.
        missing: texts on what no row can be written for.
        left: keys without a row, with their defaults.
    """

    rows: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)

    def take(self, *keys: str) -> None:
        """Mark keys as having a row."""
        for key in keys:
            self.left.pop(key, None)


def config_rows(
    architecture: Architecture, modules: MatchedModules, switches: Mapping[str, Switch]
) -> tuple[list[str], list[str]]:
    """The rows as source, and texts on the keys without one: the key and its default."""
    draft = Rows(left=dict(architecture.defaults))
    standard = _standard(architecture, modules, draft)
    _switch_rows(architecture, draft, switches)
    _field_rows(architecture, draft)
    _window_row(architecture, draft)
    if modules.has("mlp.experts.up"):
        _expert_row(draft)
    draft.missing += [f"{key} = {_shorten(value)}" for key, value in draft.left.items()]
    return [*standard, *draft.rows], draft.missing


def key_row(key: str, kind: str, fields: str, default: str, *rest: str, column: int = COLUMN) -> str:
    """`Key("attention_bias", bool, ATTENTION_BIAS, default=False)`; `fields` and `default` are source."""
    return call("Key", [literal(key), kind, fields, f"default={default}", *rest], column)


@dataclass(frozen=True)
class Standard:
    """Standard key -> the architecture's name for it, empty if it has none, and its default."""

    keys: Mapping[str, str]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, defaults: Mapping[str, Any]) -> Standard:
        """Find the standard keys in a configuration."""
        keys = {
            key: next((name for name in (key, *synonyms) if name in defaults), "")
            for key, synonyms in STANDARD_KEYS.items()
        }
        return cls(keys, {key: defaults.get(name) for key, name in keys.items()})

    @property
    def knows_activation(self) -> bool:
        """Whether the default activation is one that `ReaLModelConfig` has."""
        return self.values["hidden_act"] in ACTIVATIONS


def _standard(architecture: Architecture, modules: MatchedModules, draft: Rows) -> list[str]:
    """The rows that nearly all decoders share: by `decoder_rows`, or written out if many keys have other names."""
    standard = Standard.of(architecture.defaults)
    draft.take(*standard.keys.values())
    arguments = _arguments(architecture, standard)
    changed = _changed_rows(architecture, standard, modules, draft)
    has_rope = _has_rope(architecture)
    if not has_rope:
        changed["rope_parameters"] = ""
    if sum(bool(row) for row in changed.values()) > MAX_STANDARD_CHANGES:
        rope = [_rope(architecture, draft, COLUMN)] if has_rope else []
        return [*_write_out(standard, changed, arguments), *rope]
    column = COLUMN + 4 if changed else COLUMN
    if has_rope and (row := _rope(architecture, draft, column + 4)) != "RopeRow()":
        arguments["rope"] = row
    sources = [f"{name}={value}" for name, value in arguments.items()]
    rows = call("decoder_rows", sources, column, before=0 if changed else 1)
    if changed:
        rows = call("without", [rows, *map(literal, changed)], COLUMN, before=1)
    follow = [row for row in changed.values() if "lambda known" in row]
    return [*(row for row in changed.values() if row and row not in follow), f"*{rows}", *follow]


def _arguments(architecture: Architecture, standard: Standard) -> dict[str, str]:
    """The arguments of `decoder_rows` as source, without RoPE."""
    keys, values, tiny = standard.keys, standard.values, architecture.tiny
    arguments = {"n_kv_heads": _number_or(values["num_key_value_heads"], 'same_as("n_q_heads")')}
    if keys["num_key_value_heads"] != "num_key_value_heads":
        arguments["n_kv_heads_key"] = literal(keys["num_key_value_heads"] or None)
    arguments["max_positions"] = _number_or(values["max_position_embeddings"], "2048")
    arguments |= _unless_default(
        norm_eps=(values["rms_norm_eps"], 1e-6), norm_eps_key=(keys["rms_norm_eps"], "rms_norm_eps")
    )
    follows = tiny is not None and tiny.head_dim == SIZES["hidden_size"] // SIZES["num_attention_heads"]
    if isinstance(values["head_dim"], int) and not follows:
        arguments["head_dim"] = literal(values["head_dim"])
    elif not keys["head_dim"] and tiny is not None and not tiny.reads_head_dim:
        arguments["head_dim_key"] = "None"
    if standard.knows_activation:
        arguments |= _unless_default(activation=(values["hidden_act"], "silu"))
        arguments |= _unless_default(activation_key=(keys["hidden_act"], "hidden_act"))
    arguments |= _unless_default(tied=(values["tie_word_embeddings"], False))
    if keys["attention_dropout"] == "attention_dropout":
        arguments |= _unless_default(attn_dropout=(values["attention_dropout"], 0.0))
    return arguments


def _changed_rows(
    architecture: Architecture, standard: Standard, modules: MatchedModules, draft: Rows
) -> dict[str, str]:
    """Standard keys whose row in `decoder_rows` does not fit -> their row; empty if there is no such key."""
    keys, values, tiny = standard.keys, standard.values, architecture.tiny
    changed: dict[str, str] = {}
    for key in UNNAMED_ARGUMENT_KEYS:
        differs = keys[key] != key or (key == "initializer_range" and values[key] != 0.02)
        if keys[key] and differs:
            fallback = FOUR_TIMES if _is_four_times(architecture, modules, standard) else "REQUIRED"
            default = _number_or(values[key], fallback if key == "intermediate_size" else "REQUIRED")
            changed[key] = key_row(keys[key], KINDS.get(key, "int"), literal(STANDARD_FIELDS[key]), default)
        elif not keys[key] and KINDS.get(key) == "float":
            changed[key] = ""
    if not keys["intermediate_size"] and _is_four_times(architecture, modules, standard):
        changed["intermediate_size"] = f'Derived("intermediate_size", {FOUR_TIMES})'
    if not keys["rms_norm_eps"]:
        changed["rms_norm_eps"] = ""
        if tiny is None or tiny.norm_eps is None:
            draft.missing.append("norm_eps, which no key states")
    if not standard.knows_activation:
        changed["hidden_act"] = ""
        stated = f"{keys['hidden_act']} = {_shorten(values['hidden_act'])}"
        draft.missing.append(stated if keys["hidden_act"] else "activation, which no key states")
    return changed


def _write_out(standard: Standard, changed: Mapping[str, str], arguments: Mapping[str, str]) -> list[str]:
    """The standard rows one by one."""
    rows = []
    for key, actual_key in standard.keys.items():
        name, value = STANDARD_FIELDS[key], standard.values[key]
        if key in changed:
            rows.append(changed[key])
        elif key == "num_key_value_heads" and not actual_key:
            rows.append('Derived("n_kv_heads", same_as("n_q_heads"))')
        elif key == "head_dim" and "head_dim_key" in arguments:
            rows.append('Derived("head_dim", head_dim_from_hidden_size)')
        elif key == "hidden_act":
            rows.append(key_row(actual_key, "str", literal(name), literal(ACTIVATIONS[value]), "spellings=ACTIVATIONS"))
        else:
            kind = "bool" if isinstance(value, bool) else KINDS.get(key, "int")
            fallback = "head_dim_from_hidden_size" if key == "head_dim" else literal(value)
            rows.append(key_row(actual_key or key, kind, literal(name), arguments.get(name, fallback)))
    return [row for row in rows if row]


def _is_four_times(architecture: Architecture, modules: MatchedModules, standard: Standard) -> bool:
    """Whether the intermediate size, if null or without a key, is four times the hidden size."""
    hidden = standard.values["hidden_size"]
    if hidden and architecture.derived.get(standard.keys["intermediate_size"]) == 4 * hidden:
        return True
    tensors = {} if architecture.tiny is None else architecture.tiny.tensors
    shapes = [shape for name, shape in tensors.items() if modules.ours(name) == ("mlp.up",)]
    return any(4 * SIZES["hidden_size"] in shape for shape in shapes)


def _has_rope(architecture: Architecture) -> bool:
    """Whether all blocks share one RoPE; `_window_row` handles one RoPE per layer type."""
    return "rope_parameters" in architecture.defaults and FULL not in _rope_parameters(architecture)


def _rope_parameters(architecture: Architecture) -> Mapping[str, Any]:
    return architecture.derived.get("rope_parameters") or architecture.defaults["rope_parameters"] or {}


def _rope(architecture: Architecture, draft: Rows, column: int) -> str:
    """The `RopeRow`."""
    draft.take("rope_parameters")
    parameters = _rope_parameters(architecture)
    interleaved = architecture.tiny is not None and architecture.tiny.interleaved
    arguments = _unless_default(default_theta=(parameters.get("rope_theta"), 10000.0), interleaved=(interleaved, False))
    if parameters.get("partial_rotary_factor") is not None:
        arguments["partial"] = literal(parameters["partial_rotary_factor"])
        draft.take("partial_rotary_factor")
    arguments |= {name: literal(key) for name, key in architecture.older_rope.items()}
    if "original_max_position_embeddings" in architecture.defaults:
        arguments["original_key"] = '"original_max_position_embeddings"'
        draft.take("original_max_position_embeddings")
    if parameters.get("rope_type", "default") != "default":
        draft.missing.append(f"rope_parameters = {parameters} where a file has none: RopeRow(absent=...)")
    return call("RopeRow", [f"{name}={value}" for name, value in arguments.items()], column, before=len("rope="))


def _switch_rows(architecture: Architecture, draft: Rows, switches: Mapping[str, Switch]) -> None:
    for key, switch in switches.items():
        default = architecture.defaults.get(key)
        if key not in draft.left or not isinstance(default, bool):
            continue
        if switch.qk_norm:
            kind = literal(switch.qk_norm)
            spellings = f"spellings={{True: {kind}, False: None}}"
            row = key_row(key, "bool", '"qk_norm"', kind if default else "None", spellings)
        elif switch.fields == ("shared_norm",):
            if KEYS.get(key) != KEYS["use_parallel_residual"]:
                continue
            row = key_row(key, "bool", '("parallel_residual", "shared_norm")', literal(default))
        else:
            row = key_row(key, "bool", _bias_fields(switch.fields), literal(default))
        draft.rows.append(row)
        draft.take(key)


def _bias_fields(fields: Sequence[str]) -> str:
    """The source of a tuple of bias fields, by the names of standard groups of them."""
    left, parts = list(fields), []
    for name, group in BIAS_FIELDS.items():
        if set(group) <= set(left):
            parts.append(name)
            left = [one for one in left if one not in group]
    if len(parts) == 1 and not left:
        return parts[0]
    return quoted_tuple(left) if not parts else f"({', '.join([*(f'*{part}' for part in parts), *map(literal, left)])})"


def _field_rows(architecture: Architecture, draft: Rows) -> None:
    tiny = architecture.tiny
    taken = set()
    for key, value in list(draft.left.items()):
        meaning = KEYS.get(key)
        if meaning is None or meaning.field in taken or value is None:
            continue  # a feature that is off by default could not be observed
        if tiny is not None and tiny.switches.get(key, tiny.tensors).keys() != tiny.tensors.keys():
            continue  # it has an effect on tensors that is not in KEYS
        draft.rows.append(_field_row(key, meaning, value, COLUMN))
        draft.take(key)
        taken.add(meaning.field)


def _field_row(key: str, meaning: FieldMeaning, value: Any, column: int) -> str:
    rest = ["nullable=True"] if meaning.nullable else []
    rest += [f"conversion={meaning.conversion}"] if meaning.conversion else []
    default = literal(float(value) if meaning.kind == "float" and value is not None else value)
    if meaning.conversion == "INVERSE_SQUARE_ROOT":
        default = f"{value}**-0.5"
    elif meaning.conversion == "RECIPROCAL" and value != 1:
        default = f"1 / {value}"
    return key_row(key, meaning.kind, literal(meaning.field), default, *rest, column=column)


def _window_row(architecture: Architecture, draft: Rows) -> None:
    if "sliding_window" not in draft.left:
        return
    window = draft.left["sliding_window"]
    enabled = ['enabled_key="use_sliding_window"'] if "use_sliding_window" in draft.left else []
    if "layer_types" in draft.left:
        types = architecture.derived.get("layer_types", draft.left["layer_types"])
        default, older = _types(types, draft.left)
        if not default:
            return
        arguments = [f"default={default}", *([] if window is None else [f"window={window}"]), *enabled]
        arguments += [f"older_keys=({literal(older)},)"] if older else []
        draft.take("layer_types", older)
    elif enabled:
        arguments = ["default=always_sliding", f"window={window}", *enabled, "types_key=None"]
    else:
        draft.rows.append(key_row("sliding_window", "int", '"sliding_window"', literal(window), "nullable=True"))
        draft.take("sliding_window")
        return
    draft.rows.append(call("LayerTypes", arguments, COLUMN))
    draft.take("sliding_window", "use_sliding_window")
    ropes = _rope_parameters(architecture) if "rope_parameters" in draft.left else {}
    if FULL in ropes and all(rope.get("rope_type", "default") == "default" for rope in ropes.values()):
        thetas = [f"{name}_theta={ropes[kind]['rope_theta']}" for name, kind in (("full", FULL), ("sliding", SLIDING))]
        draft.rows.append(call("LayerRopes", thetas, COLUMN))
        draft.take("rope_parameters")


def _types(types: Any, left: Mapping[str, Any]) -> tuple[str, str]:
    """The `default` of `LayerTypes` for a list of types, and the older key that it reads; empty without a pattern."""
    if not isinstance(types, list) or not set(types) <= {FULL, SLIDING}:
        return "", ""
    if "max_window_layers" in left:
        return LAST_LAYERS_SLIDE, "max_window_layers"
    if FULL not in types:
        return "always_sliding", ""
    every = types.index(FULL) + 1
    if all((kind == FULL) == ((layer + 1) % every == 0) for layer, kind in enumerate(types)):
        return f"sliding_except_every({every})", ""
    return "", ""


def _expert_row(draft: Rows) -> None:
    rows, taken = [], set()
    for key, meaning in EXPERT_KEYS.items():
        if key in draft.left and meaning.field not in taken:
            rows.append(_field_row(key, meaning, draft.left[key], COLUMN + 8))
            draft.take(key)
            taken.add(meaning.field)
    if all(key in draft.left for key in AUX_LOSS_KEYS):
        coefficient = draft.left[AUX_LOSS_KEYS[0]]
        rows.append("AUX_LOSS" if coefficient == DEFAULT_AUX_LOSS else f"aux_loss({literal(coefficient)})")
        draft.take(*AUX_LOSS_KEYS)
    inner = call("", rows, COLUMN + 4)
    draft.rows.append(call("Nested", ['"moe"', "MoEConfig", inner], COLUMN))


def _unless_default(**values: tuple[Any, Any]) -> dict[str, str]:
    """Arguments as source: name=(value, default), without unknown values and those equal to the default."""
    return {
        name: literal(value)
        for name, (value, default) in values.items()
        if value not in (None, "") and value != default
    }


def _number_or(value: Any, fallback: str) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return literal(value) if is_number else fallback


def _shorten(value: Any) -> str:
    written = literal(value)
    return written if len(written) <= 60 else f"{written[:57]}..."
