"""An optimizer step: exact whatever the micro-batches, right in its arithmetic, and able to learn."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError, NonFiniteError
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput
from reallm.training.update_rules import decayed_parameters

CONFIG = ReaLModelConfig(
    n_layers=2, hidden_size=64, n_q_heads=4, n_kv_heads=2, head_dim=16, intermediate_size=96, vocab_size=50,
    max_positions=64,
)  # fmt: skip
FLAT = OptimizerConfig(lr=1e-2, schedule="constant", warmup_steps=0)


def tiny_model(dtype: torch.dtype = torch.float32, config: ReaLModelConfig = CONFIG) -> ReaLModel:
    return ReaLModel(config, dtype=dtype, seed=3)


def sample(row: int, n_tokens: int, n_prompt: int) -> NamedArray:
    generator = torch.Generator().manual_seed(row)
    mask = torch.arange(n_tokens) >= n_prompt
    return NamedArray(
        input_ids=torch.randint(0, CONFIG.vocab_size, (n_tokens,), generator=generator), loss_mask=mask
    ).with_metadata(seqlens={"input_ids": [[n_tokens]], "loss_mask": [[n_tokens]]}, ids=[f"row-{row}"])


def batch_of(*lengths: tuple[int, int]) -> NamedArray:
    """Samples of (tokens, prompt tokens)."""
    return gather([sample(row, n_tokens, n_prompt) for row, (n_tokens, n_prompt) in enumerate(lengths)])


UNEVEN = batch_of((5, 2), (30, 29), (17, 0), (8, 8), (2, 1), (40, 3))


def engine_for(model: ReaLModel, max_tokens: int = 8192, config: OptimizerConfig = FLAT, **kwargs: int) -> TrainEngine:
    return TrainEngine(model, config, total_steps=100, max_tokens_per_microbatch=max_tokens, **kwargs)


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def reference_loss(model: ReaLModel, batch: NamedArray) -> torch.Tensor:
    """The mean over all trained tokens of the batch, sequence by sequence from plain logits."""
    losses = []
    start = 0
    for (length,) in batch.metadata["seqlens"]["input_ids"]:
        tokens = batch.input_ids[start : start + length]
        mask = batch.loss_mask[start : start + length]
        logits = model(tokens, torch.tensor([0, length]))
        nll = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        losses.append(nll[mask[1:]])
        start += length
    return torch.cat(losses).mean()


@pytest.mark.parametrize("max_tokens", [1, 20, 45, 70, 10_000])
def test_a_step_does_not_depend_on_how_it_is_cut(max_tokens: int) -> None:
    model = tiny_model(torch.float64)
    reference = copy.deepcopy(model)
    expected = reference_loss(reference, UNEVEN)
    expected.backward()
    gradients = {name: gradient_of(parameter) for name, parameter in reference.named_parameters()}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()

    metrics = engine_for(model, max_tokens).train_batch(UNEVEN, SFTInterface())

    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-12)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-11)
    whole = tiny_model(torch.float64)
    engine_for(whole).train_batch(UNEVEN, SFTInterface())
    for (name, got), (_, wanted) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        # AdamW's first step is lr * sign(gradient): entries whose gradient is rounding noise may differ, so compare
        # where the gradient is anything else
        solid = gradients[name].abs() > 1e-10
        torch.testing.assert_close(got[solid], wanted[solid], rtol=1e-7, atol=1e-7, msg=name)


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=6),
    max_tokens=st.integers(1, 60),
)
def test_loss_and_counts_are_exact_for_any_batch(shapes: list[tuple[int, int]], max_tokens: int) -> None:
    batch = batch_of(*shapes)
    trained = sum(max(0, n - max(1, prompt)) for n, prompt in shapes)
    model = tiny_model(torch.float64)
    before = copy.deepcopy(model.state_dict())
    expected = reference_loss(model, batch).item() if trained else None

    metrics = engine_for(model, max_tokens).train_batch(batch, SFTInterface())

    assert metrics["loss_tokens"] == trained
    if expected is None:
        assert "loss" not in metrics
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    else:
        assert metrics["loss"] == pytest.approx(expected, rel=1e-10)


def test_float32_is_as_exact_as_float32_can_be() -> None:
    small, large = tiny_model(), tiny_model()
    cut = engine_for(small, 20).train_batch(UNEVEN, SFTInterface())
    whole = engine_for(large).train_batch(UNEVEN, SFTInterface())
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)


def test_evaluation_counts_every_token_of_the_set_once() -> None:
    model = tiny_model(torch.float64)
    engine, interface = engine_for(model, max_tokens=30), SFTInterface()
    parts = [batch_of((5, 2), (30, 29)), batch_of((17, 0))]
    totals = engine.evaluate(parts, interface)
    metrics = interface.metrics(totals)
    expected = reference_loss(model, gather(parts)).item()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-10)
    assert metrics["loss_tokens"] == 3 + 1 + 16
    assert 0 <= metrics["accuracy"] <= 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_has_no_dropout_and_training_has_its_own_random_stream() -> None:
    config = CONFIG.replace(residual_dropout=0.5)
    model = tiny_model(config=config)
    engine, interface = engine_for(model, seed=1), SFTInterface()
    assert engine.evaluate([UNEVEN], interface) == engine.evaluate([UNEVEN], interface)

    state = torch.get_rng_state()
    first = engine.train_batch(UNEVEN, interface)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)  # what others draw changes nothing
    again = engine_for(tiny_model(config=config), seed=1).train_batch(UNEVEN, interface)["loss"]
    other = engine_for(tiny_model(config=config), seed=2).train_batch(UNEVEN, interface)["loss"]
    assert again == first
    assert other != first


def test_it_overfits_32_rows_to_near_zero() -> None:
    torch.set_num_threads(1)
    batch = gather([sample(row, 8 + row % 5, 3) for row in range(32)])
    model = tiny_model()
    config = OptimizerConfig(lr=3e-3, warmup_steps=5)
    engine = TrainEngine(model, config, total_steps=120, max_tokens_per_microbatch=8192)
    for _ in range(120):
        metrics = engine.train_batch(batch, SFTInterface())
    assert metrics["loss"] < 0.02
    assert metrics["accuracy"] == 1.0


def test_bfloat16_learns_from_updates_smaller_than_its_own_steps() -> None:
    model = tiny_model(torch.bfloat16)
    head = model.head_weight
    head.data.fill_(1.0)  # the next larger bfloat16 is 1.0078
    config = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0)
    engine = TrainEngine(model, config, total_steps=30, max_tokens_per_microbatch=20)
    for _ in range(30):
        engine.train_batch(UNEVEN, SFTInterface())
    assert head.dtype == torch.bfloat16
    assert (head != 1.0).float().mean() > 0.5


def test_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype=float16 cannot be trained.*use bfloat16 or float32"):
        engine_for(tiny_model(torch.float16))


class Poisoned(SFTInterface):
    """The loss of samples with an even token at their start is not finite, or only its gradient."""

    def __init__(self, factor: float, *, only_gradient: bool = False) -> None:
        self.factor, self.only_gradient = factor, only_gradient

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        output = super().loss(network, batch)
        if int(batch["input_ids"][0]) % 2:
            return output
        loss = output.loss_sum * (1.0 if self.only_gradient else self.factor)
        if self.only_gradient and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * self.factor)
        return LossOutput(loss, output.stats)


EVEN = {f"row-{row}" for row in range(6) if int(sample(row, 2, 0).input_ids[0]) % 2 == 0}


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_anything_changes_and_names_the_samples(factor: float) -> None:
    model = tiny_model()
    engine = engine_for(model, max_tokens=20)
    engine.train_batch(UNEVEN, SFTInterface())
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(engine.state())
    assert 0 < len(EVEN) < 6
    with pytest.raises(NonFiniteError, match=r"step 2: the loss of .* is not finite \((nan|inf)\)") as e:
        engine.train_batch(UNEVEN, Poisoned(factor))
    carries_loss = {"row-0", "row-1", "row-2", "row-4", "row-5"}
    named = set(re.findall(r"'(row-\d)'", str(e.value)))
    assert named == EVEN & carries_loss
    assert "lower optimizer.lr" in str(e.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert engine.step == 1
    for name, value in engine.state().moments.items():
        assert torch.equal(value, state.moments[name])
    # nothing of the bad step is left: the next one is what it would have been
    clean = tiny_model()
    other = engine_for(clean, max_tokens=20)
    other.train_batch(UNEVEN, SFTInterface())
    assert engine.train_batch(UNEVEN, SFTInterface()) == other.train_batch(UNEVEN, SFTInterface())


def test_gradients_that_are_not_finite_name_the_samples_of_the_step() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match=r"the gradients are not finite \(norm nan\); samples of the step: 'row-"):
        engine_for(model).train_batch(UNEVEN, Poisoned(math.nan, only_gradient=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("only_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_is_not_finite_is_skipped_and_counted(dtype: torch.dtype, only_gradient: bool) -> None:
    model = tiny_model(dtype)
    engine = engine_for(model, config=dataclasses.replace(FLAT, on_nonfinite="skip"))
    assert engine.train_batch(UNEVEN, SFTInterface())["skipped_steps"] == 0
    before = copy.deepcopy(model.state_dict())
    metrics = engine.train_batch(UNEVEN, Poisoned(math.nan, only_gradient=only_gradient))
    assert metrics["skipped_steps"] == 1
    assert not math.isfinite(metrics["grad_norm"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert engine.train_batch(UNEVEN, SFTInterface())["skipped_steps"] == 1
    assert engine.step == 3
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_token_outside_the_vocabulary_is_named() -> None:
    model = tiny_model(config=CONFIG.replace(vocab_size=10))
    with pytest.raises(DataError, match=r"token \d+, but the model has tokens 0 to 9; .*model.resize_vocab=true"):
        engine_for(model).train_batch(UNEVEN, SFTInterface())


def test_weight_decay_spares_norms_and_biases() -> None:
    changes: dict[str, Any] = {
        "q_bias": True,
        "head_bias": True,
        "norm_bias": True,
        "qk_norm": "per_head",
        "qk_norm_bias": True,
        "moe": MoEConfig(4, 2, 16, layers=(1,)),
    }
    model = tiny_model(config=CONFIG.replace(**changes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(1.0)
    before = copy.deepcopy(model.state_dict())
    no_loss = OptimizerConfig(lr=1e-6, weight_decay=1e4, schedule="constant", warmup_steps=0)
    engine_for(model, config=no_loss).train_batch(UNEVEN, SFTInterface())
    for name, value in model.state_dict().items():
        decayed = torch.allclose(value, before[name] * (1 - 1e-2), atol=2e-6)
        assert decayed == ("norm" not in name and "bias" not in name), name


def test_a_layer_may_spare_its_parameters_from_weight_decay() -> None:
    class Spared(nn.Module):
        weight_decay = False

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.empty(3, 4))
            self.inner = nn.Linear(4, 4)

    assert decayed_parameters(nn.Sequential(Spared(), nn.Linear(2, 2))) == {"0.inner.weight", "1.weight"}
    assert decayed_parameters(nn.Linear(2, 2)) == {"weight"}


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    def moved(max_grad_norm: float) -> tuple[float, dict[str, float]]:
        model = tiny_model(torch.float64)
        before = copy.deepcopy(model.head_weight.detach())
        # eps far above the gradients makes AdamW's first step proportional to them
        config = OptimizerConfig(lr=1.0, eps=1e6, schedule="constant", warmup_steps=0, max_grad_norm=max_grad_norm)
        metrics = engine_for(model, config=config).train_batch(UNEVEN, SFTInterface())
        return (model.head_weight.detach() - before).norm().item(), metrics

    free, unclipped = moved(0)
    bound, clipped = moved(unclipped["grad_norm"] / 4)
    assert clipped["grad_norm"] == unclipped["grad_norm"]
    assert bound == pytest.approx(free / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0.0, r"optimizer\.lr=0\.0 must be greater than 0"),
        ("beta2", 1.0, r"optimizer\.beta2=1\.0 must be at least 0 and less than 1"),
        ("schedule", "cosin", r"optimizer\.schedule='cosin' is not one of .*did you mean 'cosine'"),
        ("warmup_ratio", 1.5, r"optimizer\.warmup_ratio=1\.5 must be between 0 and 1"),
        ("warmup_steps", -1, r"optimizer\.warmup_steps=-1 must be at least 0"),
        ("max_grad_norm", -1.0, r"optimizer\.max_grad_norm=-1\.0 must be at least 0"),
        ("on_nonfinite", "skp", r"optimizer\.on_nonfinite='skp' is not one of stop, skip; did you mean 'skip'"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**{field: value})
