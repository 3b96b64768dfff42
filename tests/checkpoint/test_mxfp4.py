"""Matrices stored in MXFP4 are read as transformers dequantizes them, bit for bit, and saved as numbers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.checkpoint.mxfp4 import dequantized, packed_tensors
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError

SIZES = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5,
    "swiglu_limit": 0.5,
}  # fmt: skip
PROJECTIONS = {"gate_up_proj": (64, 2), "down_proj": (64, 1)}
"""Outputs, and blocks of 32 inputs."""


def packed(seed, *shape, low=118, high=123):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def of_transformers(blocks, scales):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales)


@pytest.mark.parametrize("low", [0, 60, 127, 200])
def test_each_number_is_that_of_transformers(low):
    blocks, scales = packed(3, 5, 40, 3, low=low, high=low + 50)
    found = dequantized(blocks, scales)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, of_transformers(blocks, scales))
    assert torch.equal(dequantized(blocks[0], scales[0]), found[0])  # without experts


def test_pairs_of_blocks_and_scales_are_found_and_nothing_else():
    shapes = {
        "a_blocks": (4, 6, 2, 16), "a_scales": (4, 6, 2), "of_blocks": (6, 2, 16), "of_scales": (6, 3),
        "b_blocks": (6, 2, 8), "b_scales": (6, 2), "c": (6, 2, 16),
    }  # fmt: skip
    assert packed_tensors(shapes) == {"a": (("a_blocks", "a_scales"), (4, 64, 6))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint in bfloat16, and the same in MXFP4; and the model of transformers."""
    import transformers

    plain, mxfp4 = (tmp_path_factory.mktemp(name) for name in ("plain", "mxfp4"))
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("gpt_oss", **SIZES)
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    raw = json.loads((plain / "config.json").read_text())
    stored = dict(tensors)
    for name in list(tensors):
        kind = name.rpartition(".")[2]
        if kind in PROJECTIONS:
            blocks, scales = packed(len(stored), SIZES["num_local_experts"], *PROJECTIONS[kind])
            tensors[name] = of_transformers(blocks, scales)
            del stored[name]
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    save_file(stored, mxfp4 / "model.safetensors", {"format": "pt"})
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (mxfp4 / "config.json").write_text(json.dumps(raw))
    return plain, mxfp4


def test_a_checkpoint_in_mxfp4_is_that_in_bfloat16_and_is_saved_as_such(folders, tmp_path):
    plain, mxfp4 = folders
    expected, found = (dict(ReaLModel.from_pretrained(folder).named_parameters()) for folder in folders)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    ReaLModel.from_pretrained(mxfp4).save_pretrained(tmp_path / "copy")
    saved, wanted = load_file(tmp_path / "copy" / "model.safetensors"), load_file(plain / "model.safetensors")
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in wanted.items())
    assert "quantization_config" not in json.loads((tmp_path / "copy" / "config.json").read_text())


def test_logits_are_those_of_transformers_where_gates_are_clamped(folders):
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32).eval()
    ours = ReaLModel.from_pretrained(folders[1], dtype=torch.float32).eval()
    tokens = torch.arange(23) * 7 % SIZES["vocab_size"]
    with torch.no_grad():
        wanted, found = theirs(tokens[None]).logits[0], ours(tokens, torch.tensor([0, 23], dtype=torch.int32))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5 * float(wanted.abs().max()))


def test_another_quantization_is_refused(folders, tmp_path):
    raw = json.loads((folders[1] / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "bitsandbytes"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="quant_method='bitsandbytes'; only mxfp4 can be read"):
        ReaLModel.from_pretrained(tmp_path)
