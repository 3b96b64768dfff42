"""Correction biases of routers in training: which way they move, once for each step, and in every layout."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.model.config import MoEConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.router_stats import RouterStatsLog
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

MOE = MoEConfig(8, 2, 24, layers=(1, 2), scores="sigmoid", correction_bias=True, n_groups=4, top_k_groups=2)
CONFIG = TINY.replace(n_layers=3, init_std=0.3, moe=MOE)
OPTIONS = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0)
RATE = 0.01


def batch_of(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for n in lengths:
        ids = torch.randint(0, CONFIG.vocab_size, (n,), generator=generator)
        arrays = NamedArray(input_ids=ids, loss_mask=torch.ones(n, dtype=torch.bool))
        samples.append(arrays.with_metadata(seqlens={"input_ids": [[n]], "loss_mask": [[n]]}))
    return gather(samples)


LENGTHS = (5, 30, 17, 8, 40, 21)
BATCH = batch_of(*LENGTHS)


def model_of(dtype=torch.float64, **kwargs):
    return ReaLModel(CONFIG, dtype=dtype, seed=3, **kwargs)


def engine_of(model, max_tokens=8192, rate=RATE):
    return TrainEngine(model, OPTIONS, 10, max_tokens, moe_bias_update_rate=rate)


def biases_of(model):
    found = {name: each.clone() for name, each in model.local_tensors().items() if name.endswith("correction_bias")}
    return {name.removeprefix("layers."): each for name, each in found.items()}


def counts_of(model):
    """The tokens [L, X] of the batch that choose each expert."""
    network = model.train().network
    log = network.router_stats = RouterStatsLog()
    network.hidden(BATCH["input_ids"], torch.tensor([0, *LENGTHS]).cumsum(0))
    network.router_stats = None
    return torch.stack([each.counts for each in log.close()])


@pytest.mark.parametrize(("max_tokens", "mode"), [(8192, "none"), (40, "none"), (40, "full")])
def test_a_step_moves_biases_towards_the_mean_load(max_tokens, mode):
    model = model_of()
    model.gradient_checkpointing = mode
    counts = counts_of(model).double()
    engine_of(model, max_tokens).train_batch(BATCH, SFTInterface())
    wanted = RATE * (counts.mean(dim=1, keepdim=True) - counts).sign()
    found = biases_of(model)
    assert list(found) == ["2.mlp.router.correction_bias", "3.mlp.router.correction_bias"]
    torch.testing.assert_close(torch.stack(list(found.values())), wanted)


def test_without_the_option_they_stay():
    model = model_of()
    engine_of(model, rate=0.0).train_batch(BATCH, SFTInterface())
    assert not any(each.any() for each in biases_of(model).values())


def test_the_load_becomes_even():
    def worst_share():
        counts = counts_of(model).double()
        return (counts.max(dim=1).values / counts.mean(dim=1)).max().item()

    model = model_of()
    before, engine = worst_share(), engine_of(model)
    for _ in range(10):
        engine.train_batch(BATCH, SFTInterface())
    assert worst_share() < 0.8 * before


def test_in_bfloat16_small_steps_add_up_and_a_resumed_run_continues():
    model = model_of(torch.bfloat16)
    engine = engine_of(model)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.endswith("correction_bias"):
                each.fill_(8.0)  # where bfloat16 moves in steps of 2^-4
    engine.load_state(engine_of(model_of(torch.bfloat16)).state(weights=False))
    for _ in range(2):
        engine.train_batch(BATCH, SFTInterface())
    state = engine.state()
    kept = {name: each.clone() for name, each in state.weights.items() if name.endswith("correction_bias")}
    assert all(((each - 8.0).abs() <= 2 * RATE + 1e-6).all() and (each != 8.0).any() for each in kept.values())
    again = model_of(torch.bfloat16)
    resumed = engine_of(again)
    resumed.load_state(state)
    for one in (engine, resumed):
        one.train_batch(BATCH, SFTInterface())
    assert len(kept) == 2
    for name in kept:
        assert torch.equal(engine.state().weights[name], resumed.state().weights[name])


def on_a_rank(rank, layout):
    torch.set_num_threads(1)
    model = model_of(mesh=Mesh.of(layout))
    engine = engine_of(model, max_tokens=40)
    for _ in range(2):
        engine.train_batch(BATCH, SFTInterface())
    return biases_of(model)


@pytest.mark.parametrize("layout", ["dp2", "fsdp2", "pp2", "tp2"])
def test_layouts_move_them_alike(layout):
    alone = model_of()
    engine = engine_of(alone, max_tokens=40)
    for _ in range(2):
        engine.train_batch(BATCH, SFTInterface())
    parts = on_ranks(2, on_a_rank, layout)
    for name, wanted in biases_of(alone).items():
        found = [part[name] for part in parts if name in part]
        whole = torch.cat(found) if layout == "fsdp2" else found[0]
        torch.testing.assert_close(whole, wanted)


@pytest.mark.parametrize(
    ("config", "rate", "said"),
    [
        (TINY, 0.1, "moe_bias_update_rate=0.1 is for models whose router has a correction bias; leave it out"),
        (TINY.replace(moe=MoEConfig(4, 2)), 0.1, "is for models whose router has a correction bias"),
        (CONFIG, -0.1, "moe_bias_update_rate=-0.1 must be at least 0"),
        (CONFIG.replace(lora=LoRAConfig(2, 4.0, ("attn.q",))), 0.1, "which adapters leave as it is"),
    ],
)
def test_it_is_refused_where_it_has_no_meaning(config, rate, said):
    with pytest.raises(ConfigError, match=said):
        engine_of(ReaLModel(config, seed=3), rate=rate)
