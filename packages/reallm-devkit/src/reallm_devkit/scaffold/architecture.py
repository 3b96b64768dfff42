"""What transformers declares for a model type, from which the tables of a new family are drafted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reallm.errors import ConfigError, did_you_mean
from reallm.hf.conversion.transformers_io import obstacle_to_family
from reallm.hf.tables.ignored_keys import RESTRICTED, is_irrelevant
from reallm_devkit.scaffold.names import OLDER_ROPE_KEYS
from reallm_devkit.scaffold.tiny import TinyModel, inspect_tiny

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    Attributes:
        model_type: `model_type` in `config.json`: `llama`.
        language_model: the class of the causal language model: `LlamaForCausalLM`.
        critic: the class with a scalar head, `LlamaForSequenceClassification`; empty if there is none.
        defaults: the configuration class's defaults of missing keys, without keys that have no effect on the network
            or the same effect in all families.
        derived: values that the class computes from defaults and that differ from them: lists with an entry per layer,
            RoPE.
        older_rope: arguments of `RopeRow` for keys that the class reads in older files.
        tiny: the inspected tiny model; None if none can be made.
    """

    model_type: str
    language_model: str
    critic: str
    defaults: Mapping[str, Any]
    derived: Mapping[str, Any] = field(default_factory=dict)
    older_rope: Mapping[str, str] = field(default_factory=dict)
    tiny: TinyModel | None = None


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a model type. Imports transformers and builds a tiny model to inspect.

    Raises:
        ConfigError: if transformers does not know the type, and then the nearest is named, or it is no causal decoder.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from reallm_devkit.testing.families.reference import quiet

    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    obstacle = obstacle_to_family(model_type)
    if obstacle is None:
        hint = did_you_mean(model_type, names)
        raise ConfigError(f"--model-type {model_type}: transformers does not know this model type{hint}")
    if obstacle:
        raise ConfigError(f"--model-type {model_type}: {obstacle}, and reallm has only causal decoders")
    critics = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    config, language_model = CONFIG_MAPPING[model_type], str(names[model_type])
    with quiet():
        all_defaults = config().to_dict()
        older_rope = _older_rope(config)
        tiny = inspect_tiny(language_model, config, all_defaults)
    if tiny is not None and not tiny.is_causal:
        seen = f"in {language_model} tokens see later ones"
        raise ConfigError(f"--model-type {model_type}: {seen}, and reallm has only causal decoders")
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    declared = {item.name: item.default for item in fields if item.default is not dataclasses.MISSING}
    defaults = {key: declared.get(key, value) for key, value in all_defaults.items() if not _can_be_ignored(key, value)}
    return Architecture(
        model_type,
        language_model,
        critic=str(critics.get(model_type, "")),
        defaults=defaults,
        derived={key: all_defaults[key] for key, value in defaults.items() if all_defaults[key] != value},
        older_rope=older_rope,
        tiny=tiny,
    )


def _can_be_ignored(key: str, value: object) -> bool:
    """Whether the tables of a family need no row for a key with this default."""
    return is_irrelevant(key) or (key in RESTRICTED and value in RESTRICTED[key].values)


def _older_rope(config: Callable[..., PreTrainedConfig]) -> dict[str, str]:
    """Arguments of `RopeRow` for older keys that change the configuration's RoPE."""
    default = getattr(config(), "rope_parameters", None)
    return {
        argument: key
        for argument, keys in OLDER_ROPE_KEYS.items()
        for key in keys
        if getattr(config(**{key: 0.5}), "rope_parameters", None) != default
    }
