"""Tokenizers are loaded as AutoTokenizer loads them, without importing what models need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from reallm.errors import CheckpointError
from reallm.hf.conversion.transformers_io import load_tokenizer
from tests.helpers.imports import imported_by
from tests.helpers.tokenizers import tiny_tokenizer

MODEL_TYPES = ("llama", "mistral", "qwen2", "gpt2", "gemma", "phi3", "deepseek_v2", "of-a-plugin", None)
CLASSES = (
    "TokenizersBackend",
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GPT2TokenizerFast",
    "GemmaTokenizer",
    "NoSuchTokenizer",
    None,
)


def write(folder: Path, model_type: str | None, tokenizer_class: str | None, **config: Any) -> None:
    """A folder with a tokenizer that is said to be of a class, and the config of a model of a type."""
    tiny_tokenizer().save_pretrained(folder)
    saved = folder / "tokenizer_config.json"
    content = json.loads(saved.read_text()) | {"tokenizer_class": tokenizer_class}
    saved.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    (folder / "config.json").write_text(
        json.dumps(config if model_type is None else config | {"model_type": model_type})
    )


def described(tokenizer: Any) -> tuple[Any, ...]:
    text = "What is  the capital of France?<|im_end|>\n déjà vu"
    ids = tokenizer.encode(text)
    return (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        ids,
        tokenizer.decode(ids),
        tokenizer.decode(ids, skip_special_tokens=True),
    )


@pytest.mark.parametrize("tokenizer_class", CLASSES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_tokenizer_is_that_of_auto_tokenizer(
    model_type: str | None, tokenizer_class: str | None, tmp_path: Path
) -> None:
    write(tmp_path, model_type, tokenizer_class)
    try:
        expected = described(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False))
    except Exception:  # transformers itself cannot load it
        with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
            load_tokenizer(tmp_path)
    else:
        assert described(load_tokenizer(tmp_path)) == expected


def test_an_old_config_with_the_name_of_a_model(tmp_path: Path) -> None:
    write(tmp_path, "llama", "LlamaTokenizer", _name_or_path="deepseek-ai/deepseek-coder-1.3b")
    expected = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False)
    assert described(load_tokenizer(tmp_path)) == described(expected)


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    write(tmp_path, "of-a-plugin", "MyTokenizer")
    saved = tmp_path / "tokenizer_config.json"
    saved.write_text(
        json.dumps(json.loads(saved.read_text()) | {"auto_map": {"AutoTokenizer": [None, "mine.MyTokenizer"]}})
    )
    (tmp_path / "mine.py").write_text("raise AssertionError('this was run')")
    with pytest.raises(CheckpointError, match="contains custom code"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("arguments", [{"vocab": "SECRET"}, {"init_inputs": ["SECRET"]}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_no_file_from_elsewhere_becomes_the_tokens(tmp_path: Path, file: str, arguments: dict[str, Any]) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "model"
    secret.write_text("[UNK]\nmy secret\n")
    write(folder, "bert", "BertTokenizer")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | arguments).replace("SECRET", str(secret)))
    with pytest.raises(CheckpointError, match=rf"cannot be loaded \({file} has .*which (is not followed|may be paths)"):
        load_tokenizer(folder)


def test_what_models_need_is_not_imported(tmp_path: Path) -> None:
    write(tmp_path, "llama", "TokenizersBackend")
    program = (
        "from pathlib import Path\nfrom reallm.hf.conversion.transformers_io import load_tokenizer\n"
        f"load_tokenizer(Path({str(tmp_path)!r}))"
    )
    assert imported_by(program, "torch._dynamo", "transformers.models.llama.configuration_llama") == []
