"""Gradient checkpointing: less is kept for the backward pass, and no gradient changes."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from reallm.errors import ConfigError
from reallm.model import activation_checkpointing as checkpointing
from reallm.model.config import MoEConfig, RopeConfig
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

BASE = TINY.replace(n_layers=3, init_std=0.2)
BOUNDS = torch.tensor([0, 4, 5, 22, 30])
TOKENS = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(0))
MODES = ("none", "selective", "full")

CHANGES = {
    "llama": {},
    "layer norm, plain MLP with biases": {
        "norm": "layer",
        "norm_bias": True,
        "mlp": "plain",
        "activation": "gelu",
        "up_bias": True,
    },
    "window": {"sliding_window": 4},
    "q and k normed by head": {"qk_norm": "head"},
    "q and k normed as a whole": {"qk_norm": "whole"},
    "soft cap": {"attn_softcap": 0.5},
    "sinks": {"attn_sinks": True},
    "slopes": {"rope": None, "alibi_scale": 1.0},
    "sinks, soft cap and window": {"attn_sinks": True, "attn_softcap": 0.5, "sliding_window": 4},
    "dropout of branches": {"residual_dropout": 0.3, "embedding_dropout": 0.1},
    "dropout of attention": {"attn_dropout": 0.3},
    "all dropout, soft cap and window": {
        "attn_dropout": 0.3,
        "residual_dropout": 0.3,
        "attn_softcap": 0.5,
        "sliding_window": 3,
    },
    "multipliers": {"residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    "critic": {"is_critic": True},
    "norms of branches": {"norm_placement": "branch"},
    "sandwich norms with an offset": {"norm_placement": "sandwich", "norm_offset": 1.0},
    "norms after the sum": {"norm_placement": "post", "norm": "layer", "norm_bias": True},
    "parallel branches": {"parallel_residual": True, "residual_dropout": 0.3},
    "parallel branches with one norm": {"parallel_residual": True, "shared_norm": True},
    "norms without weights": {"norm_weight": False},
    "q and k normed by head, each with its weights": {"qk_norm": "per_head", "qk_norm_bias": True, "qkv_clip": 0.3},
    "rope, window and scale of each block": {
        "rope": (RopeConfig(), None, RopeConfig(theta=50.0, interleaved=True, rotary_dim=4)),
        "sliding_window": (None, 4, None),
        "attn_scale": (0.3, 0.5, 0.7),
    },
    "learned positions": {"rope": None, "learned_positions": True},
    "experts": {"moe": MoEConfig(4, 2, 24)},
    "experts in some blocks, with jitter": {"moe": MoEConfig(4, 2, 24, jitter=0.1, layers=(1,), down_bias=True)},
}


def build(changes, mode, dtype=torch.float32, n_layers=3):
    model = Transformer(BASE.replace(**changes).with_blocks(*range(n_layers)))
    model.init_weights(0)
    model.gradient_checkpointing = mode
    return model.to(dtype).train()


def gradients(model):
    torch.manual_seed(7)  # of dropout
    out = model(TOKENS, BOUNDS)
    torch.manual_seed(8)  # the backward pass must replay the masks of the forward pass, whatever came between
    out.float().square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_no_gradient_changes_by_a_bit(changes, dtype, mode):
    plain, saving = gradients(build(changes, "none", dtype)), gradients(build(changes, mode, dtype))
    for name, gradient in plain.items():
        assert torch.equal(saving[name], gradient), name


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_graph_that_is_kept_serves_two_backward_passes(mode):
    model = build({}, mode, n_layers=1)
    loss = model.hidden(TOKENS, BOUNDS).square().sum()
    loss.backward(retain_graph=True)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    loss.backward()
    assert once
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in once.items())


@pytest.mark.parametrize("frozen", ["attn.q", "attn_norm", "mlp.down", "mlp.gate"])
def test_frozen_layers_change_no_other_gradient(frozen):
    models = build({}, "none"), build({}, "selective")
    for model in models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
    plain, saving = map(gradients, models)
    for name, gradient in plain.items():
        assert (gradient is None) == (frozen in name)
        assert gradient is None or torch.equal(saving[name], gradient)


def test_evaluation_and_inference_are_as_without():
    tokens_and_bounds = TOKENS, BOUNDS
    plain, saving = build({}, "none").eval(), build({}, "selective").eval()
    with torch.no_grad():
        assert torch.equal(plain(*tokens_and_bounds), saving(*tokens_and_bounds))
    assert not any(module._forward_hooks for module in saving.modules())


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ConfigError, match="'ful' is not one of none, selective, full; did you mean 'full'"):
        gradients(build({}, "ful"))


def kept_bytes(changes, mode, monkeypatch):
    """Bytes of distinct storages that one block keeps, parameters left out: those of two blocks less those of one."""
    totals = []
    for n_layers in (1, 2):
        model = build(changes, mode, n_layers=n_layers)
        storages = {}
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor, storages=storages, parameters=parameters):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage
            return tensor

        pack = checkpointing._Recipes.pack

        def keep_unless_recipe(recipes, tensor, pack=pack, keep=keep):
            kept = pack(recipes, tensor)
            return keep(kept) if isinstance(kept, torch.Tensor) else kept

        # the innermost hooks count: those of selective checkpointing are looked at from inside
        with monkeypatch.context() as patch, saved_tensors_hooks(keep, lambda tensor: tensor):
            patch.setattr(checkpointing._Recipes, "pack", keep_unless_recipe)
            out = model(TOKENS, BOUNDS)
        totals.append(sum(storage.nbytes() for storage in storages.values()))
        del out
    return totals[1] - totals[0]


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_each_mode_keeps_less_than_the_one_before(changes, monkeypatch):
    none, selective, full = (kept_bytes(changes, mode, monkeypatch) for mode in MODES)
    assert none > selective > full
