"""What truth values of a configuration mean, told by the tensors that come and go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reallm_devkit.scaffold.names import BIASES
from reallm_devkit.scaffold.tiny import SIZES, Shape, Tiny
from reallm_devkit.scaffold.weights import Placed, placed

BLOCK_NORMS = ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm")
FIELDS = ("norm_weight", "norm_bias", *BIASES.values())
"""In the order in which they are written."""


@dataclass(frozen=True)
class Switch:
    """A truth value that sets fields of ours.

    Attributes:
        fields: that are true where it is; `qk_norm` has a kind instead.
        qk_norm: the kind that it turns on.
        tensors: there are with one value or the other.
    """

    fields: tuple[str, ...]
    qk_norm: str = ""
    tensors: tuple[str, ...] = ()


def switches(tiny: Tiny) -> dict[str, Switch]:
    """The truth values whose whole effect on the tensors is known to be that of some fields."""
    found = {key: _switch(tiny, key, other) for key, other in tiny.switches.items()}
    return {key: switch for key, switch in found.items() if switch is not None}


def fields_of(modules: Placed, tensors: Sequence[str]) -> set[str]:
    """The fields that make some parameters, of biases and norms; none if one of them is of another kind."""
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


def qk_norm_kind(modules: Placed, shapes: Mapping[str, Shape], n_heads: int) -> str:
    """The kind of the norms of queries by the shape of their weight; empty if it is none of ours."""
    weight = next((shape for name, shape in shapes.items() if modules.ours(name) == ("attn.q_norm",)), ())
    queries = next((shape for name, shape in shapes.items() if "attn.q" in modules.ours(name) and len(shape) == 2), ())
    if len(weight) == 2:
        return "per_head"
    if not weight or not queries:
        return ""
    return {queries[0]: "whole", queries[0] // n_heads: "head"}.get(weight[0], "")


def _switch(tiny: Tiny, key: str, other: Mapping[str, Shape]) -> Switch | None:
    on, off = (tiny.tensors, other) if tiny.values[key] else (other, tiny.tensors)
    added, removed = [name for name in on if name not in off], [name for name in off if name not in on]
    shapes = {**off, **on}
    modules = placed(shapes)
    if removed and not added and {modules.ours(name) for name in removed} == {("mlp_norm",)}:
        return Switch(("shared_norm",), tensors=tuple(shapes))
    fields = set() if removed or not added else fields_of(modules, added)
    for field, kind in (("norm_bias", "bias"), ("norm_weight", "weight")):
        if field in fields and any(fields_of(modules, [name]) == {field} for name in off if name.endswith(kind)):
            return None  # some norms have one without it
    if "qk_norm" in fields:
        kind = qk_norm_kind(modules, shapes, SIZES["num_attention_heads"])
        return Switch(("qk_norm",), kind, tuple(shapes)) if fields == {"qk_norm"} and kind else None
    return Switch(tuple(name for name in FIELDS if name in fields), tensors=tuple(shapes)) if fields else None
