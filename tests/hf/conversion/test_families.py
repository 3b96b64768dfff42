"""The family of a checkpoint follows from its `config.json`, or one line says what is missing."""

from __future__ import annotations

import dataclasses

import pytest

from reallm.errors import CheckpointError, UnknownNameError
from reallm.hf.conversion.families import check_family, family_for, get_family
from reallm_hf_gemma.plugin import GEMMA, GEMMA2, GEMMA3
from reallm_hf_gpt2.plugin import GPT2
from reallm_hf_llama.plugin import LLAMA
from reallm_hf_mistral.plugin import MISTRAL, MIXTRAL
from reallm_hf_phi.plugin import PHI3
from reallm_hf_qwen.plugin import QWEN2, QWEN3, QWEN3_MOE
from tests.helpers.imports import imported_by
from workspace import packages

FAMILIES = [GEMMA, GEMMA2, GEMMA3, GPT2, LLAMA, MISTRAL, MIXTRAL, PHI3, QWEN2, QWEN3, QWEN3_MOE]
PLUGINS = sorted(file for package in packages() for file in package.glob("src/reallm_hf_*/plugin.py"))
LIKE_LLAMA = {"reallm_hf_llama", "reallm_hf_mistral", "reallm_hf_phi"}
"""Packages whose families are Llama but for a few things."""


def raw(model_type, *architectures):
    return {"model_type": model_type, "architectures": list(architectures) or None}


@pytest.mark.parametrize(
    ("config", "family"),
    [
        *((raw(one.model_type), one) for one in FAMILIES),
        *((raw(one.model_type, name), one) for one in FAMILIES for name in one.architectures),
        *((raw(one.model_type, name), one) for one in FAMILIES for name in one.critic_architectures),
        *((raw(None, name), one) for one in FAMILIES for name in one.architectures),
    ],
)
def test_follows_from_the_model_type_or_the_architecture(config, family):
    assert family_for(config) is family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.names[0])
def test_has_every_name_it_offers(family):
    assert {get_family(name) for name in family.names} == {family}


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'llama'"):
        get_family("lama")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            raw("nemotron", "NemotronForCausalLM"),
            "model_type 'nemotron'.*llama.*mistral.*; model.implementation=transformers may train it today, slowly; "
            "or write one: reallm plugins new family NAME --model-type nemotron$",
        ),
        (raw("lama5", "Lama5ForCausalLM"), r"model_type 'lama5'.*; try pip install reallm-hf-lama5 \(if it exists\)$"),
        (
            raw("t5", "T5ForConditionalGeneration"),
            "model_type 't5'.*; none can be written: it is an encoder-dec",
        ),
        (
            raw("bert", "BertForMaskedLM"),
            "model_type 'bert'.*; none can be written: it is bidirectional, ",
        ),
        (raw("clip", "CLIPModel"), "model_type 'clip'.*; none can be written: transformers has no causal"),
        (raw(None, "NemotronForCausalLM"), "architecture 'NemotronForCausalLM'.*llama.*mistral"),
        # A family's name is not a model type: checkpoints of this one are mixtures of experts.
        (raw("deepseek", "DeepseekForCausalLM"), "model_type 'deepseek'; installed: [^;]*$"),
    ],
)
def test_unknown_ones_are_refused_naming_what_is_there_and_what_to_install(config, said):
    with pytest.raises(CheckpointError, match=f"some/folder: no installed family reads {said}") as caught:
        family_for(config, "some/folder")
    assert "\n" not in str(caught.value)


def test_a_config_that_states_no_family():
    with pytest.raises(CheckpointError, match="config.json has neither model_type nor architectures; add one of them"):
        family_for(raw(None))


def test_an_architecture_that_the_family_lacks():
    with pytest.raises(CheckpointError, match="'LlamaForTokenClassification' is not one that family 'llama' reads: "):
        family_for(raw("llama", "LlamaForTokenClassification"))


def test_a_class_without_an_output_head():
    assert family_for(raw("llama", "LlamaModel")) is LLAMA
    assert family_for(raw(None, "LlamaModel")) is LLAMA
    check_family(LLAMA, raw("llama", "LlamaModel"))


def test_a_checkpoint_of_another_family():
    check_family(LLAMA, raw("llama"))
    check_family(LLAMA, raw(None))
    with pytest.raises(CheckpointError, match="folder is not a checkpoint of 'mistral' but of 'llama'"):
        check_family(MISTRAL, raw("llama"), "folder")


def test_two_families_may_read_one_model_type():
    other = dataclasses.replace(LLAMA, names=("my-llama",))
    check_family(other, raw("llama", "LlamaForCausalLM"))


def test_plugins_and_tables_import_neither_torch_nor_transformers():
    modules = ", ".join(f"{file.parent.name}.plugin" for file in PLUGINS)
    program = (
        f"import {modules}, reallm.hf.conversion.config, reallm.hf.conversion.families;"
        "from reallm.hf.conversion.families import family_for; family_for({'model_type': 'llama'})"
    )
    assert imported_by(program, "torch", "transformers", "numpy", "huggingface_hub") == []


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.parent.name)
def test_a_package_of_families_is_tables_that_fit_on_a_page_or_two(file):
    """80 lines are enough for what is like Llama, 150 for three generations of an architecture with its own ways."""
    n_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert n_lines <= (80 if file.parent.name in LIKE_LLAMA else 150)
