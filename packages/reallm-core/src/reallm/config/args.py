"""Field types of configurations: a model, and a dataset chosen by name. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from reallm.config.group import ConfigGroup
from reallm.config.lora import LoRAArgs
from reallm.errors import ConfigError
from reallm.field_types import check_fields
from reallm.generation.config import GenerationConfig
from reallm.options import REQUIRED, option
from reallm.parallel.layout import Layout
from reallm.references import location_of
from reallm.specs import STANDARD_IMPLEMENTATION

DATASET_KEY = "dataset"
"""Metadata key of a field for a dataset's configuration; its value is the name of the default dataset."""


def dataset_option(default_name: str, help: str) -> Any:  # noqa: A002 - as in `option`
    """A field with the keys of the dataset named by `<field>.name`, by default `default_name`."""
    return field(default=REQUIRED, metadata={"help": help, DATASET_KEY: default_name})


@dataclass(frozen=True)
class ModelArgs(ConfigGroup, group="model"):
    """The model of a role: its checkpoint, dtype, device and memory options.

    Raises:
        ConfigError: a value has the wrong type, or is not among its choices; names the field without its role.
    """

    path: str = option(REQUIRED, "HuggingFace checkpoint with its tokenizer: a folder, or a hub id such as org/name")
    implementation: str = option(
        STANDARD_IMPLEMENTATION,
        "whose layers compute it: reallm, by the installed family of its model_type, or a plugin's, such as "
        "transformers: any causal language model in transformers' own layers, slowly, without tp and pp",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "dtype for training; auto is float32 on a CPU and bfloat16 on a GPU that has it. "
        "Checkpoints are written in the dtype they were read in",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto takes a GPU if there is one")
    gradient_checkpointing: Literal["none", "selective", "full"] = option(
        "none",
        "activations that the backward pass recomputes instead of keeping them in memory: selective keeps the results "
        "of matrix products and attention, full keeps only the inputs of blocks",
    )
    moe_aux_loss_coef: float | None = option(
        None,
        "weight of the load-balancing loss of models with experts, 0 for none; "
        "null: that of the checkpoint's config.json",
    )
    moe_bias_update_rate: float = option(
        0.0,
        "amount by which each step moves the correction biases of routers towards an even load of the experts, as "
        "in the training of DeepSeek-V3, with 0.001; 0: they stay as they are",
    )
    add_tokens: list[str] = option(
        [],
        "new tokens for the tokenizer, such as [<think>,</think>], which is saved with the model; the model gets rows "
        "for them, as with resize_vocab, unless it has more rows than the tokenizer has tokens",
    )
    resize_vocab: bool = option(
        False,
        "if the tokenizer has more tokens than the model's embedding has rows, add rows, drawn around the mean of the "
        "others; false: a token without a row is an error",
    )
    optimizer: dict[str, Any] = option(
        {}, "settings of its optimizer that differ from optimizer.*, such as optimizer.lr=1e-6"
    )
    max_tokens_per_microbatch: int | None = option(
        None, "tokens that it computes at once; null: max_tokens_per_microbatch of the run"
    )
    compile: bool = option(False, "compile the blocks with torch.compile: faster steps after a slow start")
    lora: LoRAArgs = field(default_factory=LoRAArgs, metadata={"help": "low-rank adapters of the model"})

    is_critic: ClassVar[bool] = False
    """Whether the model has a scalar head instead of one over the vocabulary."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_max_tokens(self.max_tokens_per_microbatch)


@dataclass(frozen=True)
class CriticArgs(ModelArgs):
    """A model that scores tokens by a scalar head, such as a reward model.

    If it is trained, and its checkpoint is that of a language model, the head is drawn from the seed.
    """

    is_critic: ClassVar[bool] = True


@dataclass(frozen=True)
class ReferenceArgs(ModelArgs):
    """A model that another one is held to. The configuration of the algorithm chooses the path if none is given."""

    path: str | None = option(  # type: ignore[assignment]  # never None in a whole configuration
        None, "HuggingFace checkpoint: a folder, or a hub id; null: the one that is trained"
    )

    def following(self, trained: ModelArgs) -> ReferenceArgs:
        """The arguments with what training begins with as the default: checkpoint, and the adapter in `lora.path`."""
        lora = self.lora
        if trained.lora.path and not lora.is_on:
            lora = LoRAArgs(path=trained.lora.path, quantize_base=trained.lora.quantize_base)
        return dataclasses.replace(self, path=trained.path, implementation=trained.implementation, lora=lora)


@dataclass(frozen=True)
class CallArgs(ConfigGroup, group="call"):
    """Where and how a call is computed. The field of a configuration is named after the call: `actor_gen.layout=dp4`.

    Raises:
        ConfigError: the layout is not one, or a value is not allowed; names the field without its call.
    """

    layout: str | None = option(
        None, "layout for this call, such as dp4, tp2pp2 or tp2@2-3 for some of the processes; null: parallel.*"
    )
    offload: bool = option(False, "move the model to host memory after this call, until its next one")
    prefetch: bool = option(
        False, "bring the model back from host memory beside the call before this one, if there is room for both"
    )
    max_tokens_per_microbatch: int | None = option(
        None, "tokens that this call computes at once; null: as its model does in other calls"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        _check_max_tokens(self.max_tokens_per_microbatch)
        if self.layout is not None:
            try:
                Layout.parse(self.layout)
            except ConfigError as error:
                raise ConfigError(f"layout={self.layout}: {error}") from error


@dataclass(frozen=True)
class RewardArgs(CriticArgs):
    """What rewards answers: a reward model, functions, or both.

    In Python a function itself is accepted too, if other processes can import it, and kept as its reference.

    Raises:
        ConfigError: as `ModelArgs`.
    """

    path: str = option("", "HuggingFace checkpoint of a reward model, as `reallm rw` makes it; empty: none")
    functions: list[str] = option(
        [],
        "reward functions: names of installed ones, which `reallm plugins` lists, package.module:function, or "
        "file.py:function, or a function of verl's signature as verl:package.module:function",
    )

    shorthand: ClassVar[str] = "functions"
    """The field that a value of the whole group means: `reward=exact_match` is `reward.functions=[exact_match]`."""

    def __post_init__(self) -> None:
        functions: Any = self.functions
        if isinstance(functions, list | tuple):
            references = [location_of(one) if callable(one) else one for one in functions]
            object.__setattr__(self, "functions", references)
        super().__post_init__()


@dataclass(frozen=True)
class SamplingArgs(ConfigGroup, group="gen"):
    """How answers are sampled in training.

    Raises:
        ConfigError: a value is not allowed; names the field without its group.
    """

    max_new_tokens: int = option(256, "longest answer, in tokens")
    min_new_tokens: int = option(0, "number of tokens before which an answer does not end")
    temperature: float = option(1.0, "divisor of the logits, in sampling and in training alike; more than 0")
    top_k: int | None = option(None, "sample from the most likely tokens only, so many; null: all")
    top_p: float | None = option(
        None, "sample from the smallest set of most likely tokens with this probability; null: all"
    )
    min_p: float | None = option(
        None, "sample from tokens that have at least this share of the probability of the most likely one; null: all"
    )
    stop: list[str] = option([], "strings that end an answer, besides the end-of-sequence tokens of the checkpoint")

    def __post_init__(self) -> None:
        check_fields(self)
        self.config(n=1)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1: answers are trained on")
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be more than 0: training needs sampled answers")

    def config(self, n: int) -> GenerationConfig:
        """Settings for `n` sampled answers to each prompt."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return GenerationConfig(**{**values, "stop": tuple(self.stop)}, n=n, kept_mass=self.truncates)

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are never sampled."""
        return not (self.top_k is None and self.top_p is None and self.min_p is None)


def _check_max_tokens(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"max_tokens_per_microbatch={limit} must be at least 1")
