"""A plugin made for hook API 1.0 works under the present one without change, as a really installed distribution."""

from __future__ import annotations

import json

from reallm import HOOK_API

CHECKPOINT = """
import tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = tokenizers.models.WordLevel({"?": 0, "</s>": 1}, unk_token="?")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), unk_token="?", eos_token="</s>")
tokenizer.save_pretrained("model")
config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     attention_bias=True, bos_token_id=None, eos_token_id=1)
LlamaForCausalLM(config).save_pretrained("model")
"""

ROUND_TRIP = """
import torch
from reallm import ReaLModel
from transformers import LlamaForCausalLM

tokens = torch.arange(10)
model = ReaLModel.from_llama("model")
theirs = LlamaForCausalLM.from_pretrained("model")
torch.testing.assert_close(model(tokens, torch.tensor([0, 10], dtype=torch.int32)), theirs(tokens[None]).logits[0])
model.save_pretrained("copy")
back = LlamaForCausalLM.from_pretrained("copy").state_dict()
assert all(torch.equal(value, back[name]) for name, value in theirs.state_dict().items())
print("equal")
"""


# It offers `llama` too, so that the one of ours, where that is installed, has to stand back.
OURS = {"REALLM_DISABLE_PLUGINS": "reallm-hf-llama"}


def test_it_was_made_for_an_older_minor_version_than_there_is():
    assert HOOK_API > (1, 0)
    assert HOOK_API < (2, 0), "remove the plugin and this file: what it does may now be gone"


def test_it_is_listed_as_well_and_what_it_should_do_otherwise_is_a_note(environment):
    done = environment("reallm-made-for-1-0").reallm("plugins", "--json", **OURS)
    assert done.returncode == 0, done.stdout
    rows = {row["distribution"]: row for row in json.loads(done.stdout)["plugins"]}
    row = rows["reallm-made-for-1-0"]
    assert (row["state"], row["failures"]) == ("ok", [])
    assert {offer["name"] for offer in row["offers"]} == {"old-numbers", "llama", "old-lines"}
    for field in ("qkv_bias", "mlp_bias"):
        (note,) = [note for note in row["notes"] if f"'{field}'" in note]
        assert "is deprecated since hook API 1.1 and will be removed in 2.0; use '" in note
        assert "reallm_made_for_1_0/plugin.py:" in note


def test_its_dataset_and_its_logger_work_in_a_run(environment):
    here = environment("reallm-made-for-1-0")
    here.compute(CHECKPOINT)
    done = here.reallm(
        "sft",
        "model.path=model",
        "dataset.name=old-numbers",
        "dataset.n_rows=6",
        "loggers=[old-lines]",
        "name=run",
        **OURS,
    )
    assert done.returncode == 0, done.stderr
    lines = (here.folder / "runs" / "run" / "lines.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("1 ") and "train/loss" in line for line in lines)


def test_its_family_reads_and_writes_a_checkpoint(environment):
    here = environment("reallm-made-for-1-0")
    here.compute(CHECKPOINT)
    assert here.compute(ROUND_TRIP, **OURS).endswith("equal")
