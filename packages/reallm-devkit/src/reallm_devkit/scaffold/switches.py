"""Finds the meaning of boolean configuration keys by the tensors that they add or remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reallm_devkit.scaffold.names import BIASES
from reallm_devkit.scaffold.tiny import SIZES, Shape, TinyModel
from reallm_devkit.scaffold.weights import MatchedModules, match_modules

BLOCK_NORMS = ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm")
FIELDS = ("norm_weight", "norm_bias", *BIASES.values())
"""Fields in the order in which they are written."""


@dataclass(frozen=True)
class Switch:
    """A boolean key that sets fields of `ReaLModelConfig`.

    Attributes:
        fields: the fields that it sets to its value; `qk_norm` is set to a kind instead.
        qk_norm: the kind of `qk_norm` that it turns on.
        tensors: the tensors with either value.
    """

    fields: tuple[str, ...]
    qk_norm: str = ""
    tensors: tuple[str, ...] = ()


def switches(tiny: TinyModel) -> dict[str, Switch]:
    """The boolean keys whose whole effect on the tensors is that of known fields."""
    found = {key: _switch(tiny, key, other) for key, other in tiny.switches.items()}
    return {key: switch for key, switch in found.items() if switch is not None}


def fields_of(modules: MatchedModules, tensors: Sequence[str]) -> set[str]:
    """The fields that create some bias and norm parameters; empty if one of the parameters is of another kind."""
    fields = set()
    for name in tensors:
        kind = name.rpartition(".")[2]
        for ours in modules.ours(name) or ("",):
            if ours in ("attn.q_norm", "attn.k_norm"):
                fields.add("qk_norm_bias" if kind == "bias" else "qk_norm")
            elif ours in (*BLOCK_NORMS, "norm"):
                fields.add(f"norm_{kind}")
            else:
                fields.add(BIASES.get(ours, "") if kind == "bias" else "")
    return set() if "" in fields else fields


def qk_norm_kind(modules: MatchedModules, shapes: Mapping[str, Shape], n_heads: int) -> str:
    """The kind of `qk_norm` by the shape of its weight; empty if it is none that `ReaLModelConfig` has."""
    weight = next((shape for name, shape in shapes.items() if modules.ours(name) == ("attn.q_norm",)), ())
    queries = next((shape for name, shape in shapes.items() if "attn.q" in modules.ours(name) and len(shape) == 2), ())
    if len(weight) == 2:
        return "per_head"
    if not weight or not queries:
        return ""
    return {queries[0]: "whole", queries[0] // n_heads: "head"}.get(weight[0], "")


def _switch(tiny: TinyModel, key: str, other: Mapping[str, Shape]) -> Switch | None:
    on, off = (tiny.tensors, other) if tiny.values[key] else (other, tiny.tensors)
    added, removed = [name for name in on if name not in off], [name for name in off if name not in on]
    shapes = {**off, **on}
    modules = match_modules(shapes)
    if removed and not added and {modules.ours(name) for name in removed} == {("mlp_norm",)}:
        return Switch(("shared_norm",), tensors=tuple(shapes))
    fields = set() if removed or not added else fields_of(modules, added)
    for field, kind in (("norm_bias", "bias"), ("norm_weight", "weight")):
        if field in fields and any(fields_of(modules, [name]) == {field} for name in off if name.endswith(kind)):
            return None  # some norms have it either way
    if "qk_norm" in fields:
        kind = qk_norm_kind(modules, shapes, SIZES["num_attention_heads"])
        return Switch(("qk_norm",), kind, tuple(shapes)) if fields == {"qk_norm"} and kind else None
    return Switch(tuple(name for name in FIELDS if name in fields), tensors=tuple(shapes)) if fields else None
