"""Finds where two models begin to differ, and the rows and entries of the tables that may be the cause.

Inputs and outputs of the modules that the weight table pairs are recorded in both models while one sequence runs. The
first of our modules with another input although all outputs before it agree, or with another output for the same input,
is where they diverge.

Shapes: T tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reallm.hf.conversion.mapping import weight_mappings
from reallm.model.parameter_names import EMBEDDING_LAYER, layer_number, module_of, path_in_layer
from reallm_devkit.testing.families.reference import pack
from reallm_devkit.testing.families.subject import (
    FamilySubject,
    custom_class_location,
    custom_layers_location,
    run_packed,
)

TOLERANCE = 1e-4
"""Largest difference of equal activations, relative to the largest number."""

Side = Literal["in", "out"]
Event = tuple[str, Side]

Suspects = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of fields, and of entries of the weight table."""

NORM = ("norm", "norm_eps", "norm_weight", "norm_bias", "norm_offset")
STREAM = ("norm_placement", "residual_multiplier", "parallel_residual", "shared_norm", "block")
SCORES = (
    "rope",
    "sliding_window",
    "attn_scale",
    "attn_softcap",
    "attn_sinks",
    "alibi_scale",
    "qk_norm",
    "qkv_clip",
    "attention",
)

BETWEEN: Mapping[str, Suspects] = {
    "attn.q": (NORM, ("attn_norm",)),
    "attn.k": (NORM, ("attn_norm",)),
    "attn.v": (NORM, ("attn_norm",)),
    "attn.q_norm": (("qk_norm", "attention"), ("attn.q",)),
    "attn.k_norm": (("qk_norm", "attention"), ("attn.k",)),
    "attn.o": (SCORES, ("attn.q", "attn.k", "attn.v", "attn.q_norm", "attn.k_norm", "attn.sinks")),
    "attn_post_norm": (STREAM, ("attn.o",)),
    "mlp_norm": (STREAM, ("attn.o",)),
    "mlp.gate": ((*NORM, *STREAM), ("mlp_norm",)),
    "mlp.up": ((*NORM, *STREAM), ("mlp_norm",)),
    "mlp.router": ((*NORM, *STREAM), ("mlp_norm",)),
    "mlp.down": (("activation", "mlp"), ("mlp.gate", "mlp.up")),
    "mlp_post_norm": ((*STREAM, "moe"), ("mlp.down", "mlp.experts.down")),
}
"""Module -> the fields and entries that determine its inputs from the outputs of the modules before it."""

EMBEDDING: Suspects = (
    ("embedding_multiplier", "learned_positions", "position_offset", "embedding_norm", "embedding"),
    ("tokens", "positions", "embedding_norm"),
)
END_OF_BLOCK: Suspects = (
    ("moe", "activation", "mlp", *STREAM),
    ("mlp.experts.gate", "mlp.experts.up", "mlp.experts.down", "mlp.down"),
)
HEAD: Suspects = (
    ("tied_embeddings", "logit_multiplier", "logit_softcap", "head_bias", "final_norm", "head"),
    ("out", "norm"),
)

BIASES: Mapping[str, str] = {
    "attn.q": "q_bias", "attn.k": "k_bias", "attn.v": "v_bias", "attn.o": "o_bias",
    "mlp.gate": "gate_bias", "mlp.up": "up_bias", "mlp.down": "down_bias",
}  # fmt: skip


@dataclass(frozen=True)
class Divergence:
    """Where two models begin to differ, and which rows and entries of the tables to look at."""

    where: str
    look_at: str


@torch.no_grad()
def find_divergence(subject: FamilySubject) -> Divergence:
    """Find where our model begins to differ from that of transformers."""
    pairs = _pairs(subject)
    sample = max(subject.samples, key=len)
    ours, order = _record(subject.model, list(pairs), lambda: run_packed(subject.model, *pack([sample])))
    theirs, _ = _record(subject.hf_model, list(pairs.values()), lambda: subject.hf_model(sample[None], use_cache=False))
    agreed: list[str] = []
    for path, side in order:
        one, other = ours[path, side], theirs.get((pairs[path], side))
        # some models scale embeddings within the module, others after it
        if other is None or layer_number(path) == EMBEDDING_LAYER:
            continue
        other = other[0] if other.dim() == one.dim() + 1 else other
        if one.shape != other.shape:  # another layout of heads, or fused projections
            continue
        if (one - other).abs().max() > TOLERANCE * other.abs().max().clamp_min(1e-6):
            return _divergence(subject, path, pairs[path], side, agreed)
        if side == "out":
            agreed.append(path)
    fields, entries = HEAD
    return Divergence("after the last block, in the output head", _at(subject, fields, entries))


def _divergence(subject: FamilySubject, path: str, theirs: str, side: Side, agreed: list[str]) -> Divergence:
    layer, module = layer_number(path), path_in_layer(path)
    if side == "out":
        fields = NORM if module.endswith("norm") else (*filter(None, [BIASES.get(module)]),)
        where = f"{path} gives something else than {theirs} for the same input"
        tables = subject.at(fields if module.endswith("norm") else (), [module]) + _bias_rows(subject, fields)
        custom = custom_class_location(subject.model, path)
        return Divergence(where, f"{custom}; {tables}" if custom else tables)
    is_first = not any(layer_number(one) == layer for one in agreed)
    ends = EMBEDDING if layer == 1 else END_OF_BLOCK
    fields, entries = ends if is_first else BETWEEN.get(module, ((), ()))
    before = [path_in_layer(one) for one in agreed if layer_number(one) == layer]
    where = f"what goes into {path} ({theirs}) differs" + (f", while {_join(before)} agree" if before else "")
    return Divergence(where, _at(subject, fields, (*entries, module)))


def _at(subject: FamilySubject, fields: tuple[str, ...], entries: tuple[str, ...]) -> str:
    rows = subject.at(fields, entries, unstated=True)
    return "; ".join(filter(None, [rows, custom_layers_location(subject)]))


def _bias_rows(subject: FamilySubject, fields: tuple[str, ...]) -> str:
    """The rows of biases, to append to the entry of their weight."""
    rows = [subject.lines.field(field) for field in fields if field in BIASES.values()]
    return "".join(f"; {row}" for row in rows if row)


def _pairs(subject: FamilySubject) -> dict[str, str]:
    """Our modules -> modules of transformers, paired by the weight table."""
    pairs: dict[str, str] = {}
    modules = {name for name, _ in subject.hf_model.named_modules()}
    for mapping in weight_mappings(subject.family, subject.config):
        for ours in mapping.parameters:
            theirs = mapping.hf_names[0].rpartition(".")[0]
            if len(mapping.hf_names) == 1 and theirs in modules:
                pairs.setdefault(module_of(ours), theirs)
    return pairs


def _record(model: nn.Module, paths: list[str], run: Callable[[], Any]) -> tuple[dict[Event, Tensor], list[Event]]:
    """Run a model and record the inputs and outputs of modules, and the order in which they come."""
    recorded: dict[Event, Tensor] = {}

    def note(path: str, side: Side, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, Tensor) and value.is_floating_point():
            recorded.setdefault((path, side), value.detach())

    def register(path: str) -> list[Any]:
        module = model.get_submodule(path)
        return [
            module.register_forward_pre_hook(lambda _, inputs: note(path, "in", inputs)),
            module.register_forward_hook(lambda _, __, output: note(path, "out", output)),
        ]

    handles = [handle for path in paths for handle in register(path)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return recorded, list(recorded)


def _join(modules: list[str]) -> str:
    return ", ".join(modules[-3:])
