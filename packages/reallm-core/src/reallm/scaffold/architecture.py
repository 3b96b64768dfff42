"""What transformers declares of a model type, for the tables that a new family begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reallm.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    Attributes:
        model_type: as in `config.json`: `llama`.
        language_model: the class of its causal language model: `LlamaForCausalLM`.
        critic: the class with a scalar head, `LlamaForSequenceClassification`; empty if there is none.
        defaults: what its configuration class assumes for keys that `config.json` lacks.
    """

    model_type: str
    language_model: str
    critic: str
    defaults: Mapping[str, Any]


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a model type. Imports transformers, and of the architecture only its configuration.

    Raises:
        ConfigError: if transformers has no causal language model of that type; names the nearest.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in names:
        hint = did_you_mean(model_type, names)
        raise ConfigError(f"--model-type {model_type}: transformers has no causal language model of that type{hint}")
    critics = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    config = CONFIG_MAPPING[model_type]
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return Architecture(model_type, str(names[model_type]), str(critics.get(model_type, "")), defaults)
