"""Facts about the parameters of a network that follow from its configuration alone."""

import pytest

from reallm.model import parameter_names as names
from reallm.model.parameters import meta_model, n_parameters, parameter_infos, parameter_shapes
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(head_bias=True)


@pytest.mark.parametrize("name", ["layers.3.attn.q.weight", "layers.12.mlp.act.alpha_p", "layers.0.tokens.weight"])
def test_a_name_is_its_layer_and_its_path_in_it(name):
    assert names.parameter_name(names.layer_number(name), names.path_in_layer(name)) == name
    module, own_name = names.split_parameter_name(name)
    assert f"{module}.{own_name}" == name
    assert names.module_of(name) == module


def test_layers_are_those_of_the_network():
    model = Transformer(CONFIG)
    assert [str(number) for number in names.all_layers(CONFIG)] == list(model.layers)
    assert list(names.block_layers(CONFIG)) == model.block_numbers
    assert [names.EMBEDDING_LAYER, *names.block_layers(CONFIG), names.head_layer(CONFIG)] == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}, {"is_critic": True}])
def test_the_head_has_the_names_of_its_parameters(changes):
    config = CONFIG.replace(**changes)
    model = Transformer(config)
    assert model.get_parameter(names.head_weight_name(config)) is model.head_weight
    bias = names.head_bias_name(config)
    assert (None if bias is None else model.get_parameter(bias)) is model.head_bias


def test_shapes_and_numbers_are_those_of_the_network_and_nothing_is_allocated():
    model = Transformer(CONFIG)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert dict(parameter_shapes(CONFIG)) == {info.name: info.shape for info in parameter_infos(CONFIG)} == shapes
    assert n_parameters(CONFIG) == sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in meta_model(CONFIG).parameters())
