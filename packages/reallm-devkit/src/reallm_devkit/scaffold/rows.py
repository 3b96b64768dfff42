"""From a configuration of transformers to the rows and constants that a new family begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm.hf.standard import ACTIVATIONS, ATTENTION_BIAS, MLP_BIAS, QKV_BIAS
from reallm_devkit.scaffold.architecture import Architecture
from reallm_devkit.scaffold.code import call, strings, text
from reallm_devkit.scaffold.names import AUX_LOSS_KEYS, EXPERT_KEYS, KEYS, STANDARD_FIELDS, STANDARD_KEYS, Meaning
from reallm_devkit.scaffold.switches import Switch
from reallm_devkit.scaffold.tiny import SIZES
from reallm_devkit.scaffold.weights import Placed

COLUMN = 12
"""Of a row."""
FULL, SLIDING = "full_attention", "sliding_attention"
FEW = 3
"""Standard rows with keys of their own; with more, all rows are written out."""
BIAS_FIELDS = {"ATTENTION_BIAS": ATTENTION_BIAS, "QKV_BIAS": QKV_BIAS, "MLP_BIAS": MLP_BIAS}
LAST_LAYERS_SLIDE = "last_layers_slide"
"""Name of a helper, for classes in which the layers from `max_window_layers` on have a window."""

FOUR_TIMES = 'lambda known: 4 * known["hidden_size"]'
SIZES_AND_RATES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "initializer_range", "attention_dropout",
)  # fmt: skip
"""Standard keys for which `decoder_rows` takes no other name."""

KINDS = {"hidden_act": "str", "rms_norm_eps": "float", "initializer_range": "float", "attention_dropout": "float"}
"""Types of standard keys; others are int."""


@dataclass
class Rows:
    """Rows as source, one after another; and the keys that no row has taken yet."""

    rows: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)

    def take(self, *keys: str) -> None:
        """Keys that have a row now."""
        for key in keys:
            self.left.pop(key, None)


def config_rows(
    architecture: Architecture, modules: Placed, switches: Mapping[str, Switch]
) -> tuple[list[str], list[str]]:
    """The rows as source, and what has none: keys with their default, as text."""
    made = Rows(left=dict(architecture.defaults))
    standard = _standard(architecture, modules, made)
    _switch_rows(architecture, made, switches)
    _known_rows(architecture, made)
    _window_row(architecture, made)
    if modules.has("mlp.experts.up"):
        _expert_row(made)
    made.missing += [f"{key} = {_short(value)}" for key, value in made.left.items()]
    return [*standard, *made.rows], made.missing


def key_row(key: str, kind: str, fields: str, default: str, *rest: str, column: int = COLUMN) -> str:
    """`Key("attention_bias", bool, ATTENTION_BIAS, default=False)`; `fields` and `default` are source."""
    return call("Key", [text(key), kind, fields, f"default={default}", *rest], column)


@dataclass(frozen=True)
class Standard:
    """The standard keys of an architecture: what it calls each, empty if it has none, and the defaults."""

    keys: Mapping[str, str]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, defaults: Mapping[str, Any]) -> Standard:
        """Those of a configuration."""
        keys = {key: next((one for one in (key, *more) if one in defaults), "") for key, more in STANDARD_KEYS.items()}
        return cls(keys, {key: defaults.get(own) for key, own in keys.items()})

    @property
    def knows_activation(self) -> bool:
        """Whether we have the one that is the default."""
        return self.values["hidden_act"] in ACTIVATIONS


def _standard(architecture: Architecture, modules: Placed, made: Rows) -> list[str]:
    """The rows that nearly all decoders share: by `decoder_rows`, or where keys have other names one by one."""
    standard = Standard.of(architecture.defaults)
    made.take(*standard.keys.values())
    arguments = _arguments(architecture, standard)
    own = _own_rows(architecture, standard, modules, made)
    has_rope = _has_rope(architecture)
    if not has_rope:
        own["rope_parameters"] = ""
    if sum(bool(row) for row in own.values()) > FEW:
        rope = [_rope(architecture, made, COLUMN)] if has_rope else []
        return [*_one_by_one(standard, own, arguments), *rope]
    column = COLUMN + 4 if own else COLUMN
    if has_rope and (row := _rope(architecture, made, column + 4)) != "RopeRow()":
        arguments["rope"] = row
    given = [f"{name}={value}" for name, value in arguments.items()]
    rows = call("decoder_rows", given, column, before=0 if own else 1)
    if own:
        rows = call("without", [rows, *map(text, own)], COLUMN, before=1)
    follow = [row for row in own.values() if "lambda known" in row]
    return [*(row for row in own.values() if row and row not in follow), f"*{rows}", *follow]


def _arguments(architecture: Architecture, standard: Standard) -> dict[str, str]:
    """Arguments of `decoder_rows`, as source, without RoPE."""
    keys, values, tiny = standard.keys, standard.values, architecture.tiny
    arguments = {"n_kv_heads": _number(values["num_key_value_heads"], 'same_as("n_q_heads")')}
    if keys["num_key_value_heads"] != "num_key_value_heads":
        arguments["n_kv_heads_key"] = text(keys["num_key_value_heads"] or None)
    arguments["max_positions"] = _number(values["max_position_embeddings"], "2048")
    arguments |= _unless(norm_eps=(values["rms_norm_eps"], 1e-6), norm_eps_key=(keys["rms_norm_eps"], "rms_norm_eps"))
    follows = tiny is not None and tiny.head_dim == SIZES["hidden_size"] // SIZES["num_attention_heads"]
    if isinstance(values["head_dim"], int) and not follows:
        arguments["head_dim"] = text(values["head_dim"])
    elif not keys["head_dim"] and tiny is not None and not tiny.reads_head_dim:
        arguments["head_dim_key"] = "None"
    if standard.knows_activation:
        arguments |= _unless(activation=(values["hidden_act"], "silu"))
        arguments |= _unless(activation_key=(keys["hidden_act"], "hidden_act"))
    arguments |= _unless(tied=(values["tie_word_embeddings"], False))
    if keys["attention_dropout"] == "attention_dropout":
        arguments |= _unless(attn_dropout=(values["attention_dropout"], 0.0))
    return arguments


def _own_rows(architecture: Architecture, standard: Standard, modules: Placed, made: Rows) -> dict[str, str]:
    """Standard keys that `decoder_rows` has otherwise -> their row, or nothing if there is no such key."""
    keys, values, tiny = standard.keys, standard.values, architecture.tiny
    own: dict[str, str] = {}
    for key in SIZES_AND_RATES:
        is_other = keys[key] != key or (key == "initializer_range" and values[key] != 0.02)
        if keys[key] and is_other:
            otherwise = FOUR_TIMES if _is_four_times(architecture, modules, standard) else "REQUIRED"
            default = _number(values[key], otherwise if key == "intermediate_size" else "REQUIRED")
            own[key] = key_row(keys[key], KINDS.get(key, "int"), text(STANDARD_FIELDS[key]), default)
        elif not keys[key] and KINDS.get(key) == "float":
            own[key] = ""
    if not keys["intermediate_size"] and _is_four_times(architecture, modules, standard):
        own["intermediate_size"] = f'Derived("intermediate_size", {FOUR_TIMES})'
    if not keys["rms_norm_eps"]:
        own["rms_norm_eps"] = ""
        if tiny is None or tiny.norm_eps is None:
            made.missing.append("norm_eps, which no key states")
    if not standard.knows_activation:
        own["hidden_act"] = ""
        stated = f"{keys['hidden_act']} = {_short(values['hidden_act'])}"
        made.missing.append(stated if keys["hidden_act"] else "activation, which no key states")
    return own


def _one_by_one(standard: Standard, own: Mapping[str, str], arguments: Mapping[str, str]) -> list[str]:
    """Each standard row by itself."""
    rows = []
    for key, its_own in standard.keys.items():
        name, value = STANDARD_FIELDS[key], standard.values[key]
        if key in own:
            rows.append(own[key])
        elif key == "num_key_value_heads" and not its_own:
            rows.append('Derived("n_kv_heads", same_as("n_q_heads"))')
        elif key == "head_dim" and "head_dim_key" in arguments:
            rows.append('Derived("head_dim", head_dim_from_hidden_size)')
        elif key == "hidden_act":
            rows.append(key_row(its_own, "str", text(name), text(ACTIVATIONS[value]), "spellings=ACTIVATIONS"))
        else:
            kind = "bool" if isinstance(value, bool) else KINDS.get(key, "int")
            otherwise = "head_dim_from_hidden_size" if key == "head_dim" else text(value)
            rows.append(key_row(its_own or key, kind, text(name), arguments.get(name, otherwise)))
    return [row for row in rows if row]


def _is_four_times(architecture: Architecture, modules: Placed, standard: Standard) -> bool:
    """Whether the intermediate size is four times the hidden size, where it is null or has no key."""
    hidden = standard.values["hidden_size"]
    if hidden and architecture.derived.get(standard.keys["intermediate_size"]) == 4 * hidden:
        return True
    tensors = {} if architecture.tiny is None else architecture.tiny.tensors
    shapes = [shape for name, shape in tensors.items() if modules.ours(name) == ("mlp.up",)]
    return any(4 * SIZES["hidden_size"] in shape for shape in shapes)


def _has_rope(architecture: Architecture) -> bool:
    """Whether there is one RoPE for all blocks; one for each type of layer comes with the types."""
    return "rope_parameters" in architecture.defaults and FULL not in _rope_parameters(architecture)


def _rope_parameters(architecture: Architecture) -> Mapping[str, Any]:
    return architecture.derived.get("rope_parameters") or architecture.defaults["rope_parameters"] or {}


def _rope(architecture: Architecture, made: Rows, column: int) -> str:
    """The row for RoPE."""
    made.take("rope_parameters")
    parameters = _rope_parameters(architecture)
    interleaved = architecture.tiny is not None and architecture.tiny.interleaved
    arguments = _unless(default_theta=(parameters.get("rope_theta"), 10000.0), interleaved=(interleaved, False))
    if parameters.get("partial_rotary_factor") is not None:
        arguments["partial"] = text(parameters["partial_rotary_factor"])
        made.take("partial_rotary_factor")
    arguments |= {name: text(key) for name, key in architecture.older_rope.items()}
    if "original_max_position_embeddings" in architecture.defaults:
        arguments["original_key"] = '"original_max_position_embeddings"'
        made.take("original_max_position_embeddings")
    if parameters.get("rope_type", "default") != "default":
        made.missing.append(f"rope_parameters = {parameters} where a file has none: RopeRow(absent=...)")
    return call("RopeRow", [f"{name}={value}" for name, value in arguments.items()], column, before=len("rope="))


def _switch_rows(architecture: Architecture, made: Rows, switches: Mapping[str, Switch]) -> None:
    for key, switch in switches.items():
        default = architecture.defaults.get(key)
        if key not in made.left or not isinstance(default, bool):
            continue
        if switch.qk_norm:
            kind = text(switch.qk_norm)
            spellings = f"spellings={{True: {kind}, False: None}}"
            row = key_row(key, "bool", '"qk_norm"', kind if default else "None", spellings)
        elif switch.fields == ("shared_norm",):
            if KEYS.get(key) != KEYS["use_parallel_residual"]:
                continue
            row = key_row(key, "bool", '("parallel_residual", "shared_norm")', text(default))
        else:
            row = key_row(key, "bool", _bias_fields(switch.fields), text(default))
        made.rows.append(row)
        made.take(key)


def _bias_fields(fields: Sequence[str]) -> str:
    """A tuple of fields, by the names that some of them have together."""
    left, parts = list(fields), []
    for name, those in BIAS_FIELDS.items():
        if set(those) <= set(left):
            parts.append(name)
            left = [one for one in left if one not in those]
    if len(parts) == 1 and not left:
        return parts[0]
    return strings(left) if not parts else f"({', '.join([*(f'*{part}' for part in parts), *map(text, left)])})"


def _known_rows(architecture: Architecture, made: Rows) -> None:
    tiny = architecture.tiny
    taken = set()
    for key, value in list(made.left.items()):
        meaning = KEYS.get(key)
        if meaning is None or meaning.field in taken or value is None:
            continue  # what is off by default has not been seen to work
        if tiny is not None and tiny.switches.get(key, tiny.tensors).keys() != tiny.tensors.keys():
            continue  # it does more than we know
        made.rows.append(_known_row(key, meaning, value, COLUMN))
        made.take(key)
        taken.add(meaning.field)


def _known_row(key: str, meaning: Meaning, value: Any, column: int) -> str:
    rest = ["nullable=True"] if meaning.nullable else []
    rest += [f"conversion={meaning.conversion}"] if meaning.conversion else []
    default = text(float(value) if meaning.kind == "float" and value is not None else value)
    if meaning.conversion == "INVERSE_SQUARE_ROOT":
        default = f"{value}**-0.5"
    elif meaning.conversion == "RECIPROCAL" and value != 1:
        default = f"1 / {value}"
    return key_row(key, meaning.kind, text(meaning.field), default, *rest, column=column)


def _window_row(architecture: Architecture, made: Rows) -> None:
    if "sliding_window" not in made.left:
        return
    window = made.left["sliding_window"]
    enabled = ['enabled_key="use_sliding_window"'] if "use_sliding_window" in made.left else []
    if "layer_types" in made.left:
        types = architecture.derived.get("layer_types", made.left["layer_types"])
        default, older = _types(types, made.left)
        if not default:
            return
        arguments = [f"default={default}", *([] if window is None else [f"window={window}"]), *enabled]
        arguments += [f"older_keys=({text(older)},)"] if older else []
        made.take("layer_types", older)
    elif enabled:
        arguments = ["default=always_sliding", f"window={window}", *enabled, "types_key=None"]
    else:
        made.rows.append(key_row("sliding_window", "int", '"sliding_window"', text(window), "nullable=True"))
        made.take("sliding_window")
        return
    made.rows.append(call("LayerTypes", arguments, COLUMN))
    made.take("sliding_window", "use_sliding_window")
    ropes = _rope_parameters(architecture) if "rope_parameters" in made.left else {}
    if FULL in ropes and all(rope.get("rope_type", "default") == "default" for rope in ropes.values()):
        thetas = [f"{name}_theta={ropes[kind]['rope_theta']}" for name, kind in (("full", FULL), ("sliding", SLIDING))]
        made.rows.append(call("LayerRopes", thetas, COLUMN))
        made.take("rope_parameters")


def _types(types: Any, left: Mapping[str, Any]) -> tuple[str, str]:
    """The default of `LayerTypes` for some types, and the older key that it reads; nothing if there is no pattern."""
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


def _expert_row(made: Rows) -> None:
    rows, taken = [], set()
    for key, meaning in EXPERT_KEYS.items():
        if key in made.left and meaning.field not in taken:
            rows.append(_known_row(key, meaning, made.left[key], COLUMN + 8))
            made.take(key)
            taken.add(meaning.field)
    if all(key in made.left for key in AUX_LOSS_KEYS):
        rows.append("AUX_LOSS")
        made.take(*AUX_LOSS_KEYS)
    inner = call("", rows, COLUMN + 4)
    made.rows.append(call("Nested", ['"moe"', "MoEConfig", inner], COLUMN))


def _unless(**values: tuple[Any, Any]) -> dict[str, str]:
    """Arguments, as source, that are known and not what is assumed anyway."""
    return {
        name: text(value) for name, (value, assumed) in values.items() if value not in (None, "") and value != assumed
    }


def _number(value: Any, otherwise: str) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return text(value) if is_number else otherwise


def _short(value: Any) -> str:
    written = text(value)
    return written if len(written) <= 60 else f"{written[:57]}..."
