"""The family of a checkpoint follows from its `config.json`, or one line says what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reallm.errors import CheckpointError, UnknownNameError
from reallm.hf import families
from reallm_hf_llama.plugin import LLAMA
from reallm_hf_mistral.plugin import MISTRAL

FAMILIES = {"llama": LLAMA, "mistral": MISTRAL}


def raw(model_type, *architectures):
    return {"model_type": model_type, "architectures": list(architectures) or None}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (raw("llama", "LlamaForCausalLM"), "llama"),
        (raw("llama", "LlamaForSequenceClassification"), "llama"),
        (raw("llama"), "llama"),
        (raw("mistral", "MistralForCausalLM"), "mistral"),
        (raw(None, "MistralForCausalLM"), "mistral"),
    ],
)
def test_follows_from_the_model_type_or_the_architecture(config, name):
    assert families.family_for(config) == FAMILIES[name]


def test_has_every_name_it_offers():
    assert {families.get(name).names for name in ("llama", "codellama", "deepseek")} == {LLAMA.names}
    assert families.get("mistral") == MISTRAL


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'llama'"):
        families.get("lama")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (raw("qwen2", "Qwen2ForCausalLM"), "model_type 'qwen2'.*llama.*mistral.*pip install reallm-hf-qwen2"),
        (raw(None, "Qwen2ForCausalLM"), "architecture 'Qwen2ForCausalLM'.*llama.*mistral"),
        # A family's name is not a model type: checkpoints of this one are mixtures of experts.
        (raw("deepseek", "DeepseekForCausalLM"), "model_type 'deepseek'; installed: [^;]*$"),
    ],
)
def test_unknown_ones_are_refused_naming_what_is_there_and_what_to_install(config, said):
    with pytest.raises(CheckpointError, match=f"some/folder: no installed family reads {said}") as caught:
        families.family_for(config, "some/folder")
    assert "\n" not in str(caught.value)


def test_a_config_that_states_no_family():
    with pytest.raises(CheckpointError, match="config.json states neither model_type nor architectures; add them"):
        families.family_for(raw(None))


def test_an_architecture_that_the_family_lacks():
    with pytest.raises(CheckpointError, match="'LlamaModel' is not one that family 'llama' reads: 'LlamaForCausalLM'"):
        families.family_for(raw("llama", "LlamaModel"))


def test_a_checkpoint_of_another_family():
    families.require(LLAMA, raw("llama"))
    families.require(LLAMA, raw(None))
    with pytest.raises(CheckpointError, match="folder is not a checkpoint of 'mistral' but of 'llama'"):
        families.require(MISTRAL, raw("llama"), "folder")


def test_plugins_and_tables_import_neither_torch_nor_transformers():
    program = (
        "import sys, reallm_hf_llama.plugin, reallm_hf_mistral.plugin, reallm.hf.config_io, reallm.hf.families;"
        "from reallm.hf import families; families.family_for({'model_type': 'llama'});"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_family_like_llama_fits_on_a_page():
    from pathlib import Path

    import reallm_hf_llama.plugin
    import reallm_hf_mistral.plugin

    for module in (reallm_hf_llama.plugin, reallm_hf_mistral.plugin):
        assert len(Path(module.__file__).read_text().splitlines()) <= 80
