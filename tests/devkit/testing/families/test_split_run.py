"""The kit's tensor parallelism on one process: split as the core's layers declare, the network stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.layers import Linear
from reallm.model.sharding import Shard
from reallm.model.transformer import Transformer
from reallm.parallel.tensor_parallel.partial_grads import partial_grad_groups
from reallm_devkit.testing.families.reference import init_by_name, pack, sequences
from reallm_devkit.testing.families.split_run import CannotSplitError, DeclaredSharding, RankError, loss_of, run_split

SIZES: dict[str, Any] = {
    "n_layers": 2,
    "hidden_size": 32,
    "n_q_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 50,  # 4 ranks have parts of different sizes
    "vocab_size": 97,
    "max_positions": 64,
}
OWN = "tests.model.test_transformer"
BIASES = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias", "up_bias", "down_bias"), True)

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-kv-head": {"n_kv_heads": 1},
    "all-kv-heads": {"n_kv_heads": 4},
    "biases": {**BIASES, "gate_bias": True, "head_bias": True},
    "tied": {"tied_embeddings": True},
    "tied-with-bias": {"tied_embeddings": True, "head_bias": True},
    "norm-of-each-head": {"qk_norm": "head"},
    "norms-for-each-head": {"qk_norm": "per_head"},
    "norm-of-all-heads": {"qk_norm": "whole"},
    "norm-of-all-heads-of-one": {"qk_norm": "whole", "n_kv_heads": 1},
    "layer-norm-of-all-heads": {"qk_norm": "whole", "norm": "layer", "norm_bias": True, "qk_norm_bias": True},
    "parallel": {"parallel_residual": True, "shared_norm": True, "mlp": "plain", **BIASES},
    "positions": {"learned_positions": True, "rope": None, "norm": "layer", "norm_bias": True},
    "experts": {"moe": MoEConfig(4, 2, 24)},
    "experts-with-biases": {"moe": MoEConfig(4, 2, 24, router_bias=True, gate_bias=True, up_bias=True, down_bias=True)},
    "norm-of-embeddings": {"embedding_norm": True, "norm": "layer", "norm_bias": True},
    "own-ends": {"embedding": f"{OWN}:NarrowEmbedding", "head": f"{OWN}:NarrowHead", "tied_embeddings": True},
    "slopes": {"rope": None, "alibi_scale": 1.0},
    "sinks": {"attn_sinks": True, "sliding_window": (None, 5)},
    "partial-rope-and-windows": {"rope": RopeConfig(rotary_dim=4), "sliding_window": (5, None), "logit_softcap": 3.0},
}


def model_of(**changes: Any) -> Transformer:
    model = Transformer(ReaLModelConfig(**{**SIZES, **changes}))
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    init_by_name(model)
    return model.eval()


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_parts_give_the_whole(name: str, n_ranks: int) -> None:
    model = model_of(**CONFIGS[name])
    packed = pack(sequences(97, (7, 16, 33)))
    whole, declared = model(*packed), DeclaredSharding.of(model)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss_of(whole), list(parameters.values()))
    run = run_split(model, declared, n_ranks, *packed, ["layers.2.mlp"])
    assert (run.logits - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert run.outputs["layers.2.mlp"].shape == (56, 32)
    parts = declared.boxes(model, n_ranks)
    for rank in range(n_ranks):
        summed_over = partial_grad_groups(model, declared.shards, parts, rank)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            found = sum(run.gradients[one][parameter] for one in summed_over.get(parameter, [rank]))
            difference = (found - gradient[parts[rank][parameter].slices]).abs().max()
            assert difference <= 3e-5 * gradient.abs().max(), f"{parameter} of rank {rank}"


def test_a_rank_that_fails_says_in_which_module() -> None:
    model = model_of()
    declared = DeclaredSharding.of(model)
    wrong = DeclaredSharding({**declared.shards, "layers.2.mlp.up.weight": Shard(1)}, declared.splits)
    with pytest.raises(RankError, match="RuntimeError: mat1 and mat2") as failed:
        run_split(model, wrong, 2, *pack(sequences(97, (7,))))
    assert failed.value.path == "layers.2.mlp.up"


def test_the_bias_of_what_is_added_up_is_added_once() -> None:
    model = model_of(**BIASES)
    declared = DeclaredSharding.of(model)
    assert declared.shards["layers.1.mlp.down.bias"] is None
    packed = pack(sequences(97, (7,)))
    twice = DeclaredSharding(declared.shards, {**declared.splits, "layers.1.mlp.down": "column"})
    with torch.no_grad():
        whole = model(*packed)
    assert (run_split(model, twice, 2, *packed).logits - whole).abs().max() > 0.1


class AddsItsBias(Linear):
    """A family's own linear layer: it adds the bias itself, and counts calls with parameters that are not its own."""

    n_replaced = 0

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.bias, nn.Parameter):
            AddsItsBias.n_replaced += 1
        return x @ self.weight.T + self.bias


def test_a_bias_that_a_class_adds_itself_is_added_once_and_stays_its_parameter() -> None:
    model = model_of(**BIASES)
    packed = pack(sequences(97, (7, 16)))
    names = [name for name, _ in model.named_parameters() if name.endswith("mlp.down.bias")]
    for layer in ("1", "2"):
        down = model.get_submodule(f"layers.{layer}.mlp.down")
        down.__class__ = AddsItsBias
    whole = model(*packed)
    expected = torch.autograd.grad(loss_of(whole), [model.get_parameter(name) for name in names])
    run = run_split(model, DeclaredSharding.of(model), 2, *packed)
    assert (run.logits - whole).abs().max() <= 1e-5 * whole.abs().max()
    for name, gradient in zip(names, expected, strict=True):
        for rank in range(2):
            assert (run.gradients[rank][name] - gradient).abs().max() <= 3e-5 * gradient.abs().max()
    assert AddsItsBias.n_replaced == 0


def test_what_is_added_up_must_not_be_there_twice() -> None:
    model = model_of(n_q_heads=1, n_kv_heads=1)
    with pytest.raises(CannotSplitError, match="tp=2 does not fit the parameter 'layers.1.attn.o.weight'"):
        run_split(model, DeclaredSharding.of(model), 2, *pack(sequences(97, (7,))))
