"""Mixture of experts: the layer is that of transformers, and every way of computing it gives the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reallm.errors import ConfigError, PluginError
from reallm.model import compile as compilation
from reallm.model.activations import ACTIVATION_FUNCTIONS
from reallm.model.attention.functional import attend_rotated
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Activation, GatedMLP
from reallm.model.moe import experts
from reallm.model.moe.experts import Assignment, ExpertParameters, grouped_expert_mlp
from reallm.model.moe.grouped_linear import FEW_ROWS, KernelLinear, LoopedLinear
from reallm.model.moe.layer import MoEMLP, load_balancing_loss
from reallm.model.packed import PackedSequences
from reallm.model.router_stats import RouterStats, RouterStatsLog
from reallm.model.transformer import Transformer
from reallm.training.memory import AliveBytes, estimate

CONFIG = ReaLModelConfig(
    n_layers=3, hidden_size=24, n_q_heads=3, n_kv_heads=1, head_dim=8, intermediate_size=40, vocab_size=50,
    max_positions=64, init_std=0.2, moe=MoEConfig(n_experts=6, top_k=2, intermediate_size=16, aux_loss_coef=0.1),
)  # fmt: skip
BIASES = {"router_bias": True, "gate_bias": True, "up_bias": True, "down_bias": True}
PACKS = [[9, 4], [5, 1, 14], [3] * 7, [33], [2, 40, 2], [17, 17]]


def clamped_swiglu(gate, up):
    """`(up + 1) * swish(gate)` of clamped inputs, which is not a function of the gate times `up`."""
    gate, up = gate.clamp(max=0.9), up.clamp(-0.9, 0.9)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


class ClampedSwiGLU(nn.Module):
    """An activation of a plugin."""

    def __init__(self, config, block):
        super().__init__()

    def forward(self, gate, up):
        return clamped_swiglu(gate, up)


class LearnedActivation(ClampedSwiGLU):
    def __init__(self, config, block):
        super().__init__(config, block)
        self.factor = nn.Parameter(torch.ones(()))


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def context_of(n_tokens, notes=None):
    return ForwardContext(
        PackedSequences.from_lengths([n_tokens]), rotations=(), attention=attend_rotated, router_stats=notes
    )


def layer_of(dtype=torch.float32, config=CONFIG, **changes):
    moe = MoEConfig(**{**vars(config.moe), **changes})
    layer = MoEMLP(config.replace(moe=moe), 0)
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = randn(*parameter.shape, seed=10 + number).detach().mul_(0.5).to(dtype)
    return layer


def all_on_experts(layer, *numbers):
    """Have the router choose these experts for every token that is positive in its first dim."""
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[list(numbers), 0] = torch.linspace(2, 1, len(numbers), dtype=layer.router.weight.dtype)
    return layer


def gradients(layer, x, cotangent):
    """The result, and the gradients of the input and of all parameters by name."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    out = layer(x, context_of(len(x)))
    out.backward(cotangent)
    return out.detach(), {"x": x.grad, **{name: each.grad for name, each in layer.named_parameters()}}


def written_out(layer, x):
    """The sum over each token's experts, token by token."""
    probs = F.linear(x, layer.router.weight, layer.router.bias).softmax(-1)
    experts, rows = layer.experts, []
    for token, prob in zip(x, probs, strict=True):
        weights, chosen = prob.topk(layer.router.moe.top_k)
        if layer.router.moe.normalize_top_k:
            weights = weights / weights.sum()

        def project(name, e, x):
            of = getattr(experts, name)
            return of.weight[e] @ x + (0 if of.bias is None else of.bias[e])

        each = [
            project("down", e, experts.act(project("gate", e, token), project("up", e, token))) for e in chosen.tolist()
        ]
        rows.append(sum(w * out for w, out in zip(weights, each, strict=True)))
    return torch.stack(rows)


# As in transformers


def their_layer(kind, layer, dtype=torch.float32):
    """The layer of transformers with the weights of ours."""
    moe = layer.router.moe
    sizes = {"hidden_size": 24, "num_experts_per_tok": moe.top_k}
    if kind == "mixtral":
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        theirs = MixtralSparseMoeBlock(MixtralConfig(intermediate_size=16, num_local_experts=6, **sizes))
    else:
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        config = Qwen3MoeConfig(moe_intermediate_size=16, num_experts=6, norm_topk_prob=moe.normalize_top_k, **sizes)
        theirs = Qwen3MoeSparseMoeBlock(config)
    with torch.no_grad():
        theirs.gate.weight.copy_(layer.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat((layer.experts.gate.weight, layer.experts.up.weight), dim=1))
        theirs.experts.down_proj.copy_(layer.experts.down.weight)
    return theirs.to(dtype)


KINDS = [("mixtral", True), ("qwen3_moe", True), ("qwen3_moe", False)]


@pytest.mark.parametrize("n_tokens", [1, 3, 40])
@pytest.mark.parametrize(("kind", "normalize"), KINDS)
def test_results_and_gradients_are_those_of_transformers(kind, normalize, n_tokens):
    layer = layer_of(normalize_top_k=normalize)
    theirs = their_layer(kind, layer)
    x, cotangent = randn(n_tokens, 24, seed=1), randn(n_tokens, 24, seed=2).detach()
    ours, mine = gradients(layer, x, cotangent)
    their_x = x.detach().requires_grad_()
    wanted = theirs(their_x[None])[0]
    wanted.backward(cotangent)
    # sums of float32 products in another order
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    gate, up = theirs.experts.gate_up_proj.grad.chunk(2, dim=1)
    expected = {
        "x": their_x.grad,
        "router.weight": theirs.gate.weight.grad,
        "experts.gate.weight": gate,
        "experts.up.weight": up,
        "experts.down.weight": theirs.experts.down_proj.grad,
    }
    assert expected.keys() == mine.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("kind", "normalize"), KINDS)
def test_in_bfloat16_it_is_as_exact_as_that_of_transformers(kind, normalize):
    layer = layer_of(torch.bfloat16, normalize_top_k=normalize)
    x = randn(40, 24, dtype=torch.bfloat16, seed=1).detach()
    theirs = their_layer(kind, layer, torch.bfloat16)
    exact = their_layer(kind, layer_of(normalize_top_k=normalize))
    with torch.no_grad():
        for parameter, rounded in zip(exact.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(rounded)
        # tokens whose choice of experts the rounding of logits turns are left out
        chosen = [block.gate(x.to(block.gate.weight.dtype))[2].sort().values for block in (exact, theirs)]
        same = (chosen[0] == chosen[1]).all(dim=-1)
        ours, of_theirs = layer(x, context_of(40)).float(), theirs(x[None])[0].float()
        wanted = exact(x.float()[None])[0]
    assert same.sum() > 30
    error, their_error = ((out - wanted)[same].abs().max() for out in (ours, of_theirs))
    assert error < 1.5 * their_error + 1e-3


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balancing_loss_and_its_gradients_are_those_of_transformers(top_k):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers = [layer_of(top_k=top_k) for _ in range(3)]
    xs = [randn(n, 24, seed=seed) for seed, n in enumerate((17, 17, 17))]
    notes = RouterStatsLog()
    for layer, x in zip(layers, xs, strict=True):
        layer(x, context_of(17, notes))
    ours = load_balancing_loss(notes.close())
    logits = tuple(F.linear(x, layer.router.weight) for layer, x in zip(layers, xs, strict=True))
    theirs = load_balancing_loss_func(logits, 6, top_k)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    inputs = [*xs, *(layer.router.weight for layer in layers)]
    for mine, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def test_the_balancing_loss_is_the_number_of_chosen_experts_when_routing_is_even():
    even = RouterStats(torch.tensor([3, 3, 3, 3]), torch.full((4,), 1.5), n_tokens=6)
    assert load_balancing_loss([even, even]).item() == pytest.approx(2.0)
    nothing = RouterStats(torch.zeros(4, dtype=torch.int32), torch.zeros(4), n_tokens=0)
    assert load_balancing_loss([nothing]).item() == 0.0


# Exactness


@pytest.mark.parametrize("activation", [Activation("silu"), Activation("gelu_tanh"), clamped_swiglu])
@pytest.mark.parametrize(
    "chosen",
    [
        [[2, 0], [0, 1], [3, 2], [2, 1]],
        [[4, 1]],  # one token, as in decoding
        [[0, 3], [0, 3], [3, 0]],  # experts without tokens before, between and after
        [[1], [1], [4]],
        [[0, 1, 2, 3, 4]],
    ],
)
def test_gradients_are_those_of_finite_differences(chosen, activation):
    chosen = torch.tensor(chosen)
    n_tokens, top_k = chosen.shape
    tensors = [
        randn(n_tokens, 4, dtype=torch.float64),
        randn(n_tokens, top_k, dtype=torch.float64, seed=1),
        randn(5, 3, 4, dtype=torch.float64, seed=2),
        randn(5, 3, 4, dtype=torch.float64, seed=3),
        randn(5, 4, 3, dtype=torch.float64, seed=4),
    ]

    def mixed(x, weights, *parameters):
        of = ExpertParameters(*parameters)
        return grouped_expert_mlp(x, Assignment.of(chosen, 5), weights, of, activation)

    assert torch.autograd.gradcheck(mixed, tensors)
    biases = [randn(5, size, dtype=torch.float64, seed=5 + size) for size in (3, 3, 4)]
    assert torch.autograd.gradcheck(mixed, [*tensors, *biases])


@pytest.mark.parametrize("activation", ACTIVATION_FUNCTIONS)
def test_every_activation_is_its_formula(activation):
    layer = layer_of(torch.float64, CONFIG.replace(activation=activation))
    x = randn(7, 24, dtype=torch.float64).detach()
    torch.testing.assert_close(layer(x, context_of(7)), written_out(layer, x), rtol=1e-12, atol=1e-12)


CLAMPED = {"activation": f"{__name__}:ClampedSwiGLU"}


@pytest.mark.parametrize("names", [(name,) for name in BIASES] + [tuple(BIASES)], ids="-".join)
@pytest.mark.parametrize("changes", [{}, CLAMPED], ids=["silu", "class"])
def test_with_biases_and_an_activation_of_gate_and_up_it_is_its_formula(names, changes):
    layer = layer_of(torch.float64, CONFIG.replace(**changes), **dict.fromkeys(names, True))
    x, cotangent = (randn(9, 24, dtype=torch.float64, seed=seed).detach() for seed in (1, 2))
    out, mine = gradients(layer, x, cotangent)
    layer.zero_grad()
    x = x.requires_grad_()
    plain = written_out(layer, x)
    plain.backward(cotangent)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)
    expected = {"x": x.grad, **{name: each.grad for name, each in layer.named_parameters()}}
    assert sum(name.endswith("bias") for name in expected) == len(names)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            mine[name], gradient, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: name + text
        )


def test_a_dense_mlp_may_have_an_activation_of_gate_and_up():
    mlp = GatedMLP(CONFIG.replace(**CLAMPED), 0)
    for number, parameter in enumerate(mlp.parameters()):
        parameter.data = randn(*parameter.shape, seed=number).detach()
    x = randn(5, 24).detach()
    wanted = mlp.down(clamped_swiglu(mlp.gate(x), mlp.up(x)))
    torch.testing.assert_close(mlp(x, context_of(5)), wanted)


def test_an_activation_of_experts_has_no_parameters():
    with pytest.raises(PluginError, match="LearnedActivation: an activation of experts cannot have parameters"):
        layer_of(config=CONFIG.replace(activation=f"{__name__}:LearnedActivation"))


def test_rows_are_assigned_as_documented():
    assignment = Assignment.of(torch.tensor([[2, 0], [0, 1]]), 3)
    assert assignment.tokens.tolist() == [0, 1, 1, 0]
    assert assignment.row_of.tolist() == [[3, 0], [1, 2]]
    assert assignment.ends.tolist() == [2, 3, 4]
    assert assignment.counts.tolist() == [2, 1, 1]


def test_no_tokens_give_no_rows_and_zero_gradients():
    layer = layer_of()
    out, mine = gradients(layer, torch.empty(0, 24), torch.empty(0, 24))
    assert out.shape == mine["x"].shape == (0, 24)
    assert all(torch.equal(mine[name], torch.zeros_like(each)) for name, each in layer.named_parameters())


def test_experts_that_nobody_chose_have_zero_gradients_and_the_others_all_tokens():
    layer = all_on_experts(layer_of(torch.float64), 4, 1)
    x = randn(9, 24, dtype=torch.float64).detach()
    x[:, 0] = 1.0
    cotangent = randn(9, 24, dtype=torch.float64, seed=2).detach()
    out, mine = gradients(layer, x, cotangent)
    layer.zero_grad()
    plain = written_out(layer, x)
    plain.backward(cotangent)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-12, atol=1e-12)
        if name.startswith("experts"):
            assert mine[name].abs().amax(dim=(1, 2)).gt(0).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("n_tokens", [1, 2, FEW_ROWS, 100])
def test_without_gradients_and_run_again_the_numbers_are_the_same(n_tokens):
    layer, x = layer_of(), randn(n_tokens, 24).detach()
    out, mine = gradients(layer, x, torch.ones(n_tokens, 24))
    again, theirs = gradients(layer, x, torch.ones(n_tokens, 24))
    with torch.no_grad():
        alone = layer(x, context_of(n_tokens))
    assert torch.equal(out, alone)
    assert torch.equal(out, again)
    assert all(torch.equal(mine[name], gradient) for name, gradient in theirs.items())


@pytest.mark.parametrize(
    "frozen",
    ["router", "experts.gate", "experts.up", "experts.down", "experts", "experts.down.weight", "experts.down.bias"],
)
def test_frozen_weights_get_no_gradient_and_change_no_other(frozen):
    x, cotangent = randn(12, 24).detach(), randn(12, 24, seed=1).detach()
    _, plain = gradients(layer_of(**BIASES), x, cotangent)
    layer = layer_of(**BIASES)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    _, mine = gradients(layer, x, cotangent)
    for name, gradient in mine.items():
        assert (gradient is None) == name.startswith(frozen)
        assert gradient is None or torch.equal(gradient, plain[name])


def test_a_second_derivative_is_refused():
    layer, x = layer_of(), randn(4, 24)
    (gradient,) = torch.autograd.grad(layer(x, context_of(4)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# The products


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    """With several threads products of few rows take another way."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", [[1, 0, 2], [FEW_ROWS, FEW_ROWS + 1, 0], [0, 0, 0], [3, 3, 40]])
@pytest.mark.parametrize("width", [12, 7])  # 7 does not divide by threads
def test_products_of_each_experts_rows(sizes, width, threads):
    linear, n_rows = LoopedLinear.of(sizes), sum(sizes)
    x, grad, weight = (t.detach() for t in (randn(n_rows, 8), randn(n_rows, width, seed=1), randn(3, width, 8, seed=2)))
    expert = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    outputs = torch.einsum("ni,noi->no", x, weight[expert])
    input_grads = torch.einsum("no,noi->ni", grad, weight[expert])
    each = F.one_hot(expert, 3).float() if n_rows else torch.zeros(0, 3)
    weight_grads = torch.einsum("nx,no,ni->xoi", each, grad, x)
    torch.testing.assert_close(linear.outputs(x, weight), outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.outputs(x, weight, out=torch.empty_like(grad)), outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.input_grads(grad, weight), input_grads, rtol=1e-5, atol=1e-5)
    out = linear.input_grads(grad, weight, out=x.clone())
    torch.testing.assert_close(out, x + input_grads, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.weight_grads(grad, x), weight_grads, rtol=1e-5, atol=1e-5)
    assert torch.equal(linear.for_rows(weight[..., 0]), weight[expert, :, 0])
    bias_grads = torch.einsum("nx,no->xo", each, grad)
    torch.testing.assert_close(linear.bias_grads(grad), bias_grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1, 0, 2], [5, 9, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_kernel_gives_the_same(sizes, dtype):
    """torch has the kernel's numbers on the CPU too, where the loop is taken because it is faster."""
    x, grad, weight = (
        each.detach().to(dtype)
        for each in (randn(sum(sizes), 8), randn(sum(sizes), 16, seed=1), randn(3, 16, 8, seed=2))
    )
    looped = LoopedLinear.of(sizes)
    kernel = KernelLinear(torch.tensor(sizes).cumsum(0).to(torch.int32), sum(sizes))
    assert not KernelLinear.fits(x, weight)
    same = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}  # 8 bits
    torch.testing.assert_close(kernel.outputs(x, weight), looped.outputs(x, weight), **same)
    torch.testing.assert_close(kernel.input_grads(grad, weight), looped.input_grads(grad, weight), **same)
    out = kernel.input_grads(grad, weight, out=x.clone())
    torch.testing.assert_close(out, looped.input_grads(grad, weight, out=x.clone()), **same)
    torch.testing.assert_close(kernel.weight_grads(grad, x), looped.weight_grads(grad, x), **same)
    assert torch.equal(kernel.for_rows(weight[..., 0]), looped.for_rows(weight[..., 0]))
    torch.testing.assert_close(kernel.bias_grads(grad), looped.bias_grads(grad), **same)


@pytest.mark.parametrize("changes", [{}, BIASES], ids=["plain", "biases"])
def test_the_layer_runs_on_the_grouped_kernel(monkeypatch, changes):
    layer, x, cotangent = layer_of(**changes), randn(12, 24).detach(), randn(12, 24, seed=1).detach()
    out, plain = gradients(layer, x, cotangent)
    monkeypatch.setattr(experts.KernelLinear, "fits", staticmethod(lambda x, weight: True))
    monkeypatch.delattr(experts, "LoopedLinear")
    by_kernel, mine = gradients(layer, x, cotangent)
    torch.testing.assert_close(by_kernel, out, rtol=1e-5, atol=1e-5)
    for name, gradient in plain.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-5)


# Sharding


@pytest.mark.parametrize("changes", [{}, BIASES], ids=["plain", "biases"])
@pytest.mark.parametrize("n_parts", [2, 4])
def test_parts_of_the_declared_shards_add_up_to_the_whole(n_parts, changes):
    whole = layer_of(torch.float64, **changes)
    x, cotangent = randn(11, 24, dtype=torch.float64).detach(), randn(11, 24, dtype=torch.float64, seed=1).detach()
    out, expected = gradients(whole, x, cotangent)
    assert whole.experts.split == "column_row"
    total, grads = torch.zeros_like(out), {}
    for part in range(n_parts):
        piece = copy.deepcopy(whole)
        piece.experts.down.bias_factor = float(part == 0)  # as `apply_tensor_parallel` does
        for module in piece.modules():
            for name, shard in getattr(module, "shards", {}).items():
                if shard is not None:
                    parameter = getattr(module, name)
                    parameter.data = parameter.data.chunk(n_parts, dim=shard.dim)[part].clone()
        partial, mine = gradients(piece, x, cotangent)
        total += partial
        for name, gradient in mine.items():
            grads.setdefault(name, []).append(gradient)
    torch.testing.assert_close(total, out, rtol=1e-12, atol=1e-12)
    dims = {"experts.gate.weight": 1, "experts.up.weight": 1, "experts.down.weight": 2}
    dims |= {"experts.gate.bias": 1, "experts.up.bias": 1}
    for name, gradient in expected.items():
        joined = torch.cat(grads[name], dim=dims[name]) if name in dims else sum(grads[name])
        torch.testing.assert_close(joined, gradient, rtol=1e-12, atol=1e-12)


# Training


def test_jitter_multiplies_what_enters_in_training_only():
    layer, x = layer_of(jitter=0.1), randn(30, 24).detach()
    steady = layer_of()(x, context_of(30))
    assert torch.equal(layer.eval()(x, context_of(30)), steady)
    layer.train()
    torch.manual_seed(5)
    jittered = layer(x, context_of(30))
    torch.manual_seed(5)
    noise = torch.empty_like(x).uniform_(0.9, 1.1)
    assert torch.equal(jittered, layer.eval()(x * noise, context_of(30)))
    assert not torch.equal(jittered, steady)


def loss_and_gradients(model, lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(0, 50, (sum(lengths),), generator=generator)
    model.zero_grad()
    model.router_stats = notes = RouterStatsLog()
    torch.manual_seed(7)  # of jitter
    hidden = model.hidden(tokens, torch.tensor([0, *lengths]).cumsum(0))
    routing = notes.close()
    assert len(routing) == len(model.config.expert_blocks)
    loss = hidden.square().mean() + 0.1 * load_balancing_loss(routing)
    torch.manual_seed(8)
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def build(mode="none", **changes):
    model = Transformer(CONFIG.replace(**changes))
    model.init_weights(0)
    model.gradient_checkpointing = mode
    return model.train()


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_checkpointing_changes_no_gradient_by_a_bit(mode, jitter):
    moe = MoEConfig(6, 2, 16, jitter=jitter, layers=(0, 2))
    for lengths in PACKS[:3]:
        loss, plain = loss_and_gradients(build(moe=moe), lengths)
        same_loss, saving = loss_and_gradients(build(mode, moe=moe), lengths)
        assert torch.equal(loss, same_loss)
        assert plain.keys() == saving.keys()
        assert all(torch.equal(saving[name], gradient) for name, gradient in plain.items())


try:
    compilation.check_compiler(torch.device("cpu"))
    MISSING = None
except ConfigError as error:
    MISSING = str(error)


@pytest.mark.skipif(MISSING is not None, reason=f"{MISSING}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::UserWarning:torch.*")
def test_compiled_blocks_give_the_same_and_are_compiled_for_all_lengths_at_once():
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    plain, compiled = build(), build()
    compiled.compile_blocks()
    counts = []
    for lengths in PACKS:
        loss, gradients = loss_and_gradients(compiled, lengths)
        expected_loss, expected = loss_and_gradients(plain, lengths)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            # float32 keeps 24 bits, and fused sums are added up in another order
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[-1] == counts[1]
    torch.compiler.reset()


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_the_memory_estimate_knows_what_experts_keep(mode):
    config = CONFIG.replace(hidden_size=96, head_dim=32, moe=MoEConfig(6, 2, 160), vocab_size=200)
    lengths, cpu = (120, 60, 12), torch.device("cpu")
    told = estimate(config, torch.float32, cpu, lengths, gradient_checkpointing=mode).activations
    model = Transformer(config).train()
    model.init_weights(0)
    model.gradient_checkpointing = mode
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens, bounds = torch.arange(sum(lengths)) % config.vocab_size, torch.tensor([0, *lengths]).cumsum(0)
    alive = AliveBytes()
    with alive:
        model.cross_entropy(model.hidden(tokens, bounds), tokens).loss_sum.backward()
    assert told is not None
    assert alive.peak == pytest.approx(told, rel=0.1)  # how uneven tokens are spread moves only buffers of one expert
