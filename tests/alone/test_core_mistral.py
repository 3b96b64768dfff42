"""The core and the mistral family: checkpoints of mistral work, and the rest says what to install."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import reallm as package
from reallm.errors import ReallmError
from reallm.plugins import registry


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny random mistral checkpoint as transformers writes it."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = tmp_path / "checkpoint"
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


def test_only_its_families_are_offered():
    assert {"mistral"} <= set(registry.names("family"))
    assert "llama" not in registry.names("family")
    assert registry.names("dataset") == []


def test_a_checkpoint_computes_what_transformers_computes_and_is_saved_unchanged(checkpoint, tmp_path):
    model = package.ReaLModel.from_pretrained(checkpoint)
    reference = MistralForCausalLM.from_pretrained(checkpoint)
    tokens = torch.arange(10)
    with torch.no_grad():
        packed = model(tokens, torch.tensor([0, 4, 10], dtype=torch.int32))
        alone = torch.cat([reference(one[None]).logits[0] for one in (tokens[:4], tokens[4:])])
    assert (packed - alone).abs().max() < 1e-4  # float32; the sums are taken in another order

    model.save_pretrained(tmp_path / "saved")
    saved = MistralForCausalLM.from_pretrained(tmp_path / "saved")
    for (name, before), (_, after) in zip(reference.named_parameters(), saved.named_parameters(), strict=True):
        assert torch.equal(before, after), name


def test_a_checkpoint_of_another_family_says_what_to_install(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ReallmError, match="pip install reallm-hf-llama"):
        package.ReaLModel.from_pretrained(tmp_path)


def test_asking_for_the_other_family_says_what_to_install():
    with pytest.raises(AttributeError, match="pip install reallm-hf-llama"):
        package.ReaLModel.from_llama


def test_sft_without_a_dataset_is_one_clear_line(reallm, checkpoint):
    done = reallm("sft", f"model.path={checkpoint}", "dataset.train_path=rows.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install reallm-datasets" in done.stderr
