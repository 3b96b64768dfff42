"""The memory estimate against what a real step has alive."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.model import linear_cross_entropy
from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameters import n_parameters, n_trained
from reallm.model.products import linear as products
from reallm.model.quantized import quantized_layers
from reallm.model.transformer import Transformer
from reallm.training import memory
from reallm.training.memory import AliveBytes, estimate, estimate_call, kv_cache_bytes, size_text

CONFIG = ReaLModelConfig(
    n_layers=7, hidden_size=128, n_q_heads=4, n_kv_heads=2, head_dim=32, intermediate_size=256, vocab_size=500,
    max_positions=512,
)  # fmt: skip
LORA = LoRAConfig(8, 16.0, ("attn.q", "attn.v", "mlp.gate", "mlp.up", "mlp.down"))
LENGTHS = (300, 300, 100, 12)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where operators are watched, as `AliveBytes` does, torch computes products."""
    monkeypatch.setattr(products, "linear_backend", lambda: "torch")


def alive_in_a_step(config: ReaLModelConfig, gradient_checkpointing: Any) -> int:
    """The most bytes alive beside parameters and gradients, with real tensors through the real loss."""
    model = Transformer(config).train()
    model.init_weights(0)
    model.gradient_checkpointing = gradient_checkpointing
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    samples = [
        NamedArray(
            input_ids=torch.arange(n) % config.vocab_size, loss_mask=torch.ones(n, dtype=torch.bool)
        ).with_metadata(seqlens={"input_ids": ((n,),), "loss_mask": ((n,),)})
        for n in LENGTHS
    ]
    alive = AliveBytes()
    with alive:
        SFTInterface().loss(model, gather(samples)).loss_sum.backward()
    return alive.peak


@pytest.mark.parametrize("gradient_checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 50},
        {"attn_softcap": 20.0},
        {"tied_embeddings": True, "qk_norm": "head"},
        {"n_layers": 3},
        {
            "norm_placement": "sandwich",
            "norm_offset": 1.0,
            "qk_norm": "per_head",
            "rope": (None, RopeConfig(interleaved=True, rotary_dim=8)) * 3 + (None,),
        },
        {"parallel_residual": True, "norm": "layer", "rope": None, "learned_positions": True, "head_bias": True},
        {"moe": MoEConfig(8, 4, 512, layers=(3, 4, 5, 6))},  # a block with experts takes several times as much
        {"vocab_size": 40_000},  # of few blocks the head's gradients are the peak, of many the activations
        {"vocab_size": 40_000, "n_layers": 14, "tied_embeddings": True},
        {"lora": LORA, "vocab_size": 5_000},
        {"lora": LORA, "n_layers": 1},
    ],
)
def test_activations_are_those_of_a_real_step(changes: dict[str, Any], gradient_checkpointing: str) -> None:
    config = CONFIG.replace(**changes)
    told = estimate(config, torch.float32, CPU, LENGTHS, gradient_checkpointing=gradient_checkpointing)
    assert told.activations is not None
    # never much too low; with scores or masks all sequences count as the longest, which may be too high
    assert alive_in_a_step(config, gradient_checkpointing) == pytest.approx(told.activations, rel=0.1) or (
        alive_in_a_step(config, gradient_checkpointing) < told.activations
        and ("attn_softcap" in changes or "sliding_window" in changes)
    )


def test_the_rest_follows_from_the_sizes() -> None:
    n = sum(parameter.numel() for parameter in Transformer(CONFIG).parameters())
    single = estimate(CONFIG, torch.float32, CPU, LENGTHS)
    assert (single.parameters, single.gradients, single.optimizer) == (4 * n, 4 * n, 8 * n)
    half = estimate(CONFIG, torch.bfloat16, CPU, LENGTHS)
    # gradients are summed in float32, and the optimizer has a float32 copy of each parameter
    assert (half.parameters, half.gradients, half.optimizer) == (2 * n, 4 * n, 12 * n)
    assert single.total == 16 * n + (single.activations or 0) + single.fragmentation
    assert estimate(CONFIG, torch.float32, torch.device("meta"), LENGTHS).fragmentation == 0
    assert f"activations at {sum(LENGTHS)} tokens" in str(single)


def test_of_adapters_gradients_and_state_are_float32_and_the_rest_has_none() -> None:
    config = CONFIG.replace(lora=LORA)
    n, trained = n_parameters(CONFIG), n_trained(config)
    half = estimate(config, torch.bfloat16, CPU, LENGTHS)
    assert (half.parameters, half.gradients, half.optimizer) == (2 * n + 4 * trained, 4 * trained, 8 * trained)


def test_checkpointing_saves_memory() -> None:
    none, selective, full = (
        estimate(CONFIG, torch.float32, CPU, LENGTHS, gradient_checkpointing=kind).activations or 0
        for kind in ("none", "selective", "full")
    )
    assert none > selective > full > 0


def test_a_critic_and_dropout_can_be_traced() -> None:
    config = CONFIG.replace(is_critic=True, residual_dropout=0.1, attn_dropout=0.1)
    for kind in ("none", "selective", "full"):
        assert estimate(config, torch.float32, CPU, LENGTHS, gradient_checkpointing=kind).activations


def test_a_network_that_cannot_be_traced_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> int:
        raise RuntimeError("an operation without a fake implementation")

    monkeypatch.setattr(memory, "_trace_step", fail)
    told = estimate(CONFIG, torch.float32, CPU, LENGTHS)
    assert told.activations is None
    assert told.total == told.persistent + told.fragmentation > 0
    assert "activations at 712 tokens unknown" in str(told)


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(300_000, "0.3 MiB"), (42 << 20, "42 MiB"), (3 << 29, "1.5 GiB"), (24 << 30, "24 GiB")]
)
def test_sizes_read_well(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text


def test_a_sequence_longer_than_the_learned_positions_is_told_before_training() -> None:
    config = CONFIG.replace(rope=None, learned_positions=True, max_positions=256)
    with pytest.raises(DataError, match="a sequence has 300 tokens, but the model has learned 256 positions"):
        estimate(config, torch.float32, CPU, LENGTHS)
    assert estimate(config, torch.float32, CPU, (200, 200)).activations  # of two that fit, no longer one is made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_critic": True},
        {"vocab_size": 40_000},
        {"attn_softcap": 20.0},
        {"moe": MoEConfig(8, 4, 512, layers=(3, 4, 5, 6))},
        {"n_layers": 14, "intermediate_size": 1024},
    ],
)
def test_a_call_without_training_takes_what_a_real_one_does(changes: dict[str, Any]) -> None:
    config = CONFIG.replace(**changes)
    told = estimate_call(config, torch.float32, CPU, LENGTHS)
    model = ReaLModel(config)
    tokens = torch.arange(sum(LENGTHS)) % config.vocab_size
    bounds = torch.tensor([0, *accumulate(LENGTHS)])
    alive = AliveBytes()
    with alive:
        model.scores(tokens, bounds) if config.is_critic else model.token_logprobs(tokens, bounds)
    assert told.activations == pytest.approx(alive.peak, rel=0.15) or (
        "attn_softcap" in changes and told.activations is not None and alive.peak < told.activations
    )
    assert told.parameters == sum(parameter.nbytes for parameter in model.parameters())
    assert told.gradients == told.optimizer == 0
    assert "gradients" not in str(told)


def test_the_kv_cache_is_that_of_the_network() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        expected = 2 * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim * dtype.itemsize
        assert kv_cache_bytes(CONFIG, dtype, 300, 4) == 300 * expected


@pytest.mark.parametrize("gradient_checkpointing", [None, "none", "selective", "full"])
@pytest.mark.parametrize(
    "changes", [{}, {"is_critic": True}, {"sliding_window": 50}, {"attn_softcap": 20.0}, {"norm": "layer"}]
)
def test_the_meta_device_takes_what_other_devices_take(changes: dict[str, Any], gradient_checkpointing: Any) -> None:
    config, lengths = CONFIG.replace(**changes), (300, 300)
    meta, fake = (
        memory.traced_activations(config, torch.bfloat16, torch.device(device), lengths, gradient_checkpointing)
        for device in ("meta", "cpu")
    )
    assert meta is not None
    assert fake is not None
    # softmax in place is for CPUs alone: elsewhere weights and logits of a chunk are there at the same time
    more = 0 if config.is_critic else 4 * config.vocab_size * sum(lengths)
    if gradient_checkpointing == "full":  # torch's does not compute the block's last operation again
        more += 2 * config.hidden_size * sum(lengths)
        more += 2 * 2  # the number at which our backward pass begins, and its gradient
    assert fake <= meta <= fake + more


def test_on_the_meta_device_a_few_chunks_of_logits_take_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config, n_tokens = CONFIG.replace(vocab_size=5003), 600
    n_bytes = 4 * config.vocab_size * 70  # 9 chunks, of which the last is smaller
    monkeypatch.setattr(linear_cross_entropy, "LOGIT_CHUNK_BYTES", {"cpu": n_bytes, "meta": n_bytes})
    meta, fake = (
        memory.traced_activations(config, torch.bfloat16, torch.device(device), [n_tokens], "none")
        for device in ("meta", "cpu")
    )
    assert meta is not None
    assert fake is not None
    assert fake <= meta <= fake + n_bytes  # softmax in place is for CPUs alone


def test_a_base_in_4_bits_takes_an_eighth_of_float32() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
    targets = ("attn.q", "mlp.down")
    dense, quantized = (
        CONFIG.replace(**sizes, lora=LoRAConfig(8, 16.0, targets, quantize_base=kind)) for kind in (None, "nf4")
    )
    weights = sum(layer.in_features * layer.out_features for layer in quantized_layers(Transformer(quantized)).values())
    whole, small = (estimate(each, torch.float32, CPU, LENGTHS) for each in (dense, quantized))
    saved = whole.parameters - small.parameters
    assert (4 * weights - saved) / (4 * weights) == pytest.approx(1 / 8, rel=0.05)
    assert (small.gradients, small.optimizer) == (whole.gradients, whole.optimizer)
    assert small.activations is not None
    assert whole.activations is not None
    # the backward pass makes one weight at a time
    assert 0 <= small.activations - whole.activations <= 4 * 512 * 1024
    assert estimate_call(quantized, torch.bfloat16, CPU, LENGTHS).activations is not None
