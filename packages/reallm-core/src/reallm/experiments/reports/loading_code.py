"""How a checkpoint is loaded with transformers, as code for people to copy."""

from __future__ import annotations

import json
from pathlib import Path

from reallm.experiments.runs.files import json_object
from reallm.hf.file_names import CONFIG_NAME

REWARD_MODEL = "ForSequenceClassification"
"""End of the name of transformers' classes that have a scalar head."""


def models_of(checkpoint: Path) -> list[Path]:
    """The folders of the models in a checkpoint: itself, or one for each role."""
    return [path for path in (checkpoint, *sorted(checkpoint.iterdir())) if (path / CONFIG_NAME).is_file()]


def is_reward_model(checkpoint: Path) -> bool:
    """Whether a checkpoint gives scores instead of text."""
    names = json_object(checkpoint / CONFIG_NAME).get("architectures") or [""]
    return str(names[0]).endswith(REWARD_MODEL)


def loading_code(checkpoint: Path) -> list[str]:
    """Lines of Python that load the tokenizer and the model of a checkpoint."""
    auto = f"AutoModel{REWARD_MODEL if is_reward_model(checkpoint) else 'ForCausalLM'}"
    path = json.dumps(str(checkpoint), ensure_ascii=False)
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({path})",
        f"model = {auto}.from_pretrained({path})",
    ]
