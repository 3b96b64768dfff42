"""Drafts `ConfigTable.constants` of a new family: values that no key of `config.json` states."""

from __future__ import annotations

import math
from collections.abc import Mapping

from reallm_devkit.scaffold.architecture import Architecture
from reallm_devkit.scaffold.code import literal
from reallm_devkit.scaffold.names import STANDARD_KEYS
from reallm_devkit.scaffold.switches import BLOCK_NORMS, FIELDS, Switch, fields_of, qk_norm_kind
from reallm_devkit.scaffold.tiny import SIZES, TinyModel
from reallm_devkit.scaffold.weights import MatchedModules

SHARED = ("parallel_residual", "shared_norm")


def constants(architecture: Architecture, modules: MatchedModules, switches: Mapping[str, Switch]) -> list[str]:
    """The entries of the dict as source; a comment for a value that is needed but unknown."""
    tiny = architecture.tiny
    if tiny is None:
        return ['"norm": "rms"', '"mlp": "gated"']
    stated = {field for key, switch in switches.items() for field in switch.fields if key in architecture.defaults}
    values = {"norm": tiny.norm or "rms", "mlp": "gated"}
    if modules.has("mlp.up") or modules.has("mlp.experts.up"):
        values["mlp"] = "gated" if modules.has("mlp.gate") or modules.has("mlp.experts.gate") else "plain"
    found: dict[str, str] = {name: literal(value) for name, value in values.items()}
    found |= _norms(architecture, tiny, modules, stated)
    fields = set().union(*(fields_of(modules, [name]) for name in tiny.tensors))
    found |= {name: "True" for name in FIELDS if name in fields - stated and name.endswith("_bias")}
    if "qk_norm" in fields - stated:
        kind = qk_norm_kind(modules, tiny.tensors, SIZES["num_attention_heads"])
        found |= {"qk_norm": literal(kind)} if kind else {}
        found |= {"qk_norm_bias": "True"} if "qk_norm_bias" in fields else {}
    root = math.sqrt(SIZES["hidden_size"])
    if math.isclose(tiny.embedding_scale, root, rel_tol=1e-2) and "embedding_multiplier" not in architecture.defaults:
        found["embedding_multiplier"] = 'lambda known: known["hidden_size"] ** 0.5'
    return [*(f"{literal(name)}: {value}" for name, value in found.items()), *_positions(architecture, tiny, modules)]


def _norms(architecture: Architecture, tiny: TinyModel, modules: MatchedModules, stated: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if tiny.norm_offset:
        found["norm_offset"] = literal(tiny.norm_offset)
    if not any(modules.has(name) for name in (*BLOCK_NORMS, "norm")) and not modules.unmatched:
        found["norm_weight"] = "False"
    eps_keys = ("rms_norm_eps", *STANDARD_KEYS["rms_norm_eps"])
    if tiny.norm_eps is not None and not any(key in architecture.defaults for key in eps_keys):
        found["norm_eps"] = literal(tiny.norm_eps)
    if modules.norms == "shared" and "shared_norm" not in stated:
        found |= dict.fromkeys(SHARED, "True")
    elif modules.norms in ("branch", "sandwich"):
        found["norm_placement"] = literal(modules.norms)
    return found


def _positions(architecture: Architecture, tiny: TinyModel, modules: MatchedModules) -> list[str]:
    if "rope_parameters" in architecture.defaults:
        return []
    shape = next((shape for name, shape in tiny.tensors.items() if modules.ours(name) == ("positions",)), ())
    offset = shape[0] - SIZES["max_position_embeddings"] if shape else 0
    if not shape or offset < 0:
        return ['"rope": None', "# no key states positions: what does the modeling file do?"]
    entries = ['"rope": None', '"learned_positions": True']
    return [*entries, *([f'"position_offset": {offset}'] if offset else [])]
