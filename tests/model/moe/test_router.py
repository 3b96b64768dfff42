"""Routers: scores, groups, correction bias and shared experts are those of transformers' modules."""

from __future__ import annotations

import pytest
import torch

from reallm.errors import ConfigError
from reallm.model.attention.functional import attend_rotated
from reallm.model.config import MoEConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.moe.layer import MoEMLP
from reallm.model.moe.router import Router
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

GROUPED = MoEConfig(
    n_experts=8, top_k=3, intermediate_size=10, n_groups=4, top_k_groups=2, scaling_factor=2.5, float32_logits=True
)
SIZES = {
    "hidden_size": 24, "intermediate_size": 40, "moe_intermediate_size": 10, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 2,
    "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def deepseek_v3():
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as modeling

    changes = {"scores": "sigmoid", "correction_bias": True, "group_top_scores": 2, "n_shared_experts": 2}
    return modeling.DeepseekV3MoE(modeling.DeepseekV3Config(**SIZES)), changes


def glm4_moe():
    from transformers.models.glm4_moe import modeling_glm4_moe as modeling

    changes = {"scores": "sigmoid", "correction_bias": True, "group_top_scores": 2, "n_shared_experts": 2}
    return modeling.Glm4MoeMoE(modeling.Glm4MoeConfig(**SIZES)), changes


def deepseek_v2():
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as modeling

    config = modeling.DeepseekV2Config(**SIZES, topk_method="group_limited_greedy")
    return modeling.DeepseekV2Moe(config), {"n_shared_experts": 2, "normalize_top_k": False}


def qwen3_next():
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling

    sizes = {key: value for key, value in SIZES.items() if key in vars(modeling.Qwen3NextConfig())}
    config = modeling.Qwen3NextConfig(**sizes, num_experts=8, shared_expert_intermediate_size=14)
    shared = {"n_shared_experts": 1, "shared_intermediate_size": 14, "shared_gate": True}
    return modeling.Qwen3NextSparseMoeBlock(config), {**shared, "n_groups": 1, "top_k_groups": 1, "scaling_factor": 1.0}


@pytest.mark.parametrize("make", [deepseek_v3, glm4_moe, deepseek_v2, qwen3_next])
def test_results_and_gradients_are_those_of_transformers(make):
    theirs, changes = make()
    theirs.double()
    layer = MoEMLP(TINY.replace(hidden_size=24, moe=MoEConfig(**{**vars(GROUPED), **changes})), 0).double()
    generator = torch.Generator().manual_seed(5)
    their_shared = theirs.shared_expert if make is qwen3_next else theirs.shared_experts
    pairs = {
        layer.router.weight: theirs.gate.weight,
        layer.experts.down.weight: theirs.experts.down_proj,
        **{getattr(layer.shared, n).weight: getattr(their_shared, f"{n}_proj").weight for n in ("gate", "up", "down")},
    }
    if layer.shared.token_gate is not None:
        pairs[layer.shared.token_gate.weight] = theirs.shared_expert_gate.weight
    with torch.no_grad():
        for each in layer.parameters():
            each.normal_(0.0, 0.5, generator=generator)
        for ours, of_theirs in pairs.items():
            of_theirs.copy_(ours)
        theirs.experts.gate_up_proj.copy_(torch.cat((layer.experts.gate.weight, layer.experts.up.weight), dim=1))
        if layer.router.correction_bias is not None:
            theirs.gate.e_score_correction_bias.copy_(layer.router.correction_bias)
    x = torch.randn(50, 24, dtype=torch.float64, generator=generator)
    ours_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = layer(ours_x, ForwardContext(PackedSequences.from_lengths([50]), (), attention=attend_rotated))
    wanted = theirs(their_x[None])[0]
    # their routers multiply in float32, whatever the dtype of the model is
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(ours, wanted, **close)
    cotangent = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    ours.backward(cotangent)
    wanted.backward(cotangent)
    torch.testing.assert_close(ours_x.grad, their_x.grad, **close)
    for mine, of_theirs in pairs.items():
        torch.testing.assert_close(mine.grad, of_theirs.grad, **close)


def router_of(**changes):
    router = Router(TINY.replace(hidden_size=8, moe=MoEConfig(n_experts=8, top_k=2, **changes)))
    with torch.no_grad():
        router.weight.copy_(torch.eye(8))
        if router.correction_bias is not None:
            router.correction_bias.zero_()
    return router


LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0, 3.5, -9.0, 2.5, 2.4]])


def test_experts_are_chosen_in_the_best_groups_only():
    assert router_of()(LOGITS)[2].tolist() == [[4, 3]]
    # groups of two: (0, 1), (2, 3), (4, -), (2.5, 2.4); the highest score decides, or the sum of two
    assert router_of(n_groups=4, top_k_groups=1)(LOGITS)[2].tolist() == [[4, 5]]
    assert router_of(n_groups=4, top_k_groups=1, group_top_scores=2, scores="sigmoid")(LOGITS)[2].tolist() == [[6, 7]]


def test_the_correction_bias_changes_the_choice_and_not_the_weights():
    router = router_of(correction_bias=True, scores="sigmoid", normalize_top_k=False)
    with torch.no_grad():
        router.correction_bias[0] = 1.0
    probs, weights, chosen = router(LOGITS)
    assert chosen.tolist() == [[0, 4]]
    torch.testing.assert_close(weights, torch.sigmoid(LOGITS[:, [0, 4]]))
    torch.testing.assert_close(probs.sum(-1), torch.ones(1))


def test_the_correction_bias_begins_at_zero_and_gets_no_gradient():
    network = Transformer(TINY.replace(moe=MoEConfig(n_experts=4, top_k=2, correction_bias=True)))
    network.init_weights()
    biases = {name: each for name, each in network.named_parameters() if name.endswith("correction_bias")}
    assert biases
    assert not any(each.requires_grad or each.any() for each in biases.values())


class FirstExperts(Router):
    """A router of a plugin, which always chooses the first experts."""

    def _choose(self, scores):
        return scores[:, : self.moe.top_k], torch.arange(self.moe.top_k).expand(len(scores), -1)


def test_a_router_may_be_a_class_of_a_plugin():
    moe = MoEConfig(n_experts=4, top_k=2, router=f"{__name__}:FirstExperts")
    layer = MoEMLP(TINY.replace(moe=moe), 0)
    assert type(layer.router).__name__ == "FirstExperts"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_groups": 3}, "moe.n_experts=8 must be a multiple of moe.n_groups=3"),
        ({"n_groups": 4, "top_k_groups": 5}, "moe.top_k_groups=5 must be at most moe.n_groups=4"),
        ({"n_groups": 4, "group_top_scores": 3}, "moe.group_top_scores=3 must be at most 2"),
        ({"n_groups": 8}, "moe.top_k=2 must be at most 1"),
        ({"scores": "sigmoids"}, "moe.scores='sigmoids' is not one of softmax, sigmoid; did you mean 'sigmoid'"),
        ({"router": "best"}, "moe.router='best' is not one of standard; a class of your own is written"),
        ({"n_shared_experts": -1}, "moe.n_shared_experts=-1 must be at least 0"),
        ({"shared_gate": True}, "moe.shared_gate=True has no meaning without moe.n_shared_experts; leave it out"),
        ({"n_shared_experts": 1, "shared_intermediate_size": 0}, "moe.shared_intermediate_size=0 must be a whole"),
        ({"scaling_factor": 0.0}, "moe.scaling_factor=0.0 must be greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        MoEConfig(n_experts=8, top_k=2, **changes)
