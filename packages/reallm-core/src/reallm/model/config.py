"""`ReaLModelConfig`: the architecture of a decoder-only transformer. Imports no torch.

Every field is honoured by the network or refused here, by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from reallm.arguments import NamedFields
from reallm.errors import ConfigError, did_you_mean
from reallm.model.lora_config import LoRAConfig

NORMS = ("rms", "layer")
ATTENTIONS = ("standard",)
MLPS = ("gated", "plain")
BLOCKS = ("standard",)
EMBEDDINGS = ("standard",)
HEADS = ("standard",)
ROUTERS = ("standard",)
NormPlacement = Literal["pre", "branch", "sandwich", "post"]
QKNormKind = Literal["head", "per_head", "whole"]
RouterScores = Literal["softmax", "sigmoid"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
GradientCheckpointing = Literal["none", "selective", "full"]
"""The activations that the backward pass recomputes instead of saving; see `model.activation_checkpointing`."""

ACTIVATIONS = (
    "silu", "gelu", "gelu_tanh", "gelu_quick", "gelu_10", "relu", "relu2", "relu6", "leaky_relu", "mish", "hardswish",
    "laplace", "sigmoid", "tanh", "linear",
)  # fmt: skip
"""Names of activations the network has; `hf.standard` maps transformers' names to them."""


class Extra(Mapping[str, Any]):
    """Hyperparameters of a family's custom layer classes, by name; immutable, and hashable as a configuration must be.

    Lists become tuples, and mappings `Extra`, at any depth.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, /, **others: Any) -> None:
        self._values = {name: _frozen(value) for name, value in {**(values or {}), **others}.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"there is no hyperparameter '{name}'")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Extra({self._values!r})"


@dataclass(frozen=True)
class MoEConfig(NamedFields):
    """A mixture of experts in place of the MLP: each token goes through the `top_k` experts that a router chooses."""

    n_experts: int
    top_k: int
    intermediate_size: int | None = None
    """Intermediate size of each expert; None: that of the model's other MLPs."""
    gate_bias: bool = False
    up_bias: bool = False
    down_bias: bool = False
    """Biases of each expert's projections. Those of other MLPs, shared experts among them, are fields of the model."""
    n_shared_experts: int = 0
    """Experts through which every token goes, as one gated MLP of so many times the size of an expert."""
    shared_intermediate_size: int | None = None
    """Intermediate size of that MLP, if it is another."""
    shared_gate: bool = False
    """The output of that MLP, which has no `down_bias` then, is multiplied by a sigmoid of a projection of the input to
    one number."""
    router: str = "standard"
    """`standard`, whose settings are the fields up to `scaling_factor`, or a custom class of the family."""
    router_bias: bool = False
    """A bias on the logits, trained as the router's weight is."""
    scores: RouterScores = "softmax"
    """What the router makes of its logits; the scores of the chosen experts are their weights."""
    correction_bias: bool = False
    """A bias for each expert, not trained by gradients, is added to the scores in choosing, but not to the weights."""
    n_groups: int = 1
    """Number of groups of successive experts; a token chooses `top_k_groups` of them, then experts in these."""
    top_k_groups: int = 1
    group_top_scores: int = 1
    """The score of a group is the sum of so many of the highest scores in it."""
    normalize_top_k: bool = True
    """The weights of the chosen experts are scaled so that they sum to 1."""
    scaling_factor: float = 1.0
    """Factor on the weights of the chosen experts."""
    float32_logits: bool = False
    """The router multiplies in float32 in a model of half precision, too."""
    aux_loss_coef: float = 0.0
    """Coefficient of the load-balancing loss in training; 0 leaves it out."""
    jitter: float = 0.0
    """Amount of noise: in training, inputs are multiplied by uniform noise in `[1 - jitter, 1 + jitter]`."""
    layers: tuple[int, ...] | None = None
    """The blocks, from 0, that have experts; None: all of them."""

    def __post_init__(self) -> None:
        for name in ("n_experts", "top_k"):
            _whole_number(f"moe.{name}", getattr(self, name), at_most=_MOST_EXPERTS)
        if self.intermediate_size is not None:
            _whole_number("moe.intermediate_size", self.intermediate_size)
        if self.top_k > self.n_experts:
            raise ConfigError(f"moe.top_k={self.top_k} must be at most moe.n_experts={self.n_experts}")
        _one_of_or_custom("moe.router", self.router, ROUTERS)
        _one_of("moe.scores", self.scores, get_args(RouterScores))
        _positive("moe.scaling_factor", self.scaling_factor)
        if self.n_shared_experts < 0:
            raise ConfigError(f"moe.n_shared_experts={self.n_shared_experts} must be at least 0")
        if self.shared_intermediate_size is not None:
            _whole_number("moe.shared_intermediate_size", self.shared_intermediate_size)
        for name in ("shared_intermediate_size", "shared_gate"):
            if getattr(self, name) and not self.n_shared_experts:
                raise ConfigError(
                    f"moe.{name}={getattr(self, name)} has no meaning without moe.n_shared_experts; leave it out"
                )
        self._check_groups()
        if self.aux_loss_coef < 0:
            raise ConfigError(f"moe.aux_loss_coef={self.aux_loss_coef} must be at least 0")
        if not 0.0 <= self.jitter < 1.0:
            raise ConfigError(f"moe.jitter={self.jitter} must be at least 0 and less than 1")
        if self.layers and (list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0):
            raise ConfigError(f"moe.layers={self.layers} must be block numbers from 0, ascending, each once")

    def _check_groups(self) -> None:
        for name in ("n_groups", "top_k_groups", "group_top_scores"):
            _whole_number(f"moe.{name}", getattr(self, name))
        if self.n_experts % self.n_groups:
            raise ConfigError(f"moe.n_experts={self.n_experts} must be a multiple of moe.n_groups={self.n_groups}")
        if self.top_k_groups > self.n_groups:
            raise ConfigError(f"moe.top_k_groups={self.top_k_groups} must be at most moe.n_groups={self.n_groups}")
        size = self.n_experts // self.n_groups
        for name, allowed in (("group_top_scores", size), ("top_k", size * self.top_k_groups)):
            if getattr(self, name) > allowed:
                raise ConfigError(
                    f"moe.{name}={getattr(self, name)} must be at most {allowed}: moe.n_groups={self.n_groups} makes "
                    f"groups of {size} experts, of which moe.top_k_groups={self.top_k_groups} are chosen"
                )


@dataclass(frozen=True)
class RopeConfig(NamedFields):
    """Rotary position embedding: its base, and its scaling to longer contexts.

    Fields follow transformers' `rope_parameters`; fields that a kind does not use must be left at None.
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float | None = None
    """linear, dynamic, llama3, yarn, longrope: factor by which the context becomes longer."""
    original_max_positions: int | None = None
    """llama3, yarn, longrope: context length of pretraining. Other kinds use the model's `max_positions`."""
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    """longrope: factor on each wavelength in sequences of at most `original_max_positions` tokens."""
    long_factor: tuple[float, ...] | None = None
    """longrope: factor on each wavelength in longer sequences."""

    rotary_dim: int | None = None
    """Number of dims of each head, from the first, that are rotated; None: all."""
    interleaved: bool = False
    """Dims `2d` and `2d + 1` form a pair, not `d` and `d + rotary_dim / 2`."""

    def __post_init__(self) -> None:
        _one_of("rope.kind", self.kind, get_args(RopeKind))
        _positive("rope.theta", self.theta)
        if self.rotary_dim is not None:
            _whole_number("rope.rotary_dim", self.rotary_dim)
            if self.rotary_dim % 2:
                raise ConfigError(f"rope.rotary_dim={self.rotary_dim} must be even: RoPE rotates pairs")
        allowed = ROPE_FIELDS[self.kind] | {"kind", "theta", "rotary_dim", "interleaved"}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None and item.name not in allowed:
                raise ConfigError(f"rope.{item.name}={value} has no meaning for rope.kind='{self.kind}'; leave it out")
        for name in ROPE_REQUIRED[self.kind]:
            if getattr(self, name) is None:
                raise ConfigError(f"rope.{name} is required for rope.kind='{self.kind}'")
        if self.factor is not None and not 1.0 <= self.factor < math.inf:
            raise ConfigError(f"rope.factor={self.factor} must be at least 1")

    @property
    def depends_on_length(self) -> bool:
        """Whether frequencies depend on the length of the sequence."""
        return self.kind in ("dynamic", "longrope")


ROPE_FIELDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "original_max_positions", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_positions",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "attention_factor",
            "truncate",
        }
    ),
    "longrope": frozenset({"factor", "original_max_positions", "short_factor", "long_factor", "attention_factor"}),
}
ROPE_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("original_max_positions", "short_factor", "long_factor"),
}


@dataclass(frozen=True)
class ReaLModelConfig(NamedFields):
    """Architecture of a decoder-only transformer; sizes in elements, probabilities in [0, 1).

    Raises:
        ConfigError: a value is not allowed; names the field, the value and the allowed values.
    """

    n_layers: int
    hidden_size: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    """Longest sequence of pretraining; longer ones run, but `dynamic` RoPE changes beyond it."""
    v_head_dim: int | None = None
    """Size of each head's value; None: `head_dim`, that of queries and keys."""

    norm: str = "rms"
    """`rms`, `layer`, or a custom class of the family, `"package.module:Class"`; likewise the five below."""
    attention: str | tuple[str, ...] = "standard"
    """One for all blocks, or one for each block."""
    mlp: str = "gated"
    block: str = "standard"
    embedding: str = "standard"
    head: str = "standard"
    extra: Extra = field(default_factory=Extra)
    """Hyperparameters of the family's custom classes."""

    norm_eps: float = 1e-6
    norm_weight: bool = True
    norm_bias: bool = False
    norm_offset: float = 0.0
    """Norms multiply by `weight + norm_offset`."""
    norm_placement: NormPlacement = "pre"
    """Placement of norms in each half of a block. `pre`: `x + f(norm(x))`; `branch`: `x + norm(f(x))`;
    `sandwich`: `x + norm(f(norm(x)))`; `post`: `norm(x + f(x))`."""
    embedding_norm: bool = False
    """A norm of the embeddings, before the first block."""
    final_norm: bool = True
    """A norm before the output head."""
    parallel_residual: bool = False
    """Attention and MLP read the same stream: `x + attention(norm(x)) + mlp(norm(x))`."""
    shared_norm: bool = False
    """With `parallel_residual`: one norm serves both."""

    activation: str = "silu"
    """A name, or a custom class of the family, whose instance is called with the outputs of `gate` and `up`, or with
    that of `up` alone if there is no gate."""
    moe: MoEConfig | None = None
    """Experts in place of the MLP, in all blocks or some."""
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    gate_bias: bool = False
    up_bias: bool = False
    down_bias: bool = False
    head_bias: bool = False
    """Bias of the output head; a critic's scalar head has none."""

    rope: RopeConfig | tuple[RopeConfig | None, ...] | None = field(default_factory=RopeConfig)
    """RoPE of all blocks, or one for each block; None: no rotation."""
    learned_positions: bool = False
    """A table of `max_positions` vectors is added to the embeddings of the tokens."""
    position_offset: int = 0
    """Rows at the start of that table that no position uses."""

    sliding_window: int | tuple[int | None, ...] | None = None
    """Each token sees itself and the `sliding_window - 1` before it; one number for all blocks, or one for each."""
    tied_embeddings: bool = False
    qk_norm: QKNormKind | None = None
    """Norm of queries and keys before RoPE: over each head with one weight for all of them (`head`), over each head
    with separate weights (`per_head`), or over all heads together (`whole`)."""
    qk_norm_bias: bool = False
    attn_output_gate: bool = False
    """The output of each head is multiplied by a sigmoid of a projection of the input, before the output projection."""
    qkv_clip: float | None = None
    """Queries, keys and values are clamped to `[-qkv_clip, qkv_clip]`."""
    attn_scale: float | tuple[float, ...] | None = None
    """Factor on attention scores, one for all blocks or one for each; None means `head_dim ** -0.5`."""
    attn_softcap: float | None = None
    """Scores become `cap * tanh(score / cap)` before masking."""
    alibi_scale: float | None = None
    """`-slope * distance` is added to attention scores, with ALiBi's slope of each head times this factor."""
    attn_sinks: bool = False
    """A learned logit of each query head takes part in the softmax of attention; its weight is dropped."""
    logit_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0

    embedding_dropout: float = 0.0
    attn_dropout: float = 0.0
    residual_dropout: float = 0.0

    init_std: float = 0.02
    """Standard deviation of freshly initialised weights."""
    is_critic: bool = False
    """The head gives one score per token instead of logits over the vocabulary."""
    lora: LoRAConfig | None = None
    """Adapters of linear layers; then nothing else is trained, except for the scalar head of a critic."""

    def __post_init__(self) -> None:
        for name in sorted(SIZES):
            if name != "v_head_dim" or self.v_head_dim is not None:
                check_size(name, getattr(self, name))
        self._check_matrices()
        if self.n_q_heads % self.n_kv_heads:
            raise ConfigError(f"n_q_heads={self.n_q_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        for name, kinds in LAYER_CLASSES.items():
            for kind in self._kinds(name):
                _one_of_or_custom(name, kind, kinds)
        _one_of("norm_placement", self.norm_placement, get_args(NormPlacement))
        self._check_qk_norm()
        if self.position_offset < 0:
            raise ConfigError(f"position_offset={self.position_offset} must be at least 0")
        for name in ("norm_eps", "attn_softcap", "logit_softcap", "alibi_scale", "init_std", "qkv_clip"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("embedding_dropout", "attn_dropout", "residual_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        for name in PER_BLOCK:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.n_layers:
                raise ConfigError(
                    f"{name} has {len(value)} entries for n_layers={self.n_layers}; give one for each block"
                )
        for window in self.windows:
            if window is not None and window < 1:
                raise ConfigError(f"sliding_window={window} must be at least 1")
        for scale in self.attn_scales:
            _positive("attn_scale", scale)
        for rope in self.distinct_ropes:
            self._check_rope(rope)
        for name, needed, wanted in NEEDS:
            value = getattr(self, name)
            if value and getattr(self, needed) != wanted:
                raise ConfigError(f"{name}={value!r} has no meaning without {needed}={wanted!r}; leave it out")
        if self.gate_bias and self.mlp == "plain":
            raise ConfigError("gate_bias has no meaning for mlp='plain', which has no gate; leave it out")
        if self.moe and self.moe.shared_gate and self.down_bias:
            raise ConfigError("moe.shared_gate=True works without down_bias only; leave one of them out")
        if self.moe and self.moe.layers and max(self.moe.layers) >= self.n_layers:
            raise ConfigError(f"moe.layers={self.moe.layers} names a block beyond n_layers={self.n_layers}")

    def _check_matrices(self) -> None:
        heads = ("n_q_heads", "head_dim", "hidden_size")
        for names in (("vocab_size", "hidden_size"), ("hidden_size", "intermediate_size"), heads):
            if math.prod(getattr(self, name) for name in names) > _LARGEST_MATRIX:
                sizes = " and ".join(f"{name}={getattr(self, name)}" for name in names)
                raise ConfigError(f"{sizes} make a matrix of more than 2^44 elements; make them smaller")

    def _check_qk_norm(self) -> None:
        if self.qk_norm is None:
            if self.qk_norm_bias:
                raise ConfigError("qk_norm_bias=True has no meaning without qk_norm; leave it out")
            return
        _one_of("qk_norm", self.qk_norm, get_args(QKNormKind))
        if self.qk_norm == "per_head" and not self.norm_weight:
            raise ConfigError("qk_norm='per_head' needs norm_weight=True: each head has its own weights")
        if self.qk_norm == "per_head" and is_custom_class(self.norm):
            raise ConfigError(f"qk_norm='per_head' works with norm {' or '.join(NORMS)}, not with norm={self.norm!r}")

    def _check_rope(self, rope: RopeConfig) -> None:
        n_dims = rope.rotary_dim or self.head_dim
        if n_dims > self.head_dim:
            raise ConfigError(f"rope.rotary_dim={n_dims} must be at most head_dim={self.head_dim}")
        if n_dims % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        for name in ("short_factor", "long_factor"):
            factors = getattr(rope, name)
            if factors is not None and len(factors) != n_dims // 2:
                raise ConfigError(
                    f"rope.{name} has {len(factors)} entries; it needs {n_dims // 2}, one for each rotated pair"
                )

    @property
    def attentions(self) -> tuple[str, ...]:
        """The attention of each block, or what it has in its place: `standard` or a custom class."""
        return self._each_block(self.attention)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each block."""
        return self._each_block(self.sliding_window)

    @property
    def ropes(self) -> tuple[RopeConfig | None, ...]:
        """The RoPE of each block."""
        return self._each_block(self.rope)

    @cached_property  # read by each forward pass
    def distinct_ropes(self) -> tuple[RopeConfig, ...]:
        """The distinct RoPEs of the blocks, in the order of the blocks."""
        return tuple(dict.fromkeys(rope for rope in self.ropes if rope is not None))

    @property
    def attn_scales(self) -> tuple[float, ...]:
        """The factor on attention scores of each block."""
        scale = self.head_dim**-0.5 if self.attn_scale is None else self.attn_scale
        return self._each_block(scale)

    @property
    def expert_blocks(self) -> tuple[int, ...]:
        """The blocks, from 0, that have experts in place of the MLP."""
        if self.moe is None:
            return ()
        return tuple(range(self.n_layers)) if self.moe.layers is None else self.moe.layers

    @property
    def value_dim(self) -> int:
        """The size of each head's value."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def expert_size(self) -> int:
        """The intermediate size of each expert."""
        of_experts = self.moe.intermediate_size if self.moe else None
        return self.intermediate_size if of_experts is None else of_experts

    @property
    def shared_expert_size(self) -> int:
        """The intermediate size of all shared experts together; 0 without any."""
        if self.moe is None:
            return 0
        return self.moe.shared_intermediate_size or self.moe.n_shared_experts * self.expert_size

    @property
    def custom_classes(self) -> Mapping[str, str]:
        """The family's classes among the kinds of layers, `"package.module:Class"` -> the field that names it."""
        return {kind: name for name in LAYER_CLASSES for kind in self._kinds(name) if is_custom_class(kind)}

    def _kinds(self, name: str) -> tuple[str, ...]:
        """The different values of one of the fields of `LAYER_CLASSES`, which may have one for each block."""
        value = getattr(self, name)
        return tuple(dict.fromkeys(value)) if isinstance(value, tuple) else (value,)

    @property
    def head_has_bias(self) -> bool:
        """Whether the output head has a bias; a critic's scalar head never has."""
        return self.head_bias and not self.is_critic

    @property
    def longest_sequence(self) -> int | None:
        """Maximum number of tokens of a sequence, which is the number of learned positions; None: any number."""
        return self.max_positions if self.learned_positions else None

    def outgrown_by(self, n_tokens: int) -> bool:
        """Whether a sequence is longer than those that the model was made for.

        `dynamic` RoPE adapts to any length.
        """
        adapts = any(rope.kind == "dynamic" for rope in self.distinct_ropes)
        return n_tokens > self.max_positions and not adapts

    @property
    def head_is_tied(self) -> bool:
        """Whether the output head reuses the token embedding; a critic's scalar head never does."""
        return self.tied_embeddings and not self.is_critic

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """What follows from an architecture is looked up by it."""
        return hash(tuple([getattr(self, item.name) for item in dataclasses.fields(self)]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hash"}  # another process has others

    @property
    def base(self) -> ReaLModelConfig:
        """The same architecture without adapters, as checkpoints have it."""
        return self if self.lora is None else self.replace(lora=None)

    @property
    def base_is_quantized(self) -> bool:
        """Whether blocks hold the weights of their linear layers in 4 bits, under adapters."""
        return self.lora is not None and self.lora.quantize_base is not None

    def replace(self, **changes: Any) -> ReaLModelConfig:
        """A copy with some fields changed, validated again; the error for an unknown field names the nearest one."""
        return dataclasses.replace(self, **changes)

    def with_blocks(self, *blocks: int) -> ReaLModelConfig:
        """The same architecture with only some of its blocks (from 0), in the given order.

        Lists in `extra` that have as many entries as there are blocks are taken to have one for each.
        """
        return dataclasses.replace(self, n_layers=len(blocks), **self._fields_of(blocks))

    def alike_blocks(self) -> list[list[int]]:
        """The blocks (from 0) in groups that are configured alike, in the order of the first of each."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for block in range(self.n_layers):
            found.setdefault(tuple(self._fields_of([block]).values()), []).append(block)
        return list(found.values())

    def _fields_of(self, blocks: Sequence[int]) -> dict[str, Any]:
        """The fields that may differ between blocks, of some of them."""
        changes: dict[str, Any] = {"extra": _of_blocks(self.extra, self.n_layers, blocks)}
        for name in PER_BLOCK:
            value = getattr(self, name)
            if isinstance(value, tuple):
                changes[name] = tuple(value[block] for block in blocks)
        if self.moe and self.moe.layers is not None:
            kept = tuple(index for index, block in enumerate(blocks) if block in self.moe.layers)
            changes["moe"] = dataclasses.replace(self.moe, layers=kept)
        return changes

    def _each_block(self, value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * self.n_layers


SIZES = frozenset(
    {"n_layers", "hidden_size", "n_q_heads", "n_kv_heads", "head_dim", "v_head_dim", "intermediate_size", "vocab_size",
     "max_positions"}
)  # fmt: skip
"""Fields that are positive whole numbers."""
_MOST_LAYERS, _MOST_EXPERTS, _LARGEST_SIZE, _LARGEST_MATRIX = 10_000, 1 << 16, (1 << 31) - 1, 1 << 44
"""Far more than any network has; larger numbers are damage, and lists of such lengths would fill the memory."""

LAYER_CLASSES: Mapping[str, tuple[str, ...]] = {
    "norm": NORMS,
    "attention": ATTENTIONS,
    "mlp": MLPS,
    "block": BLOCKS,
    "activation": ACTIVATIONS,
    "embedding": EMBEDDINGS,
    "head": HEADS,
}
"""Fields that name the kind of a layer, or a custom class of the family -> the names of kinds."""

ALLOWED: Mapping[str, tuple[str | None, ...]] = {
    **LAYER_CLASSES,
    "norm_placement": get_args(NormPlacement),
    "qk_norm": (None, *get_args(QKNormKind)),
}
"""Allowed values of fields whose values are one of a few names."""

PER_BLOCK = ("attention", "sliding_window", "rope", "attn_scale")
"""Fields with one value for all blocks, or a tuple with one a block."""

NEEDS: tuple[tuple[str, str, Any], ...] = (
    ("shared_norm", "parallel_residual", True),
    ("parallel_residual", "norm_placement", "pre"),
    ("position_offset", "learned_positions", True),
    ("norm_offset", "norm_weight", True),
)
"""Fields that, when they are set, require a value of another field."""


def _of_blocks(value: Any, n_layers: int, blocks: Sequence[int]) -> Any:
    """A value of `extra` with tuples of an entry per block, at any depth of mappings, cut to some blocks."""
    if isinstance(value, Mapping):
        return Extra({name: _of_blocks(item, n_layers, blocks) for name, item in value.items()})
    is_per_block = isinstance(value, tuple) and len(value) == n_layers
    return tuple(value[block] for block in blocks) if is_per_block else value


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Extra(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def is_custom_class(value: str) -> bool:
    """Whether a kind of layer is a custom class of the family, `"package.module:Class"`."""
    return ":" in value


def _one_of_or_custom(name: str, value: str, kinds: tuple[str, ...]) -> None:
    if not is_custom_class(value) and value not in kinds:
        raise ConfigError(
            f"{name}={value!r} is not one of {', '.join(kinds)}{did_you_mean(value, kinds)}; "
            "a class of your own is written 'package.module:Class'"
        )


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")


def check_size(name: str, value: object) -> None:
    """Check the value of one of the `SIZES`; None is not one.

    Raises:
        ConfigError: it is no whole number, too small, or larger than in any network.
    """
    _whole_number(name, value, at_most=_MOST_LAYERS if name == "n_layers" else _LARGEST_SIZE)


def _whole_number(name: str, value: object, at_most: int = _LARGEST_SIZE) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
    if value > at_most:
        raise ConfigError(f"{name}={value} must be at most {at_most:,}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} must be greater than 0")
