"""Loading and saving through `ReaLModel` loses nothing, and a kill at any moment loses nothing either."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from reallm.engine.real_model import ReaLModel
from tests.helpers.hf_grid import GRID, raw_config, save_hf


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def read_by_transformers(folder):
    """The config as a dict, but for where it was read."""
    content = transformers.AutoConfig.from_pretrained(folder).to_dict()
    del content["_name_or_path"]
    return content


def assert_same_checkpoint(one, two):
    left, right = tensors_of(one), tensors_of(two)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name
    assert read_by_transformers(one) == read_by_transformers(two)


@pytest.mark.parametrize("name", GRID)
def test_every_entry_of_the_grid(name, tmp_path):
    dtype = (torch.float32, torch.bfloat16, torch.float16)[len(name) % 3]
    old, new = tmp_path / "old", tmp_path / "new"
    save_hf(raw_config(name), old, dtype=dtype)
    ReaLModel.from_pretrained(old).save_pretrained(new)
    assert_same_checkpoint(old, new)


@pytest.mark.parametrize("name", [name for name in GRID if "old" in name])
def test_old_spellings_stay_as_they_are(name, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    save_hf(raw_config(name), old)
    raw = raw_config(name) | {"torch_dtype": "float32", "transformers_version": "4.40.0"}
    (old / "config.json").write_text(json.dumps(raw))
    ReaLModel.from_pretrained(old).save_pretrained(new)
    assert json.loads((new / "config.json").read_text()) == raw
    assert_same_checkpoint(old, new)


@pytest.mark.parametrize("name", ["gqa", "tied", "mistral-window"])
def test_shards_in_and_out(name, tmp_path):
    old, new, newest = tmp_path / "old", tmp_path / "new", tmp_path / "newest"
    save_hf(raw_config(name), old, max_shard_size="20KB")
    ReaLModel.from_pretrained(old).save_pretrained(new)
    assert [file.name for file in new.glob("*.safetensors*")] == ["model.safetensors"]
    assert_same_checkpoint(old, new)
    ReaLModel.from_pretrained(new).save_pretrained(newest, max_shard_size="20KB")
    names = {file.name for file in newest.glob("*.safetensors*")}
    assert names == {file.name for file in old.glob("*.safetensors*")}
    for file in names:
        assert (newest / file).read_bytes() == (old / file).read_bytes()


def test_critic(tmp_path):
    raw = raw_config("gqa") | {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    save_hf(raw, tmp_path / "old")
    ReaLModel.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    assert_same_checkpoint(tmp_path / "old", tmp_path / "new")


def test_critic_made_from_a_language_model_loads_in_transformers(tmp_path):
    save_hf(raw_config("tied"), tmp_path / "old")
    critic = ReaLModel.from_pretrained(tmp_path / "old", is_critic=True, seed=3)
    critic.save_pretrained(tmp_path / "new")
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(info.values()), info
    assert torch.equal(again.score.weight, critic.head_weight)
    assert ReaLModel.from_pretrained(tmp_path / "new").config == critic.config


def test_training_does_not_change_the_checkpoint_it_started_from(tmp_path):
    save_hf(raw_config("gqa"), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = ReaLModel.from_pretrained(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(8), torch.tensor([0, 8])).square().sum().backward()
    optimizer.step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_bad_checkpoints_are_refused_in_one_line(tmp_path):
    """Each kind in detail: test_checkpoint.py and test_config.py."""
    from reallm.errors import CheckpointError

    def pickles(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def truncated(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])

    def config(**changes):
        def change(folder: Path) -> None:
            raw = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(raw | changes))

        return change

    cases = [
        (pickles, "only as pickle files"),
        (truncated, "truncated or damaged"),
        (config(attention_bias=True), "lacks 'model.layers.0.self_attn.k_proj.bias'"),
        (config(vocab_size=96), r"has shape \[97, 32\], but config.json asks for \[96, 32\]"),
        (config(vocab_size=98), r"vocab_size=98, but no tensor of the checkpoint has a dim of more than 97"),
        (config(model_type="nemotron", architectures=["NemotronForCausalLM"]),
         "no installed family reads model_type 'nemotron'.*llama.*; or write one: reallm plugins new family NAME"),
        (config(architectures=["LlamaForTokenClassification"]),
         "'?LlamaForTokenClassification'? is not one that family 'llama' reads"),
        (config(quantization_config={"quant_method": "gptq"}), "unsupported quantization_config"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    ]  # fmt: skip
    for number, (spoil, message) in enumerate(cases):
        folder = tmp_path / str(number)
        save_hf(raw_config("gqa"), folder)
        spoil(folder)
        with pytest.raises(CheckpointError, match=message) as caught:
            ReaLModel.from_pretrained(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


KILL_AT_ANY_MOMENT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from reallm.engine.real_model import ReaLModel

torch.set_num_threads(1)
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
models = [ReaLModel.from_pretrained(source) for _ in range(2)]
for value, model in enumerate(models):
    model.config = model.config.replace(init_std=0.5 + value)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
models[0].save_pretrained(folder)

random.seed(0)
for _ in range(60):
    child = os.fork()
    if child == 0:
        while True:  # different numbers of files, so that a mixture would show
            models[1].save_pretrained(folder, max_shard_size="10KB")
            models[0].save_pretrained(folder)
    time.sleep(random.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = ReaLModel.from_pretrained(folder)
    value = found.config.init_std - 0.5
    assert value in (0, 1), value
    assert all((parameter == value).all() for parameter in found.parameters())
models[0].save_pretrained(folder)
print(sorted(path.name for path in folder.parent.iterdir()))
"""


def test_killed_at_any_moment_the_folder_holds_the_old_checkpoint_or_the_new(tmp_path):
    save_hf(raw_config("gqa"), tmp_path / "source")
    (tmp_path / "runs").mkdir()
    arguments = [sys.executable, "-c", KILL_AT_ANY_MOMENT, str(tmp_path / "source"), str(tmp_path / "runs" / "last")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['last']", "what killed writers left behind is cleaned up by the next"
