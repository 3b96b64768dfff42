"""Compiled blocks: the same numbers as without, whatever the lengths, and no compilation for each of them."""

from __future__ import annotations

import copy

import pytest
import torch

from reallm.errors import ConfigError
from reallm.model import compile as compilation
from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.moe.layer import load_balancing_loss
from reallm.model.router_stats import RouterStatsLog
from reallm.model.transformer import Transformer

# torch's compiler warns of itself, within torch
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::UserWarning:torch.*")

CONFIG = ReaLModelConfig(
    n_layers=3,
    hidden_size=24,
    n_q_heads=3,
    n_kv_heads=1,
    head_dim=8,
    intermediate_size=40,
    vocab_size=50,
    max_positions=64,
    sliding_window=(None, 6, None),
    init_std=0.2,
)
PACKS = [[9, 4], [5, 1, 14], [3] * 7, [33], [2, 40, 2], [17, 17]]

try:
    compilation.check_compiler(torch.device("cpu"))
    MISSING = None
except ConfigError as error:
    MISSING = str(error)
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING}")


def build(changes=None):
    model = Transformer(CONFIG.replace(**(changes or {})))
    model.init_weights(0)
    return model.train()


def loss_and_gradients(model, lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(0, 50, (sum(lengths),), generator=generator)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    positions, targets = next_token_targets(tokens, bounds, torch.ones_like(tokens, dtype=torch.bool))
    model.zero_grad()
    loss = model.cross_entropy(model.hidden(tokens, bounds)[positions], targets).loss_sum / len(targets)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


VARIANTS = {
    "sandwich norms with an offset, norms of heads, rope and scale of each block": {
        "norm_placement": "sandwich",
        "norm_offset": 1.0,
        "qk_norm": "per_head",
        "qkv_clip": 0.3,
        "rope": (None, RopeConfig(theta=50.0, interleaved=True, rotary_dim=4), None),
        "attn_scale": (0.3, 0.5, 0.7),
    },
    "parallel branches with one norm, sinks": {
        "parallel_residual": True,
        "shared_norm": True,
        "norm": "layer",
        "attn_sinks": True,
    },
}


def n_compilations():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.fixture
def fresh_compiler():
    """Nothing of what other tests have compiled."""
    torch.compiler.reset()
    from torch._dynamo.utils import counters

    counters.clear()
    yield
    torch.compiler.reset()


@needs_compiler
@pytest.mark.parametrize("mode", ["none", "full"])
def test_dropout_of_compiled_blocks_can_be_turned_off_and_on(mode, fresh_compiler):
    plain, compiled = build(), build({"residual_dropout": 0.5, "attn_dropout": 0.5, "embedding_dropout": 0.5})
    compiled.compile_blocks()
    compiled.gradient_checkpointing = mode
    expected_loss, expected = loss_and_gradients(plain, PACKS[0])
    for dropout in (False, True, False):
        compiled.train()
        compiled.layers.train(dropout)  # as `ReaLModel.train(dropout=...)` does
        loss, gradients = loss_and_gradients(compiled, PACKS[0])
        if dropout:
            assert abs(loss - expected_loss) > 1e-3
            continue
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("mode", ["none", "full"])
def test_steps_of_changing_lengths_equal_those_without_compiling(mode, fresh_compiler):
    plain, compiled = build(), build()
    compiled.compile_blocks()
    compiled.gradient_checkpointing = mode
    counts = []
    for lengths in PACKS:
        loss, gradients = loss_and_gradients(compiled, lengths)
        expected_loss, expected = loss_and_gradients(plain, lengths)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
        for name, gradient in gradients.items():
            # float32 keeps 24 bits, and fused sums are added up in another order
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        counts.append(n_compilations())
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 5, "lengths after the second compile nothing"
    assert counts[1] <= 8, "all blocks share what is compiled"


@needs_compiler
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_blocks_of_every_kind_give_the_numbers_that_they_give_uncompiled(changes, fresh_compiler):
    plain, compiled = build(changes), build(changes)
    compiled.compile_blocks()
    counts = []
    for lengths in PACKS[:3]:
        loss, gradients = loss_and_gradients(compiled, lengths)
        expected_loss, expected = loss_and_gradients(plain, lengths)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
        counts.append(n_compilations())
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 2, "lengths after the second compile nothing"


@needs_compiler
def test_compiled_blocks_that_run_again_note_their_routing_once(fresh_compiler):
    plain, compiled = (build({"moe": MoEConfig(4, 2, 16, layers=(1, 2))}) for _ in range(2))
    compiled.compile_blocks()
    compiled.gradient_checkpointing = "full"
    counts = []
    for lengths in PACKS[:4]:
        tokens, bounds = torch.arange(sum(lengths)) % 50, torch.tensor([0, *lengths]).cumsum(0)
        losses, gradients = [], []
        for model in (plain, compiled):
            model.zero_grad()
            model.router_stats = RouterStatsLog()
            hidden = model.hidden(tokens, bounds)
            routing = model.router_stats.close()
            assert [each.n_tokens for each in routing] == [len(tokens)] * 2
            losses.append(load_balancing_loss(routing))
            (hidden.square().mean() + losses[-1]).backward()
            assert model.router_stats.close() == []
            gradients.append(model.get_parameter("layers.2.mlp.router.weight").grad)
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
        counts.append(n_compilations())
    assert counts[1:] == [counts[1]] * 3, "nothing is compiled for the routing of each pass"


@needs_compiler
def test_selective_checkpointing_is_refused_by_name():
    model = build()
    model.gradient_checkpointing = "selective"
    with pytest.raises(ConfigError, match="works with gradient_checkpointing none or full, not with selective"):
        model.compile_blocks()
    model.gradient_checkpointing = "none"
    model.compile_blocks()
    model.gradient_checkpointing = "selective"
    with pytest.raises(ConfigError, match="not with selective"):
        model(torch.arange(9), torch.tensor([0, 9]))


@needs_compiler
def test_evaluation_and_generation_with_compiled_blocks(fresh_compiler):
    from reallm.generation.config import GenerationConfig
    from reallm.generation.generate import generate_tokens

    plain, compiled = build().eval(), build().eval()
    compiled.compile_blocks()
    for lengths in PACKS[:2]:
        tokens, bounds = torch.arange(sum(lengths)) % 50, torch.tensor([0, *lengths]).cumsum(0)
        with torch.no_grad():
            torch.testing.assert_close(compiled(tokens, bounds), plain(tokens, bounds), rtol=1e-4, atol=1e-5)
    before = n_compilations()
    assert before > 0
    prompts, sampling = [[1, 2, 3], [4]], GenerationConfig(max_new_tokens=5, temperature=0)
    assert generate_tokens(compiled, prompts, sampling) == generate_tokens(plain, prompts, sampling)
    assert n_compilations() == before, "decoding compiles nothing"


@needs_compiler
def test_dropout_in_compiled_blocks_acts_in_training_alone(fresh_compiler):
    model = build({"residual_dropout": 0.5})
    model.compile_blocks()
    tokens, bounds = torch.arange(20), torch.tensor([0, 12, 20])
    assert not torch.equal(model(tokens, bounds), model(tokens, bounds))
    model.eval()
    assert torch.equal(model(tokens, bounds), model(tokens, bounds))


@needs_compiler
def test_compiling_leaves_the_names_of_parameters_and_can_be_copied():
    model = build()
    names = list(model.state_dict())
    model.compile_blocks()
    assert list(model.state_dict()) == names
    assert list(copy.deepcopy(model).state_dict()) == names


def test_without_a_compiler_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"model\.compile=true needs a C\+\+ compiler, and there is no .*\+\+;"):
        build().compile_blocks()
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(ConfigError, match="there is no my-compiler; install one, name it in CXX, or leave model.comp"):
        build().compile_blocks()
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match="needs a C compiler, and there is no gcc or clang; install one, name"):
        compilation.check_compiler(torch.device("cuda"))


@needs_compiler
def test_without_the_headers_of_python_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs Python's headers \(Python\.h\).*python3-dev\), or leave"):
        build().compile_blocks()
