"""The core and the datasets, without any model family."""

from __future__ import annotations

import json

import pytest

import reallm as package
from reallm.plugins import registry


def test_the_four_datasets_are_offered():
    assert {"prompt", "prompt_answer", "rw_pair", "unpaired_preference"} <= set(registry.names("dataset"))
    assert registry.names("family") == []


def test_their_configs_are_found_by_name():
    assert package.PromptAnswerDatasetConfig(train_path="rows.jsonl").train_path == "rows.jsonl"


def test_a_model_without_its_family_is_one_clear_line(reallm, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    model = tmp_path / "model"
    model.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    done = reallm("sft", f"model.path={model}", "dataset.train_path=rows.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install reallm-hf-llama" in done.stderr


def test_a_family_method_says_what_to_install():
    with pytest.raises(AttributeError, match="pip install reallm-hf-llama"):
        package.ReaLModel.from_llama
