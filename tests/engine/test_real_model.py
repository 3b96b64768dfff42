"""`ReaLModel` as users hold it: made, loaded, saved, and with methods for every installed family."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import reallm
from reallm import CheckpointError, ConfigError, ReaLModel, ReaLModelConfig

TOKENS, BOUNDS = torch.tensor([5, 6, 7, 8, 9, 3, 4]), torch.tensor([0, 4, 7])


def tiny_config(**changes):
    settings = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "eos_token_id": 2,
    }  # fmt: skip
    return transformers.LlamaConfig(**settings | changes)


@pytest.fixture
def model():
    return ReaLModel.from_llama(tiny_config(), seed=1)


def test_dir_lists_the_methods_of_every_installed_family(model):
    for name in reallm.plugins.registry.names("family"):
        for method in (f"from_{name}", f"to_{name}", f"config_from_{name}", f"config_to_{name}"):
            assert method in dir(ReaLModel)
            assert method in dir(model)
            assert callable(getattr(ReaLModel, method))
    assert "from_codellama" in dir(ReaLModel)


def test_a_family_that_is_not_there(model):
    with pytest.raises(AttributeError, match="llama"):
        ReaLModel.from_lama
    with pytest.raises(AttributeError, match="llama"):
        model.to_lama
    assert not hasattr(ReaLModel, "from_nothing_like_it")
    with pytest.raises(AttributeError, match="no attribute 'hiden'$"):
        model.hiden
    with pytest.raises(AttributeError, match="from_pretrained"):
        ReaLModel.from_pretraind


def test_what_only_its_network_has_is_found_there(model):
    assert not isinstance(model, torch.nn.Module)
    assert isinstance(model.network, torch.nn.Module)
    with pytest.raises(AttributeError, match=r"no attribute 'layers'; use model\.network\.layers"):
        model.layers
    assert torch.equal(model.hidden(TOKENS, BOUNDS), model.network.hidden(TOKENS, BOUNDS))
    assert repr(model).startswith("ReaLModel(Transformer(")


def test_it_goes_with_torchs_utilities_for_modules(model):
    names = [name for name, _ in model.named_parameters()]
    assert names == list(model.state_dict()) == list(model.network.state_dict())
    assert names[0] == "layers.0.tokens.weight"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(TOKENS, BOUNDS).square().sum().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm > 1e-3
    assert torch.nn.utils.get_total_norm([each.grad for each in model.parameters()]) == pytest.approx(1e-3, rel=1e-3)
    before = copy.deepcopy(model)
    optimizer.step()
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(model.head_weight, before.head_weight)
    assert str(model.load_state_dict(before.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(model.head_weight, before.head_weight)
    assert model.to(torch.float64) is model
    assert {parameter.dtype for parameter in model.parameters()} == {model.dtype} == {torch.float64}
    assert not model.eval().training
    assert model.train().network.training


def test_offloaded_parameters_are_back_before_they_are_converted_or_replaced(model):
    expected = copy.deepcopy(model.state_dict())
    for use in (lambda: model.to(torch.float64).to(torch.float32), lambda: model.load_state_dict(expected)):
        model.async_offload()
        model.wait_for_offload()
        use()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_there_and_back_through_transformers(model):
    theirs = model.to_llama()
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    with torch.no_grad():
        expected = torch.cat([theirs(part[None]).logits[0] for part in TOKENS.split([4, 3])])
        torch.testing.assert_close(model(TOKENS, BOUNDS), expected, rtol=1e-4, atol=1e-5)
    back = ReaLModel.from_llama(theirs)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, back.get_parameter(name))
        assert parameter.data_ptr() != back.get_parameter(name).data_ptr()


def test_to_family_may_be_called_on_the_class(model):
    assert isinstance(ReaLModel.to_llama(model), transformers.LlamaForCausalLM)


def test_configs_there_and_back(model, tmp_path):
    config = ReaLModel.config_from_llama(tiny_config())
    assert config == model.config
    assert ReaLModel.config_from_llama(ReaLModel.config_to_llama(config)) == config
    model.save_pretrained(tmp_path / "model")
    assert ReaLModel.config_from_llama(str(tmp_path / "model")) == config
    assert model.hf_config.hidden_size == 16
    assert model.hf_config.eos_token_id == 2


@pytest.mark.parametrize("is_critic", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_it_is_the_same(tmp_path, is_critic, tied):
    model = ReaLModel.from_llama(tiny_config(tie_word_embeddings=tied), is_critic=is_critic, seed=2)
    model.save_pretrained(tmp_path / "model")
    again = ReaLModel.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), model.parameters(), strict=True))
    # the last bit may differ: tensors of a file are aligned differently in memory, and vector units round accordingly
    torch.testing.assert_close(again(TOKENS, BOUNDS), model(TOKENS, BOUNDS), rtol=1e-5, atol=1e-7)
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("pads_with_end", [False, True])
def test_a_critic_is_a_sequence_classifier_to_transformers(tmp_path, pads_with_end):
    """Of a text that ends in the end-of-sequence token too, which many language models pad with."""
    pad = int(TOKENS[3]) if pads_with_end else 0
    ReaLModel.from_llama(tiny_config(pad_token_id=pad, eos_token_id=int(TOKENS[3])), seed=2).save_pretrained(
        tmp_path / "lm"
    )
    critic = ReaLModel.from_pretrained(tmp_path / "lm", is_critic=True, seed=2)
    critic.save_pretrained(tmp_path / "critic")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    with torch.no_grad():
        score = theirs(TOKENS[None, :4]).logits[0, 0]
        torch.testing.assert_close(critic(TOKENS[:4], torch.tensor([0, 4]))[-1], score, rtol=1e-4, atol=1e-6)


def test_the_new_head_of_a_critic_is_drawn_from_the_seed(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    one, same, other = (ReaLModel.from_pretrained(tmp_path / "model", is_critic=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.head_weight, same.head_weight)
    assert not torch.equal(one.head_weight, other.head_weight)
    assert one.head_weight.shape == (1, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(model, tmp_path, dtype):
    model.save_pretrained(tmp_path / "half", dtype=dtype)
    half = ReaLModel.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    whole = ReaLModel.from_pretrained(tmp_path / "half", dtype=torch.float32)
    # 8 (11) bits of mantissa through two blocks
    torch.testing.assert_close(half(TOKENS, BOUNDS).float(), whole(TOKENS, BOUNDS), rtol=0.05, atol=0.005)


def test_tensors_of_several_dtypes(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert ReaLModel.from_pretrained(tmp_path).dtype == torch.float32
    assert "has tensors of torch.bfloat16 and torch.float32; all are converted to torch.float32" in caplog.text
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": None}))
    with pytest.raises(CheckpointError, match="torch.bfloat16 and torch.float32; choose one of them with dtype="):
        ReaLModel.from_pretrained(tmp_path)
    assert ReaLModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_training_a_loaded_model_leaves_its_file_alone(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    loaded = ReaLModel.from_pretrained(tmp_path / "model")
    loaded(TOKENS, BOUNDS).sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=1.0).step()
    assert not torch.equal(loaded(TOKENS, BOUNDS), model(TOKENS, BOUNDS))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_model_without_a_family_says_how_to_get_one(tmp_path):
    model = ReaLModel(ReaLModelConfig(1, 8, 2, 2, 4, 8, 10, 16))
    assert model(torch.tensor([1, 2]), torch.tensor([0, 2])).shape == (2, 10)
    with pytest.raises(CheckpointError, match="from_<family>"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="config_to_<family>"):
        _ = model.hf_config


def test_a_family_must_fit_the_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not a checkpoint of 'mistral' but of 'llama"):
        ReaLModel.from_mistral(tmp_path / "model")
