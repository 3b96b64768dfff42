"""How a checkpoint is loaded with transformers, as code for people to copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from reallm.experiments.runs.files import json_object
from reallm.hf.checkpoint_folder import is_adapter_folder, is_model_folder
from reallm.hf.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME

REWARD_MODEL = "ForSequenceClassification"
"""End of the name of transformers' classes that have a scalar head."""


class LoadingCode(NamedTuple):
    """Lines of Python that load the tokenizer and the model of a checkpoint."""

    package: str
    """What loads the model: `transformers`, or `peft` for an adapter."""
    imports: list[str]
    statements: list[str]


def models_of(checkpoint: Path) -> list[Path]:
    """The folders of the models in a checkpoint: itself, or one for each role."""
    return [path for path in (checkpoint, *sorted(checkpoint.iterdir())) if is_model_folder(path)]


def is_reward_model(checkpoint: Path) -> bool:
    """Whether a checkpoint gives scores instead of text."""
    if is_adapter_folder(checkpoint):
        return json_object(checkpoint / ADAPTER_CONFIG_NAME).get("task_type") == "SEQ_CLS"
    names = json_object(checkpoint / CONFIG_NAME).get("architectures") or [""]
    return str(names[0]).endswith(REWARD_MODEL)


def loading_code(checkpoint: Path) -> LoadingCode:
    """The code that loads a checkpoint; an adapter with its base model."""
    kind = REWARD_MODEL if is_reward_model(checkpoint) else "ForCausalLM"
    path = json.dumps(str(checkpoint), ensure_ascii=False)
    if is_adapter_folder(checkpoint):
        package, auto, options = "peft", f"AutoPeftModel{kind}", ", num_labels=1" if kind == REWARD_MODEL else ""
        imports = [f"from peft import {auto}", "from transformers import AutoTokenizer"]
    else:
        package, auto, options = "transformers", f"AutoModel{kind}", ""
        imports = [f"from transformers import {auto}, AutoTokenizer"]
    return LoadingCode(
        package,
        imports,
        [f"tokenizer = AutoTokenizer.from_pretrained({path})", f"model = {auto}.from_pretrained({path}{options})"],
    )
