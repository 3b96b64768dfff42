"""Families that are the core's own but for one mistake that authors make, and which check of the kit finds it.

Where several checks could see a mistake, the first one finds it and those that need it are not made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm_hf_apertus.plugin import APERTUS

from reallm.hf.family import HFFamily
from reallm.hf.standard import QKV_BIAS, aux_loss, head_dim_from_hidden_size, without
from reallm.hf.tables import (
    AttentionInBlocks,
    ExpertBlocks,
    InBlocks,
    LaterBlocks,
    LayerTypes,
    ListedBlocks,
    RopeRow,
    all_except_every,
    always_sliding,
    sliding_except_every,
)
from reallm.hf.tables.arrangements import Source, fused, transposed
from reallm.hf.tables.fields import Conversion, FieldRow, Key, Nested
from reallm.model.config import ReaLModelConfig, RopeConfig
from reallm.model.sharding import Shape
from reallm_hf_bloom.plugin import BLOOM
from reallm_hf_deepseek.plugin import V3 as DEEPSEEK_V3
from reallm_hf_gemma.plugin import GEMMA2, GEMMA3
from reallm_hf_gpt2.plugin import GPT2
from reallm_hf_lfm2.plugin import LFM2
from reallm_hf_llama.plugin import LLAMA
from reallm_hf_mistral.plugin import MISTRAL, MIXTRAL
from reallm_hf_phi.plugin import PHI3
from reallm_hf_qwen.plugin import QWEN2, QWEN3, QWEN3_MOE
from reallm_hf_smollm3.plugin import SMOLLM3

LAYERS = "tests.devkit.testing.families.broken_families_layers"
SQUARE: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
"""A Llama whose matrices are square, so that shapes give no mistake away."""


def table(family: HFFamily, *rows: FieldRow, drop: Sequence[str] = (), **changes: Any) -> HFFamily:
    """The family with rows in place of those that have one of their keys, without those of `drop`."""
    gone = [*drop, *(row.keys[0] for row in rows if any(row.keys[0] in one.keys for one in family.config.rows))]
    kept = without(family.config.rows, *gone)
    config = dataclasses.replace(family.config, rows=(*kept, *rows), **changes)
    return dataclasses.replace(family, config=config)


def weights(family: HFFamily, **parts: Any) -> HFFamily:
    """The family with other entries in its weight table."""
    return dataclasses.replace(family, weights=family.weights.updated(**parts))


def convolution(name: str) -> HFFamily:
    """LFM2 with another convolution."""
    row = next(row for row in LFM2.config.rows if isinstance(row, AttentionInBlocks))
    return table(LFM2, dataclasses.replace(row, kind=f"{LAYERS}:{name}"))


def layer(family: HFFamily, kind: str, name: str) -> HFFamily:
    """The family with a layer of its own."""
    constants = {**family.config.constants, kind: f"{LAYERS}:{name}"}
    return dataclasses.replace(family, config=dataclasses.replace(family.config, constants=constants))


@dataclass(frozen=True)
class Halves:
    """Two parameters in one tensor, of which the first half is read for both."""

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        return (2 * shapes[0][0], *shapes[0][1:])

    def views(self, theirs: Any, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Any]:
        half = shapes[0][0]
        return [theirs[:half], theirs[:half]]


class IgnoresList(ListedBlocks):
    """The default blocks, whatever the list says."""

    @property
    def keys(self) -> tuple[str, ...]:
        return self.older_keys

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> Sequence[bool]:
        return self.default(raw, known)

    def write(self, chosen: Sequence[bool], config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        return {}


class IgnoresNumber(LaterBlocks):
    """All blocks but the default number of the first, whatever the key says."""

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> Sequence[bool]:
        return super().read({}, known)


class ForgetsFactor(RopeRow):
    """RoPE that is stretched linearly is read as if it were not."""

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        (rope,) = super().read(raw, known).values()
        return {"rope": RopeConfig(theta=rope.theta) if rope.kind == "linear" else rope}


class ForgetsAbsent(RopeRow):
    """Plain RoPE is written on a file in the older spelling, which then states none at all."""

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        return RopeRow(self.default_theta).write(config, base)


def in_place(family: HFFamily, row: FieldRow, irrelevant: frozenset[str] = frozenset()) -> HFFamily:
    """The family with a row where it has had the row of the same field."""
    rows = tuple(row if row.fields == one.fields else one for one in family.config.rows)
    config = dataclasses.replace(family.config, rows=rows, irrelevant=family.config.irrelevant | irrelevant)
    return dataclasses.replace(family, config=config)


def nope(blocks: ListedBlocks) -> HFFamily:
    """SmolLM3 with another choice of the blocks with RoPE."""
    ignored = frozenset({"no_rope_layers", INTERVAL} - set(blocks.keys))
    return in_place(SMOLLM3, InBlocks(RopeRow(default_theta=2e6), blocks), ignored)


def experts(family: HFFamily, *rows: FieldRow, drop: Sequence[str] = (), **changes: Any) -> HFFamily:
    """The family with rows for experts in place of those with one of their keys, without those of `drop`."""
    gone = {*drop, *(key for row in rows for key in row.keys)}
    nested = [
        dataclasses.replace(row, rows=(*(one for one in row.rows if not gone & set(one.keys)), *rows))
        for row in family.config.rows
        if isinstance(row, Nested) and row.field == "moe"
    ]
    return table(family, *nested, **changes)


def activation(name: str) -> HFFamily:
    """Apertus with another activation."""
    act = f"{LAYERS}:{name}"
    return table(APERTUS, Key("hidden_act", str, "activation", default=act, spellings={"xielu": act}))


INTERVAL = "no_rope_layer_interval"


UNDESCRIBED = dataclasses.replace(LLAMA, description="")
UNKNOWN_TYPE = dataclasses.replace(LLAMA, model_type="lama")
UNKNOWN_CLASS = dataclasses.replace(LLAMA, architectures=("LlamaForCausalLMs",))
FORGOTTEN_KEY = table(LLAMA, drop=["mlp_bias"])
WRONG_STD = table(
    LLAMA,
    Key("initializer_range", float, "init_std", default=1.0, conversion=Conversion(lambda x: x * 50, lambda x: x / 50)),
)
FORGOTTEN_KEYS = table(LLAMA, drop=["mlp_bias", "rms_norm_eps"])
MISSPELT_CLASS = activation("XIELUThatTrainBeta")
KEY_OF_OTHERS = table(
    GPT2,
    Key("head_dim", int, "head_dim", default=head_dim_from_hidden_size),
    constants={key: value for key, value in GPT2.config.constants.items() if key != "head_dim"},
)
LOSES_ROPE = table(
    APERTUS,
    *(
        ForgetsAbsent(default_theta=row.default_theta, absent=row.absent)
        for row in APERTUS.config.rows
        if isinstance(row, RopeRow)
    ),
)
LOSES_A_DIGIT = table(
    LLAMA,
    Key("rms_norm_eps", float, "norm_eps", default=1e-6, conversion=Conversion(lambda eps: eps, lambda eps: eps * 10)),
)
WRONG_DEFAULT = table(LLAMA, Key("num_key_value_heads", int, "n_kv_heads", default=1))
WRONG_DEFAULT_EPS = table(LLAMA, Key("rms_norm_eps", float, "norm_eps", default=1e-5))
WRONG_DEFAULT_THETA = table(LLAMA, RopeRow(default_theta=5e5))
MISSING_ENTRY = weights(LLAMA, block={"mlp_norm": None})
MISTYPED_ENTRY = weights(LLAMA, block={"attn.qnorm": "model.layers.{}.self_attn.q_norm"})
NO_INVERSE = weights(LLAMA, block={("mlp.gate", "mlp.up"): Source("model.layers.{}.mlp.gate_up_proj", Halves())})
WRONG_NAME = weights(LLAMA, head={"norm": "model.final_norm"})
IDLE_ENTRY = weights(APERTUS, block={"mlp.gate": "model.layers.{}.mlp.gate_proj"})
FORGOTTEN_QK_NORM = table(APERTUS, constants={"norm": "rms", "mlp": "plain"})
FORGOTTEN_BIAS = table(
    GPT2, constants={key: value for key, value in GPT2.config.constants.items() if key != "down_bias"}
)
WRONG_SHAPE = weights(LLAMA, block={"mlp.up": transposed("model.layers.{}.mlp.up_proj")})
SWAPPED_GATE_AND_UP = weights(
    LLAMA, block={"mlp.gate": "model.layers.{}.mlp.up_proj", "mlp.up": "model.layers.{}.mlp.gate_proj"}
)
SWAPPED_FUSED = weights(PHI3, block={("mlp.up", "mlp.gate"): fused("model.layers.{}.mlp.gate_up_proj")})
GROUPED_BY_HEADS = weights(
    PHI3,
    block={("attn.q", "attn.k", "attn.v"): fused("model.layers.{}.self_attn.qkv_proj", groups="n_kv_heads")},
)
SWAPPED_NORMS = weights(
    LLAMA,
    block={
        "attn_norm": "model.layers.{}.post_attention_layernorm",
        "mlp_norm": "model.layers.{}.input_layernorm",
    },
)
TRANSPOSED_SQUARE = weights(LLAMA, block={"attn.o": transposed("model.layers.{}.self_attn.o_proj")})
INTERLEAVED = table(LLAMA, RopeRow(interleaved=True))
WINDOW_OFF_BY_ONE = table(
    MISTRAL,
    Key(
        "sliding_window",
        int,
        "sliding_window",
        default=4097,
        nullable=True,
        conversion=Conversion(lambda theirs: theirs + 1, lambda ours: ours - 1),
    ),
)
WRONG_ACTIVATION = table(
    LLAMA, Key("hidden_act", str, "activation", default="gelu", spellings={"silu": "gelu", "swish": "gelu"})
)
NO_MULTIPLIER = table(GEMMA2, constants={**GEMMA2.config.constants, "embedding_multiplier": 1.0})
NO_NORM_OFFSET = table(GEMMA2, constants={**GEMMA2.config.constants, "norm_offset": 0.0})
WRONG_PLACEMENT = table(GEMMA2, constants={**GEMMA2.config.constants, "norm_placement": "branch"})
NO_SOFTCAP = table(GEMMA2, drop=["attn_logit_softcapping"], irrelevant=frozenset({"attn_logit_softcapping"}))
NO_SLOPES = table(BLOOM, constants={**BLOOM.config.constants, "alibi_scale": None})
FORGOTTEN_EMBEDDING_NORM = table(BLOOM, constants={**BLOOM.config.constants, "embedding_norm": False})
FIRST_SLOPES = layer(BLOOM, "attention", "FirstSlopes")
UNNORMALISED_EXPERTS = table(
    MIXTRAL,
    *(
        dataclasses.replace(row, rows=(*row.rows, Key("normalize", bool, "normalize_top_k", default=False)))
        for row in MIXTRAL.config.rows
        if isinstance(row, Nested)
    ),
)
NORMED_AFTER_ROTATING = layer(QWEN3, "attention", "NormsAfterRotating")
FORGOTTEN_TIE = table(LLAMA, drop=["tie_word_embeddings"], irrelevant=frozenset({"tie_word_embeddings"}))
IGNORED_BIAS = table(LLAMA, drop=["mlp_bias"], irrelevant=frozenset({"mlp_bias"}))
IGNORED_EPS = table(LLAMA, drop=["rms_norm_eps"], irrelevant=frozenset({"rms_norm_eps"}))
IGNORED_DROPOUT = table(LLAMA, drop=["attention_dropout"], irrelevant=frozenset({"attention_dropout"}))
IGNORED_ROUTER_LOSS = table(
    MIXTRAL,
    *(
        dataclasses.replace(row, rows=tuple(one for one in row.rows if "router_aux_loss_coef" not in one.keys))
        for row in MIXTRAL.config.rows
        if isinstance(row, Nested)
    ),
    irrelevant=frozenset({"router_aux_loss_coef", "output_router_logits"}),
)
HALF_THE_BIAS = table(LLAMA, Key("attention_bias", bool, QKV_BIAS, default=False))
FORGOTTEN_FACTOR = table(LLAMA, ForgetsFactor())
ONE_WRONG_ACTIVATION = table(
    LLAMA,
    Key("hidden_act", str, "activation", default="silu", spellings={"silu": "silu", "gelu": "gelu_tanh"}),
)
NO_CRITIC_HEAD = dataclasses.replace(LLAMA, weights=dataclasses.replace(LLAMA.weights, critic_head={}))
WRONG_CRITIC_HEAD = dataclasses.replace(
    LLAMA, weights=dataclasses.replace(LLAMA.weights, critic_head={"out": "v_head"})
)

NO_NOPE = table(
    SMOLLM3,
    RopeRow(default_theta=2e6),
    drop=["use_sliding_window"],
    irrelevant=frozenset({"no_rope_layers", INTERVAL, "layer_types", "use_sliding_window", "sliding_window"}),
)
NO_NOPE_LIST = nope(IgnoresList("no_rope_layers", all_except_every(4, INTERVAL), older_keys=(INTERVAL,)))
NO_NOPE_INTERVAL = nope(ListedBlocks("no_rope_layers", all_except_every(4)))
NOPE_OFF_BY_ONE = nope(
    ListedBlocks(
        "no_rope_layers",
        lambda raw, known: [block % (raw.get(INTERVAL) or 4) != 0 for block in range(known["n_layers"])],
        older_keys=(INTERVAL,),
    )
)
NOPE_INVERTED = nope(
    ListedBlocks("no_rope_layers", all_except_every(4, INTERVAL), chosen=0, other=1, older_keys=(INTERVAL,))
)
ONLY_ONE_KIND = dataclasses.replace(SMOLLM3, check_configs={"two": {**SQUARE, "no_rope_layers": [1, 1]}})
ALWAYS_SLIDING = table(
    GEMMA2,
    Key("sliding_window", int, "sliding_window", default=4096, nullable=True),
    irrelevant=GEMMA2.config.irrelevant | {"layer_types"},
)
IGNORED_PATTERN = in_place(
    GEMMA3, LayerTypes(sliding_except_every(6), window=4096, older_keys=("sliding_window_pattern",))
)
IGNORED_FIRST_LAYERS = in_place(
    QWEN2,
    LayerTypes(always_sliding, window=4096, enabled_key="use_sliding_window"),
    frozenset({"max_window_layers"}),
)
IGNORED_DENSE_LAYERS = experts(
    QWEN3_MOE,
    Key("layers", tuple, "layers", default=None),
    drop=["decoder_sparse_step"],
    irrelevant=QWEN3_MOE.config.irrelevant | {"decoder_sparse_step", "mlp_only_layers"},
)
NO_DENSE_LAYERS = experts(
    DEEPSEEK_V3,
    drop=["first_k_dense_replace"],
    irrelevant=DEEPSEEK_V3.config.irrelevant | {"first_k_dense_replace"},
)
ONE_DENSE_LAYER = experts(
    DEEPSEEK_V3,
    ExpertBlocks(IgnoresNumber("first_k_dense_replace", default=1)),
)
WRONG_AUX_LOSS = experts(MIXTRAL, aux_loss(0.01))

LEAKS = layer(LLAMA, "attention", "LeaksAcrossSequences")
FORGETS = layer(LLAMA, "attention", "ForgetsWhatItSaw")
COUNTS_TOKENS = layer(LLAMA, "attention", "CountsTokens")
CONVOLVES_THE_PACK = convolution("ConvolvesThePack")
BEGINS_EACH_PIECE = convolution("BeginsEachPiece")
LEAKS_STATES = convolution("LeaksStates")
NO_GRADIENT = layer(LLAMA, "mlp", "LosesGradients")
ROUGH = layer(LLAMA, "norm", "RoundsSums")
WRONG_SHARD = layer(LLAMA, "mlp", "SplitAlongInputs")
WRONG_SPLIT = layer(LLAMA, "mlp", "NotAddedUp")
MIXED_HEADS = layer(LLAMA, "attention", "MixesHeads")
STARTS_LARGE = layer(LLAMA, "norm", "StartsLarge")
COUNTS = layer(LLAMA, "mlp", "CountsCalls")
UNROUTED = layer(MIXTRAL, "block", "ForgetsRouting")
TRAINS_A_BUFFER = activation("XIELUThatTrainsBeta")
DOES_NOT_TRAIN = activation("XIELUThatKeepsAlpha")
STARTS_AT_ONE = activation("XIELUThatStartsAtOne")
WRONG_OWN_ACTIVATION = activation("XIELUWithoutSlope")
NO_SHARDS = activation("XIELUWithoutShards")
FORGETS_PART = activation("XIELUThatForgetsPart")
FLOAT32 = activation("XIELUInFloat32")
RAISES = layer(LLAMA, "mlp", "Raises")
SPLITS_NOTHING = layer(LLAMA, "mlp", "SplitsNothing")
SUMS_OF_PARTS = layer(LLAMA, "mlp", "SumsParts")


@dataclass(frozen=True)
class Mistake:
    """A family with one mistake.

    Attributes:
        family: its name here.
        check: the one that finds it.
        says: all of these are in what is said of it.
        also: another check that sees the same.
        configs: the author's own, if the mistake needs them.
    """

    family: str
    check: str
    says: tuple[str, ...]
    also: str = ""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.family.lower().replace("_", "-")


OWN = "broken_families_layers.py"

MISTAKES = (
    Mistake("UNDESCRIBED", "description", ("a description of one line", "the HFFamily 'llama'")),
    Mistake("UNKNOWN_TYPE", "default-config", ("model_type 'lama', which transformers does not know",)),
    Mistake("UNKNOWN_CLASS", "default-config", ("architecture 'LlamaForCausalLMs', which transformers does not have",)),
    Mistake("FORGOTTEN_KEY", "default-config", ("unsupported field mlp_bias=False", 'which have none for "mlp_bias"')),
    Mistake(
        "FORGOTTEN_KEYS",
        "default-config",
        ("unsupported fields", 'none for "rms_norm_eps" and "mlp_bias"', "a row, or a place in config.irrelevant"),
    ),
    Mistake(
        "MISSPELT_CLASS",
        "default-config",
        ("has no attribute 'XIELUThatTrainBeta'", "activation='tests.", 'Key("hidden_act")'),
    ),
    Mistake(
        "KEY_OF_OTHERS",
        "default-config",
        ("GPT2Config has: take this one out, decoder_rows(head_dim_key=None)", 'Key("head_dim") of config.rows'),
    ),
    Mistake(
        "LOSES_ROPE",
        "config-round-trip",
        ("rope.kind='default'", "on a file that has rope_theta and rope_scaling", "ForgetsAbsent("),
    ),
    Mistake("LOSES_A_DIGIT", "config-round-trip", ("norm_eps=1e-06 after writing and reading", 'Key("rms_norm_eps")')),
    Mistake(
        "WRONG_DEFAULT",
        "defaults",
        ("n_kv_heads=4, as transformers has it", "n_kv_heads=1", "without the key 'num_key_value_heads'"),
        also="config-fields",  # null stands for the default as well
    ),
    Mistake("WRONG_DEFAULT_EPS", "defaults", ("norm_eps=1e-05", "without the key 'rms_norm_eps'", "Key(")),
    Mistake("WRONG_DEFAULT_THETA", "defaults", ("rope.theta=10000.0, as transformers has it", "RopeRow(")),
    Mistake("MISSING_ENTRY", "table", ("no entry 'mlp_norm' for the parameter 'layers.1.mlp_norm.weight'",)),
    Mistake("MISTYPED_ENTRY", "table", ("did you mean 'attn.q_norm'?", 'weights.block["attn.qnorm"]')),
    Mistake("NO_INVERSE", "table", ("the arrangement has no inverse", 'weights.block["mlp.gate", "mlp.up"]')),
    Mistake("WRONG_NAME", "names", ("'model.norm.weight' missing", 'weights.head["norm"]')),
    Mistake("IDLE_ENTRY", "names", ("no configuration has 'mlp.gate'", 'weights.block["mlp.gate"]')),
    Mistake(
        "FORGOTTEN_QK_NORM",
        "names",
        ("the entry 'attn.q_norm' is there, but the network has no such parameter, which depends on qk_norm",),
    ),
    Mistake(
        "FORGOTTEN_EMBEDDING_NORM",
        "names",
        ("the entry 'embedding_norm' is there, but the network has no such parameter",),
    ),
    Mistake("FORGOTTEN_BIAS", "names", ("'transformer.h.0.mlp.c_proj.bias'", "stated nowhere: down_bias")),
    Mistake("WRONG_PLACEMENT", "names", ("'model.layers.0.input_layernorm.weight'", "missing")),
    Mistake("WRONG_SHAPE", "state-dict", ("[48, 32] in LlamaForCausalLM", 'weights.block["mlp.up"]')),
    Mistake(
        "SWAPPED_GATE_AND_UP",
        "logits",
        ("what goes into layers.1.mlp.down", 'weights.block["mlp.gate"]', 'weights.block["mlp.up"]'),
    ),
    Mistake("SWAPPED_FUSED", "logits", ("what goes into layers.1.mlp.down", 'weights.block["mlp.up", "mlp.gate"]')),
    Mistake(
        "GROUPED_BY_HEADS",
        "logits",
        ("what goes into layers.1.attn.o", 'weights.block["attn.q", "attn.k", "attn.v"]'),
    ),
    Mistake("SWAPPED_NORMS", "logits", ("what goes into layers.1.attn_norm", 'weights.block["attn_norm"]')),
    Mistake(
        "TRANSPOSED_SQUARE",
        "logits",
        ("layers.1.attn.o gives something else", 'weights.block["attn.o"]'),
        configs={"square": SQUARE},
    ),
    Mistake("INTERLEAVED", "logits", ("what goes into layers.1.attn.o", "attn.q, attn.k, attn.v agree", "RopeRow(")),
    Mistake("WINDOW_OFF_BY_ONE", "logits", ("what goes into layers.1.attn.o", 'Key("sliding_window")')),
    Mistake("WRONG_ACTIVATION", "logits", ("what goes into layers.1.mlp.down", 'Key("hidden_act")')),
    Mistake(
        "NO_MULTIPLIER", "logits", ("what goes into layers.1.attn_norm", 'config.constants["embedding_multiplier"]')
    ),
    Mistake(
        "NO_NORM_OFFSET",
        "logits",
        ("layers.1.attn_norm gives something else", 'config.constants["norm_offset"]'),
    ),
    Mistake("NO_SOFTCAP", "logits", ("what goes into layers.1.attn.o", "stated nowhere: attn_softcap")),
    Mistake("NO_SLOPES", "logits", ("what goes into layers.1.attn.o", 'config.constants["alibi_scale"]')),
    Mistake("UNNORMALISED_EXPERTS", "logits", ("what goes into layers.2.attn_norm", 'Nested("num_local_experts")')),
    Mistake(
        "WRONG_OWN_ACTIVATION",
        "logits",
        ("layers.1.mlp.act gives something else", f"{OWN}", "(XIELUWithoutSlope)", 'weights.block["mlp.act.alpha_p"]'),
    ),
    Mistake("NORMED_AFTER_ROTATING", "logits", ("layers.1.attn.q_norm", f"{OWN}", "(NormsAfterRotating)")),
    Mistake(
        "FORGOTTEN_TIE",
        "config-fields",
        ("tie_word_embeddings=True is honoured", "silently ignored", '"tie_word_embeddings" in config.irrelevant'),
    ),
    Mistake("IGNORED_BIAS", "config-fields", ("mlp_bias=True is honoured", '"mlp_bias" in config.irrelevant')),
    Mistake("IGNORED_EPS", "config-fields", ("rms_norm_eps=", "silently ignored", "in config.irrelevant")),
    Mistake("IGNORED_DROPOUT", "config-fields", ("attention_dropout=0.25", "it changes training in transformers")),
    Mistake("IGNORED_ROUTER_LOSS", "config-fields", ("router", "it changes training in transformers")),
    Mistake(
        "HALF_THE_BIAS", "config-fields", ("attention_bias=True", "self_attn.o_proj.bias", 'Key("attention_bias")')
    ),
    Mistake(
        "FORGOTTEN_FACTOR",
        "config-round-trip",
        ("rope.kind='linear', rope.factor=2.0 after writing", "rope_type=linear", "ForgetsFactor("),
        also="config-fields",
    ),
    Mistake("ONE_WRONG_ACTIVATION", "config-fields", ("hidden_act='gelu'", "it became activation='gelu_tanh'")),
    Mistake("NO_CRITIC_HEAD", "critic", ("LlamaForSequenceClassification", 'which has no entry "out"')),
    Mistake("WRONG_CRITIC_HEAD", "critic", ("tensor 'score.weight'", 'weights.critic_head["out"]')),
    Mistake("NO_NOPE", "logits", ("what goes into layers.2.attn.o", "RopeRow(")),
    Mistake("NO_NOPE_LIST", "logits", ("what goes into layers.2.attn.o", "InBlocks(")),
    Mistake(
        "NO_NOPE_INTERVAL",
        "config-fields",
        ("with no_rope_layer_interval=1, logits of SmolLM3", '"no_rope_layer_interval" in config.irrelevant'),
    ),
    Mistake("NOPE_OFF_BY_ONE", "defaults", ("without the key 'no_rope_layers'", "InBlocks(")),
    Mistake("NOPE_INVERTED", "defaults", ("rope=None, as transformers has it", "InBlocks("), also="logits"),
    Mistake(
        "ONLY_ONE_KIND",
        "blocks",
        (
            "2 of the 2 kinds of blocks that SmolLM3ForCausalLM has",
            "at most 1 in each",
            "check_configs of the HFFamily",
        ),
    ),
    Mistake("ALWAYS_SLIDING", "logits", ("what goes into layers.2.attn.o", 'Key("sliding_window")')),
    Mistake("IGNORED_PATTERN", "config-fields", ("with sliding_window_pattern=1, logits of Gemma3", "LayerTypes(")),
    Mistake(
        "IGNORED_FIRST_LAYERS", "config-fields", ("max_window_layers=", '"max_window_layers" in config.irrelevant')
    ),
    Mistake("IGNORED_DENSE_LAYERS", "names", ("no configuration has 'mlp.down'", "Nested(")),
    Mistake("NO_DENSE_LAYERS", "names", ("'model.layers.0.mlp.gate_proj.weight'",)),
    Mistake("ONE_DENSE_LAYER", "config-fields", ("first_k_dense_replace=2", 'ExpertBlocks("first_k_dense_replace")')),
    Mistake(
        "WRONG_AUX_LOSS",
        "defaults",
        ("moe.aux_loss_coef=0.001", "without the key 'router_aux_loss_coef', with output_router_logits=True"),
    ),
    Mistake("LEAKS", "packing", ("of those of each sequence alone", f"{OWN}", "(LeaksAcrossSequences)")),
    Mistake("RAISES", "packing", ("raised RuntimeError: mat1 and mat2", f"{OWN}", "(Raises.forward)")),
    Mistake("FORGETS", "decode", ("tokens in the cache", f"{OWN}", "(ForgetsWhatItSaw)")),
    Mistake("COUNTS_TOKENS", "generate", ("new token", f"{OWN}", "(CountsTokens)")),
    Mistake("CONVOLVES_THE_PACK", "packing", ("of those of each sequence alone", f"{OWN}", "(ConvolvesThePack)")),
    Mistake("BEGINS_EACH_PIECE", "decode", ("tokens in the cache", f"{OWN}", "(BeginsEachPiece)")),
    Mistake("LEAKS_STATES", "generate", ("new token", f"{OWN}", "(LeaksStates)")),
    Mistake("NO_GRADIENT", "gradients", ("no gradient at all", "'layers.1.mlp.gate.weight'", "(LosesGradients)")),
    Mistake(
        "TRAINS_A_BUFFER",
        "gradients",
        ("no gradient, since ApertusForCausalLM", "'layers.1.mlp.act.beta'", "(XIELUThatTrainsBeta)"),
    ),
    Mistake(
        "DOES_NOT_TRAIN",
        "gradients",
        ("a parameter that is trained", "'layers.1.mlp.act.alpha_n'", "(XIELUThatKeepsAlpha)"),
    ),
    Mistake("FLOAT32", "bf16", ("layers.1.mlp.act gives torch.float32", f"{OWN}", "(XIELUInFloat32)")),
    Mistake("ROUGH", "bf16", ("times that of transformers in bfloat16", f"{OWN}", "(RoundsSums)")),
    Mistake(
        "WRONG_SHARD",
        "shards",
        (
            "layers.1.mlp.gate",
            "(SplitAlongInputs)",
            "'layers.1.mlp.gate.weight' is declared Shard(1)",
            "Shard(0) would",
        ),
    ),
    Mistake(
        "WRONG_SPLIT",
        "shards",
        (
            "layers.1.mlp.down",
            "(NotAddedUp)",
            'is declared Shard(0) with split="column"; Shard(1) with split="row" would do',
        ),
    ),
    Mistake("NO_SHARDS", "shards", ("which is missing from its `shards`", "mlp.act.alpha_n", "(XIELUWithoutShards)")),
    Mistake(
        "FORGETS_PART",
        "shards",
        ("the gradients of the whole", "'layers.2.mlp.act.alpha_n'", "(XIELUThatForgetsPart): `partial_grad = True`"),
    ),
    Mistake(
        "SUMS_OF_PARTS",
        "shards",
        (
            "the gradients of the whole",
            "'layers.2.mlp_norm.weight'",
            '(SumsParts): it takes whole inputs; split="column_row"',
        ),
    ),
    Mistake(
        "SPLITS_NOTHING",
        "shards",
        ("SplitsNothing declares split='column_row', but none of its parameters is split", f"{OWN}", "(SplitsNothing)"),
    ),
    Mistake(
        "MIXED_HEADS",
        "shards",
        ("layers.1.attn.o", "(MixesHeads): 'layers.1.attn.o.weight' is declared Shard(1, unit=16)", "None would do"),
    ),
    Mistake("FIRST_SLOPES", "shards", ("layers.1.attn", f"{OWN}", "(FirstSlopes)")),
    Mistake("STARTS_LARGE", "initialisation", ("1, with which LlamaForCausalLM begins", "100", "(StartsLarge)")),
    Mistake("WRONG_STD", "initialisation", ("a loss of about 4.57", 'Key("initializer_range")')),
    Mistake(
        "STARTS_AT_ONE",
        "initialisation",
        ("with which ApertusForCausalLM begins", "'layers.1.mlp.act.alpha_p' of a fresh", "(XIELUThatStartsAtOne)"),
    ),
    Mistake("COUNTS", "checkpointing", ("the gradient without checkpointing", "(CountsCalls)")),
    Mistake("UNROUTED", "experts", ("statistics of 2 routers in training", "(ForgetsRouting)")),
)
