"""The load-balancing loss of models with experts in training: what it adds, once, and where there is none."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather, select
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.model.config import MoEConfig, RopeConfig
from reallm.model.moe.layer import load_balancing_loss
from reallm.model.router_stats import RouterStatsLog
from reallm.training.engine import TrainEngine
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(
    n_layers=3, norm_eps=1e-5, rope=None, init_std=0.3, moe=MoEConfig(4, 2, 24, aux_loss_coef=0.5, layers=(0, 2))
)
FLAT = OptimizerConfig(lr=1e-2, schedule="constant", warmup_steps=0, max_grad_norm=0)


def batch_of(*shapes):
    """Samples of (tokens, prompt tokens)."""
    samples = []
    for row, (n, n_prompt) in enumerate(shapes):
        ids = torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(row))
        seqlens = {"input_ids": [[n]], "loss_mask": [[n]]}
        samples.append(NamedArray(input_ids=ids, loss_mask=torch.arange(n) >= n_prompt).with_metadata(seqlens=seqlens))
    return gather(samples)


BATCH = batch_of((5, 2), (30, 29), (17, 0), (8, 8), (2, 1), (40, 3))


def tiny_model(dtype=torch.float64, config=CONFIG, mode="none"):
    model = ReaLModel(config, dtype=dtype, seed=3)
    model.gradient_checkpointing = mode
    return model


def step_of(model, batch=BATCH, max_tokens=8192, **kwargs):
    """The metrics of one step of the engine, and the gradients that it stepped with."""
    engine = TrainEngine(model, FLAT, 10, max_tokens, **kwargs)
    gradients = {}

    def remember():
        gradients.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    engine.before_optimizer_step = remember
    return engine.train_batch(batch, SFTInterface()), gradients


def written_out(model, max_tokens, coef):
    """Loss and load-balancing loss of a step, micro-batch by micro-batch, and the gradients."""
    network = model.train().network
    weight, losses, balances = SFTInterface().loss_weight(BATCH), [], []
    for rows in micro_batches(SFTInterface().n_tokens(BATCH), max_tokens):
        part = select(BATCH, rows)
        own_weight = SFTInterface().loss_weight(part)
        if own_weight:
            network.router_stats = RouterStatsLog()
            losses.append(SFTInterface().loss(network, part).loss_sum / weight)
            balances.append(load_balancing_loss(network.router_stats.close()) * own_weight / weight)
            network.router_stats = None
    (sum(losses) + coef * sum(balances)).backward()
    return sum(losses).item(), sum(balances).item(), {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("max_tokens", [20, 45, 8192])
def test_each_micro_batch_adds_its_loss_by_its_weight(max_tokens, mode):
    loss, balance, expected = written_out(tiny_model(), max_tokens, 0.5)
    metrics, gradients = step_of(tiny_model(mode=mode), max_tokens=max_tokens)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
    assert metrics["aux_loss"] == pytest.approx(balance, rel=1e-6)  # probabilities are summed in float32
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-8, msg=name)
    without = written_out(tiny_model(), max_tokens, 0.0)[2]["layers.1.mlp.router.weight"]
    assert (gradients["layers.1.mlp.router.weight"] - without).norm() > 1e-2 * without.norm()


def test_loss_and_gradients_are_those_of_transformers():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = CONFIG.replace(rope=RopeConfig(theta=1e6), moe=MoEConfig(4, 2, 24, aux_loss_coef=0.1))
    theirs = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=50, hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, num_local_experts=4, num_experts_per_tok=2,
            router_aux_loss_coef=0.1, output_router_logits=True, initializer_range=0.2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model = tiny_model(torch.float32, config)
    with torch.no_grad():
        for ours, parameter, cut in paired(model, theirs):
            ours.copy_(cut(parameter))

    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(5))
    out = theirs(input_ids=ids, labels=ids)
    out.loss.backward()
    samples = [
        NamedArray(input_ids=row, loss_mask=torch.ones(12, dtype=torch.bool)).with_metadata(
            seqlens={"input_ids": [[12]], "loss_mask": [[12]]}
        )
        for row in ids
    ]
    metrics, gradients = step_of(model, gather(samples))

    assert metrics["aux_loss"] == pytest.approx(out.aux_loss.item(), rel=1e-5)
    assert metrics["loss"] + 0.1 * metrics["aux_loss"] == pytest.approx(out.loss.item(), rel=1e-5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for ours, parameter, cut in paired(model, theirs):
        torch.testing.assert_close(gradients[names[ours]], cut(parameter.grad), rtol=1e-3, atol=1e-6)


def paired(model, theirs):
    """Our parameters beside those of transformers, and how ours is cut out of theirs."""

    def whole(tensor):
        return tensor

    halves = {"gate": lambda tensor: tensor[:, :24], "up": lambda tensor: tensor[:, 24:]}
    yield model.get_parameter("layers.0.tokens.weight"), theirs.model.embed_tokens.weight, whole
    yield model.get_parameter("layers.4.norm.weight"), theirs.model.norm.weight, whole
    yield model.get_parameter("layers.4.out.weight"), theirs.lm_head.weight, whole
    for number, layer in enumerate(theirs.model.layers, 1):
        block = model.network.layers[str(number)]
        yield block.attn_norm.weight, layer.input_layernorm.weight, whole
        yield block.mlp_norm.weight, layer.post_attention_layernorm.weight, whole
        for name in "qkvo":
            yield getattr(block.attn, name).weight, getattr(layer.self_attn, f"{name}_proj").weight, whole
        yield block.mlp.router.weight, layer.mlp.gate.weight, whole
        yield block.mlp.experts.down.weight, layer.mlp.experts.down_proj, whole
        for name, half in halves.items():
            yield getattr(block.mlp.experts, name).weight, layer.mlp.experts.gate_up_proj, half


def test_full_checkpointing_notes_nothing_when_blocks_run_again():
    network = tiny_model(mode="full").train().network
    network.router_stats = notes = RouterStatsLog()
    loss = SFTInterface().loss(network, BATCH).loss_sum
    routing = notes.close()
    assert len(routing) == 2  # blocks 0 and 2
    assert sum(each.n_tokens for each in routing) == 2 * 102
    loss.backward()
    assert notes.close() == []


def test_the_weight_of_the_loss_may_be_given():
    dense, given = written_out(tiny_model(), 8192, 0.0)[2], written_out(tiny_model(), 8192, 2.0)[2]
    metrics, gradients = step_of(tiny_model(), moe_aux_loss_coef=2.0)
    torch.testing.assert_close(gradients["layers.1.mlp.router.weight"], given["layers.1.mlp.router.weight"])
    assert "aux_loss" in metrics
    metrics, gradients = step_of(tiny_model(), moe_aux_loss_coef=0.0)
    torch.testing.assert_close(gradients["layers.1.mlp.router.weight"], dense["layers.1.mlp.router.weight"])
    assert "aux_loss" not in metrics


def test_evaluation_has_none_and_nothing_is_noted_outside_of_a_step():
    model = tiny_model()
    engine = TrainEngine(model, FLAT, 10, 8192)
    assert engine.evaluate([BATCH], SFTInterface()).stats.keys() == {"correct"}
    engine.train_batch(BATCH, SFTInterface())
    assert model.network.router_stats is None

    class Failing(SFTInterface):
        def loss(self, network, batch):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        engine.train_batch(BATCH, Failing())
    assert model.network.router_stats is None


def test_bfloat16_adds_it_too():
    metrics = TrainEngine(tiny_model(torch.bfloat16), FLAT, 10, 45).train_batch(BATCH, SFTInterface())
    exact, _ = step_of(tiny_model(), max_tokens=45)
    assert metrics["aux_loss"] == pytest.approx(exact["aux_loss"], rel=0.1)  # some tokens choose other experts


def test_a_weight_that_cannot_be_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"model\.moe_aux_loss_coef=0\.1 is for models with experts; leave it out"):
        TrainEngine(tiny_model(config=CONFIG.replace(moe=None)), FLAT, 10, 8192, moe_aux_loss_coef=0.1)
    with pytest.raises(ConfigError, match=r"model\.moe_aux_loss_coef=-1\.0 must be at least 0"):
        TrainEngine(tiny_model(), FLAT, 10, 8192, moe_aux_loss_coef=-1.0)
