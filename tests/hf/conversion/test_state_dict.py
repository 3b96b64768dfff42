"""Names of parameters and tensors: one table, read in both directions, for any subset."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.errors import CheckpointError, ConfigError
from reallm.hf.conversion.config import config_from_hf, config_to_hf
from reallm.hf.conversion.mapping import weight_mappings
from reallm.hf.conversion.state_dict import (
    hf_names,
    state_dict_from_hf,
    state_dict_to_hf,
)
from reallm.hf.tables import WeightTable
from reallm.model.parameters import parameter_shapes
from reallm_hf_llama.plugin import LLAMA
from reallm_hf_mistral.plugin import MISTRAL
from tests.helpers.hf_grid import GRID, hf_model, raw_config

FAMILIES = {"llama": LLAMA, "mistral": MISTRAL}


def family_and_config(name, **options):
    raw = raw_config(name)
    family = FAMILIES[raw["model_type"]]
    return family, config_from_hf(family, raw, **options)


ALL_BIASES = family_and_config("attention-bias")[1].replace(gate_bias=True, up_bias=True, down_bias=True)


@pytest.mark.parametrize("name", [name for name, (model_type, _) in GRID.items() if model_type in FAMILIES])
def test_names_shapes_and_order_are_those_of_transformers(name):
    family, config = family_and_config(name)
    theirs = {key: tuple(tensor.shape) for key, tensor in hf_model(raw_config(name)).state_dict().items()}
    if config.tied_embeddings:
        del theirs["lm_head.weight"]
    shapes = parameter_shapes(config)
    ours = {mapping.hf_names[0]: shapes[mapping.parameters[0]] for mapping in weight_mappings(family, config)}
    assert list(ours.items()) == list(theirs.items())


def test_names_of_a_critic_are_those_of_transformers():
    family, config = family_and_config("gqa", is_critic=True)
    model = hf_model(config_to_hf(family, config))
    assert list(hf_names(family, config)) == list(model.state_dict())
    assert hf_names(family, config, config.n_layers + 1) == ["model.norm.weight", "score.weight"]


def test_names_per_layer():
    family, config = family_and_config("attention-bias")
    assert hf_names(family, config, 0) == ["model.embed_tokens.weight"]
    assert hf_names(family, config, config.n_layers + 1) == ["model.norm.weight", "lm_head.weight"]
    assert hf_names(family, config, 2)[:3] == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.self_attn.k_proj.weight",
    ]
    parts = [hf_names(family, config, layer) for layer in range(config.n_layers + 2)]
    assert [name for part in parts for name in part] == list(hf_names(family, config))


def test_a_tied_head_has_only_its_norm():
    family, config = family_and_config("tied")
    assert hf_names(family, config, config.n_layers + 1) == ["model.norm.weight"]


@settings(deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_converting_any_subset_there_and_back_is_the_identity(data, tied, is_critic):
    config = ALL_BIASES.replace(tied_embeddings=tied, is_critic=is_critic)
    shapes = parameter_shapes(config)
    chosen = data.draw(st.lists(st.sampled_from(list(shapes)), unique=True))
    state = {name: torch.empty(shapes[name]) for name in chosen}
    there = state_dict_to_hf(LLAMA, state, config)
    back = state_dict_from_hf(LLAMA, there, config)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    assert list(there) == [name for name in hf_names(LLAMA, config) if name in there]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.mlp.up_proj.weight",  # there are two blocks
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.scales",
        "model.layers.x.mlp.up_proj.weight",
        "layers.1.mlp.up_proj.weight",
        "score.weight",
        "lm_head",
    ],
)
def test_foreign_tensors_have_no_name_of_ours(name):
    _, config = family_and_config("gqa")
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is not a parameter of family 'llama'"):
        state_dict_from_hf(LLAMA, {name: torch.empty(1)}, config)


@pytest.mark.parametrize(
    "name", ["layers.1.attn.q_norm.weight", "layers.5.attn.q.weight", "layers.4.norm.weight", "attn.q.weight"]
)
def test_parameters_that_the_model_lacks_are_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' is not a parameter of this model"):
        state_dict_to_hf(LLAMA, {name: torch.empty(1)}, family_and_config("gqa")[1])


class TestTiedHead:
    family, config = family_and_config("tied")

    def test_duplicate_is_dropped(self):
        state = hf_model(raw_config("tied")).state_dict()
        assert "lm_head.weight" in state
        ours = state_dict_from_hf(self.family, state, self.config)
        assert ours.keys() == parameter_shapes(self.config).keys()

    def test_a_head_may_have_a_bias_of_its_own(self):
        config = self.config.replace(head_bias=True)
        state = hf_model(raw_config("tied")).state_dict() | {"lm_head.bias": torch.ones(config.vocab_size)}
        ours = state_dict_from_hf(self.family, state, config)
        assert ours.keys() == parameter_shapes(config).keys()
        assert state_dict_to_hf(self.family, ours, config).keys() == state.keys() - {"lm_head.weight"}

    def test_different_head_is_refused_with_a_remedy(self):
        state = {"model.embed_tokens.weight": torch.zeros(2), "lm_head.weight": torch.ones(2)}
        with pytest.raises(CheckpointError, match="tie_word_embeddings is true, but 'lm_head.weight' differs .*false"):
            state_dict_from_hf(self.family, state, self.config)


def test_the_head_of_a_language_model_is_dropped_for_a_critic():
    family, config = family_and_config("gqa", is_critic=True)
    ours = state_dict_from_hf(family, hf_model(raw_config("gqa")).state_dict(), config)
    assert parameter_shapes(config).keys() - ours.keys() == {"layers.3.out.weight"}


def test_tensors_without_effect_are_dropped():
    family, config = family_and_config("gqa")
    state = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.norm.weight": torch.ones(32)}
    assert list(state_dict_from_hf(family, state, config)) == ["layers.3.norm.weight"]


class TestWeightTableIsChecked:
    def test_a_block_without_a_number(self):
        with pytest.raises(ConfigError, match="'up': 'mlp.up' must have {} 1 times"):
            WeightTable(embedding={}, block={"up": "mlp.up"}, head={})

    def test_two_modules_of_one_name(self):
        with pytest.raises(ConfigError, match="'h.{}.x' is the name of two modules, 'up' and 'down'; the table"):
            WeightTable(embedding={}, block={"up": "h.{}.x", "down": "h.{}.x"}, head={})
