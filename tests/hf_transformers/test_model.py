"""Models in transformers' own layers: what they compute, generate and save, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from reallm.config.lora import LoRAArgs
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError, ConfigError, UnknownNameError
from reallm.hf.conversion.families import family_for
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import check_fits
from tests.hf_transformers.conftest import hf_model, save

LENGTHS = (13, 1, 8)


def load(folder: Path, **options: Any) -> ReaLModel:
    return ReaLModel.from_pretrained(folder, implementation="transformers", **options)


def tokens_of(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 400, (length,), generator=generator) for length in lengths]


def packed(sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(sequences), torch.tensor([0, *map(len, sequences)]).cumsum(0)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("helium", {}),
        ("apertus", {}),  # an activation with parameters, and with constants in the checkpoint
        ("cohere2", {"sliding_window": 4, "num_hidden_layers": 4}),  # windows, and layers without RoPE
        ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
        ("gemma2", {"sliding_window": 4, "final_logit_softcapping": 2.0}),
        ("nemotron", {}),
        ("olmo", {}),  # norms without weights
        ("phimoe", {"num_local_experts": 4}),  # experts, whose gate and up are one tensor in transformers' memory
        ("gpt_oss", {"num_local_experts": 4, "sliding_window": 4}),  # experts in one tensor, and sinks
    ],
)
def test_packed_logits_and_greedy_completions_are_those_of_transformers(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    reference = hf_model(model_type, **changes)
    model = load(save(tmp_path, reference))
    sequences = tokens_of()
    with torch.no_grad():
        expected = torch.cat([reference(each[None]).logits[0] for each in sequences])
        assert torch.allclose(model(*packed(sequences)), expected, atol=2e-5)  # sums in another order
    completions = model.generate([each.tolist() for each in sequences], max_new_tokens=8, temperature=0.0)
    for prompt, completion in zip(sequences, completions, strict=True):
        whole = reference.generate(prompt[None], max_new_tokens=8, do_sample=False)[0]
        assert completion.token_ids == whole[len(prompt) :].tolist()


def test_it_computes_what_the_family_computes(llama: Path) -> None:
    ours, theirs = ReaLModel.from_pretrained(llama), load(llama)
    batch = packed(tokens_of())
    losses = [-model.token_logprobs(*batch).mean() for model in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("model_type", ["apertus", "phimoe"])
def test_a_checkpoint_is_saved_as_it_was(model_type: str, tmp_path: Path) -> None:
    given, saved = save(tmp_path / "given", hf_model(model_type)), tmp_path / "saved"
    load(given).save_pretrained(saved)
    before, after = (load_file(folder / "model.safetensors") for folder in (given, saved))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((given / "config.json").read_text()) == json.loads((saved / "config.json").read_text())


def test_a_larger_vocabulary_is_saved(helium: Path, tmp_path: Path) -> None:
    load(helium, min_vocab_size=520).save_pretrained(tmp_path / "saved")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert found.config.vocab_size == len(found.lm_head.weight) == 520


def test_a_critic_is_the_classifier_of_transformers(helium: Path, tmp_path: Path) -> None:
    model = load(helium, is_critic=True)
    model.save_pretrained(tmp_path / "critic")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic").eval()
    (sequence,) = tokens_of((9,))
    with torch.no_grad():
        expected = theirs(sequence[None]).logits[0, 0]
    assert model.scores(*packed([sequence]))[-1].item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.equal(load(tmp_path / "critic").scores(*packed([sequence])), model.scores(*packed([sequence])))


def test_adapters_are_those_of_all_linear_layers(helium: Path, tmp_path: Path) -> None:
    model = load(helium, lora=LoRAArgs(rank=4, alpha=8))
    batch = packed(tokens_of())
    assert torch.equal(model(*batch), load(helium)(*batch))  # B begins with zeros
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "adapter")
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert set(content["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    again = load(tmp_path / "adapter")
    assert torch.equal(again(*batch), model(*batch))
    torch.testing.assert_close(model.merged()(*batch), model(*batch), atol=1e-4, rtol=0.0)


class TestRefusals:
    def test_it_is_never_chosen_by_itself_but_named(self, helium: Path) -> None:
        said = "model_type 'helium'.*model.implementation=transformers may train it today.*reallm plugins new family"
        with pytest.raises(CheckpointError, match=said):
            ReaLModel.from_pretrained(helium)

    def test_an_unknown_implementation_is_named(self, helium: Path) -> None:
        with pytest.raises(UnknownNameError, match="implementation 'transformer'.*transformers"):
            ReaLModel.from_pretrained(helium, implementation="transformer")

    @pytest.mark.parametrize("layout", ["tp2", "pp2"])
    def test_splits_within_the_network(self, helium: Path, layout: str) -> None:
        said = f"^{layout[:2]}=2: model.implementation=transformers has no .*; use dp, or .*--model-type helium$"
        with pytest.raises(ConfigError, match=said):
            check_fits(load(helium).config, Layout.parse(layout))

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            ({"model_type": "mamba"}, "MambaForCausalLM do not call attention through"),
            ({"model_type": "bert"}, "it is bidirectional"),
            ({"model_type": "t5"}, "it is an encoder-decoder"),
            (
                {"model_type": "my-model", "auto_map": {"AutoModelForCausalLM": "m.M"}},
                "code of checkpoints is never run",
            ),
            ({"model_type": "gpt2"}, "'wpe' outside of its layers"),
            ({"model_type": "doge", "num_hidden_layers": 2}, "DogeAttention gives attention 'attention_mask'"),
            # its convolutions mix packed sequences
            (
                {"model_type": "lfm2", "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
                "1 layer from layer 0 on have no attention",
            ),
            # a mask that only transformers' own attention functions get
            ({"model_type": "nanochat", "num_hidden_layers": 2}, "differ from transformers' by"),
        ],
    )
    def test_what_packed_sequences_cannot_run_on(self, raw: dict[str, Any], reason: str) -> None:
        with pytest.raises(CheckpointError, match=f"^somewhere: .*cannot run model_type .*{reason}"):
            family_for(raw, "somewhere", "transformers")
