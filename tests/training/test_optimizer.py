"""Each optimizer steps as torch's own does on the same gradients, keeps what it says, and resumes bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OPTIONS, OptimizerConfig, check_unsharded
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.model.config import MoEConfig
from reallm.model.parameters import parameter_shapes
from reallm.parallel.layout import Layout
from reallm.training.engine import EngineState, TrainEngine
from reallm.training.memory import estimate
from reallm.training.optimizer import Optimizer
from tests.training.train_cases import BATCHES, LLAMA

CONFIG = LLAMA.replace(n_layers=2, qk_norm="per_head", q_bias=True, moe=MoEConfig(4, 2, 24, layers=(1,)))
"""Norms that are matrices, biases, and experts, whose weights are stacks of matrices."""
OPTIMIZERS = {
    "adamw": OptimizerConfig(lr=1e-2, weight_decay=0.1),
    "sgd": OptimizerConfig(name="sgd", lr=1e-2, weight_decay=0.1),
    "sgd-momentum": OptimizerConfig(name="sgd", lr=1e-2, momentum=0.9, nesterov=True),
    "adafactor": OptimizerConfig(name="adafactor", lr=1e-2, weight_decay=0.1, beta2_decay=-0.7),
    "muon": OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.1),
    "muon-original": OptimizerConfig(name="muon", lr=1e-2, adjust_lr_fn="original", momentum=0.9, ns_steps=3),
}
LRS = (1e-2, 5e-3, 2e-3)


def is_hidden_matrix(name: str) -> bool:
    is_in_block = name.startswith(("layers.1.", "layers.2."))
    return is_in_block and not any(part in name for part in ("norm", "bias"))


def is_decayed(name: str) -> bool:
    return is_hidden_matrix(name) or name in ("layers.0.tokens.weight", "layers.3.out.weight")


PLAIN: dict[str, Callable[[Iterable[Tensor], float], torch.optim.Optimizer]] = {
    "adamw": lambda params, decay: torch.optim.AdamW(
        params, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay, fused=True
    ),
    "sgd": lambda params, decay: torch.optim.SGD(params, weight_decay=decay),
    "sgd-momentum": lambda params, decay: torch.optim.SGD(params, momentum=0.9, nesterov=True),
    "adafactor": lambda params, decay: torch.optim.Adafactor(params, beta2_decay=-0.7, weight_decay=decay),
    "muon": lambda params, decay: torch.optim.Muon(params, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    "muon-original": lambda params, decay: torch.optim.Muon(
        params, weight_decay=0.0, momentum=0.9, ns_steps=3, adjust_lr_fn="original"
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    model = ReaLModel(CONFIG, dtype=dtype, seed=3)
    config = OPTIMIZERS[name]
    ours = Optimizer(model.network, config)
    theirs: dict[str, list[torch.nn.Parameter]] = {}
    steppers: list[torch.optim.Optimizer] = []
    for parameter_name, parameter in model.named_parameters():
        whole = parameter.detach().float()
        is_muon = config.name == "muon" and is_hidden_matrix(parameter_name)
        parts = list(whole) if is_muon and whole.dim() == 3 else [whole]
        theirs[parameter_name] = [torch.nn.Parameter(part.clone()) for part in parts]
        kind = name if is_muon or config.name != "muon" else "adamw"
        steppers.append(PLAIN[kind](theirs[parameter_name], config.weight_decay * is_decayed(parameter_name)))

    generator = torch.Generator().manual_seed(0)
    for lr in LRS:
        for parameter_name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            gradient = parameter.grad.float()
            parts = list(gradient) if len(theirs[parameter_name]) > 1 else [gradient]
            for their, part in zip(theirs[parameter_name], parts, strict=True):
                their.grad = part.clone()
        ours.accumulate_gradients()
        norm = ours.grad_norm()
        torch.nn.utils.clip_grads_with_norm_([each for parts in theirs.values() for each in parts], 1.0, norm)
        ours.step(lr, norm)
        for stepper in steppers:
            stepper.param_groups[0]["lr"] = lr
            stepper.step()
    for parameter_name, weight in ours.weights().items():
        parts = theirs[parameter_name]
        expected = torch.stack(list(parts)) if weight.dim() == 3 and len(parts) > 1 else parts[0]
        assert torch.equal(weight, expected), parameter_name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_is_what_was_estimated(name: str) -> None:
    config = OPTIMIZERS[name]
    engine = TrainEngine(ReaLModel(CONFIG, seed=3), config, total_steps=10, max_tokens_per_microbatch=100)
    assert not engine.state().moments
    engine.train_batch(BATCHES[0], SFTInterface())
    moments = engine.state().moments
    assert {key: tuple(value.shape) for key, value in moments.items()} == engine.state_shapes()
    kept = sum(value.nbytes for value in moments.values() if value.dim())
    single = estimate(CONFIG, torch.float32, torch.device("meta"), (10,), optimizer=config)
    assert single.optimizer == kept
    n = sum(parameter.numel() for parameter in engine.model.parameters())
    half = estimate(CONFIG, torch.bfloat16, torch.device("meta"), (10,), optimizer=config)
    assert half.optimizer == kept + 4 * n


def test_the_state_is_as_small_as_the_optimizer_promises() -> None:
    n = sum(torch.Size(shape).numel() for shape in parameter_shapes(CONFIG).values())

    def kept(name: str) -> int:
        return estimate(CONFIG, torch.float32, torch.device("meta"), (10,), optimizer=OPTIMIZERS[name]).optimizer

    assert kept("adamw") == 8 * n
    assert kept("sgd") == 0
    assert kept("sgd-momentum") == 4 * n
    assert kept("adafactor") < n
    assert 4 * n < kept("muon") < 8 * n


def trained(name: str, n_steps: int, engine: TrainEngine | None = None) -> TrainEngine:
    if engine is None:
        model = ReaLModel(CONFIG, dtype=torch.bfloat16, seed=3)
        engine = TrainEngine(model, OPTIMIZERS[name], total_steps=10, max_tokens_per_microbatch=30)
    for _ in range(n_steps):
        engine.train_batch(BATCHES[engine.step % len(BATCHES)], SFTInterface())
    return engine


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_counts_as_a_change_of_the_parameters(name: str) -> None:
    """Whoever keeps a prepacked copy of a weight relies on it."""
    model = ReaLModel(CONFIG, seed=3)
    before = {name: parameter._version for name, parameter in model.named_parameters()}
    trained(name, 1, TrainEngine(model, OPTIMIZERS[name], total_steps=10, max_tokens_per_microbatch=30))
    assert all(parameter._version > before[name] for name, parameter in model.named_parameters())


def copied(state: EngineState) -> EngineState:
    moments, weights = (
        {key: value.clone() for key, value in tensors.items()} for tensors in (state.moments, state.weights)
    )
    return EngineState(state.step, state.skipped_steps, moments, weights)


def assert_same(one: EngineState, other: EngineState) -> None:
    assert one.moments.keys() == other.moments.keys()
    for ours, theirs in ((one.moments, other.moments), (one.weights, other.weights)):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_resumes_bit_for_bit(name: str) -> None:
    engine = trained(name, 2)
    halfway = copied(engine.state())
    whole = copied(trained(name, 2, engine).state())
    resumed = TrainEngine(
        ReaLModel(CONFIG, dtype=torch.bfloat16, seed=4), OPTIMIZERS[name], 10, max_tokens_per_microbatch=30
    )
    resumed.load_state(halfway)
    assert_same(copied(trained(name, 2, resumed).state()), whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_offloaded_state_comes_back(name: str) -> None:
    engine = trained(name, 2)
    engine.async_offload()
    engine.wait_for_offload()
    assert all(not tensor.untyped_storage().nbytes() for tensor in engine._optimizer.state_tensors())
    assert_same(trained(name, 2, engine).state(), trained(name, 4).state())


def test_the_state_of_another_optimizer_is_refused() -> None:
    saved = trained("muon", 1).state()
    with pytest.raises(
        ConfigError, match=r"the saved state has 'layers\.\S+/momentum_buffer', which optimizer\.name=ada"
    ):
        trained("adamw", 0).load_state(saved)
    with pytest.raises(ConfigError, match=r"which optimizer\.name=sgd does not keep \(it keeps nothing\)"):
        trained("sgd", 0).load_state(saved)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_split_matrices_are_refused(name: Any) -> None:
    config = OptimizerConfig(name=name)
    with pytest.raises(
        ConfigError,
        match=f"optimizer.name={name} computes with whole matrices, which parallel.dp=2 and parallel.tp=4 would split; "
        r"use adamw or sgd, or only pipeline stages \(parallel.pp\)",
    ):
        check_unsharded(config, Layout(dp=2, tp=4, fsdp=True))
    check_unsharded(config, Layout(dp=2, pp=2))
    check_unsharded(OptimizerConfig(name="sgd"), Layout(dp=2, tp=4, fsdp=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "adamw", "momentum": 0.9}, r"optimizer\.momentum=0\.9 is an option of sgd and muon, not of adamw"),
        ({"name": "sgd", "beta1": 0.9}, r"optimizer\.beta1=0\.9 is an option of adamw and muon, not of sgd; leave it"),
        ({"name": "sgd", "ns_steps": 5}, "sgd has momentum, nesterov and weight_decay"),
        ({"name": "adam"}, r"optimizer\.name='adam' is not one of adamw, sgd, adafactor, muon; did you mean 'adamw'"),
        ({"name": "sgd", "nesterov": True}, r"optimizer\.nesterov=true needs optimizer\.momentum above 0"),
        ({"name": "adafactor", "clip_threshold": 0.5}, r"optimizer\.clip_threshold=0\.5 must be at least 1"),
        ({"name": "muon", "adjust_lr_fn": "rms"}, r"optimizer\.adjust_lr_fn='rms' is not one of original, match_rms"),
        ({"lr": "1e-5"}, r"optimizer\.lr='1e-5' must be a number, not text"),
        ({"lr": float("inf")}, r"optimizer\.lr=inf must be greater than 0"),
        ({"warmup_steps": 1.5}, r"optimizer\.warmup_steps=1\.5 must be a whole number or None"),
    ],
)
def test_an_option_that_the_optimizer_does_not_have_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**given)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_have_the_defaults_of_their_optimizer(name: Any) -> None:
    config = OptimizerConfig(name=name)
    assert config.options == OPTIONS[name]
    assert all(getattr(config, option) is None for options in OPTIONS.values() for option in options)
    assert dataclasses.replace(OptimizerConfig(), name=name) == config
    assert dataclasses.replace(OptimizerConfig(name="muon", ns_steps=3), name="muon").options["ns_steps"] == 3
