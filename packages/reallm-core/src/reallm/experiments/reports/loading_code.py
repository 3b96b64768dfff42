"""How a checkpoint is loaded with transformers, as code for people to copy."""

from __future__ import annotations

import json
from pathlib import Path

from reallm.experiments.runs.files import json_object
from reallm.hf.checkpoint_folder import is_adapter_folder
from reallm.hf.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME

REWARD_MODEL = "ForSequenceClassification"
"""End of the name of transformers' classes that have a scalar head."""


def models_of(checkpoint: Path) -> list[Path]:
    """The folders of the models in a checkpoint: itself, or one for each role."""
    names = (CONFIG_NAME, ADAPTER_CONFIG_NAME)
    folders = (checkpoint, *sorted(checkpoint.iterdir()))
    return [path for path in folders if any((path / name).is_file() for name in names)]


def is_reward_model(checkpoint: Path) -> bool:
    """Whether a checkpoint gives scores instead of text."""
    if is_adapter_folder(checkpoint):
        return json_object(checkpoint / ADAPTER_CONFIG_NAME).get("task_type") == "SEQ_CLS"
    names = json_object(checkpoint / CONFIG_NAME).get("architectures") or [""]
    return str(names[0]).endswith(REWARD_MODEL)


def loading_code(checkpoint: Path) -> list[str]:
    """Lines of Python that load the tokenizer and the model of a checkpoint; of an adapter, with its base model."""
    kind = REWARD_MODEL if is_reward_model(checkpoint) else "ForCausalLM"
    auto, path = f"AutoModel{kind}", json.dumps(str(checkpoint), ensure_ascii=False)
    if is_adapter_folder(checkpoint):
        auto, options = f"AutoPeftModel{kind}", ", num_labels=1" if kind == REWARD_MODEL else ""
        return [
            f"from peft import {auto}",
            "from transformers import AutoTokenizer",
            f"tokenizer = AutoTokenizer.from_pretrained({path})",
            f"model = {auto}.from_pretrained({path}{options})",
        ]
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({path})",
        f"model = {auto}.from_pretrained({path})",
    ]
