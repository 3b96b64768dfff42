"""The Python that the README and the page on models show runs as it stands."""

from __future__ import annotations

import re

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workspace import ROOT


@pytest.fixture
def folder_with_checkpoints(tmp_path, monkeypatch):
    """The working folder of a reader who has the checkpoints that the pages name: tiny random ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, bos_token_id=None, eos_token_id=None, **sizes))
    words = {word: number for number, word in enumerate(["?", "The", "capital", "of", "France", "is", "brown", "fox"])}
    words_model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    words_model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_model, unk_token="?")
    for path in ("path/to/checkpoint", "SmolLM2-135M"):
        model.save_pretrained(tmp_path / path)
        tokenizer.save_pretrained(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "written"),
    [("README.md", ["copy"]), ("docs/models.md", ["path/to/copy", "path/to/larger", "path/to/fresh"])],
)
def test_the_python_of_a_page_runs(folder_with_checkpoints, page, written):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert names["logits"].shape == (7, 16)
    for path in written:
        LlamaForCausalLM.from_pretrained(folder_with_checkpoints / path)
