"""Layers split between ranks: their collectives, the tokens of each rank, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, PluginError
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.layers import GatedMLP
from reallm.model.transformer import Transformer
from reallm.notices import notify_once
from reallm.parallel.mesh import Mesh
from reallm.parallel.parallelize import notify_of_unchecked_layers
from reallm.parallel.tensor_parallel import mappings
from reallm.parallel.tensor_parallel.apply import _RegionBoundary, _row_parallel_forward, check_splits
from reallm.plugins.checked import record_split_checked
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(vocab_size=51)
PACK = torch.arange(23) % 51, torch.tensor([0, 9, 10, 23])
HERE = "tests.parallel.tensor_parallel.test_apply"


class OwnMLP(GatedMLP):
    """A layer of a plugin."""


class OwnRowParallel(nn.Module):
    """A linear layer of a plugin, which adds its bias itself."""

    split = "row"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 48, generator=torch.Generator().manual_seed(1)))
        self.bias = nn.Parameter(torch.full((32,), 100.0))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@contextmanager
def counted(counts: Counter[str]) -> Iterator[None]:
    """Count the collectives of tensor parallelism."""
    originals = {
        name: getattr(mappings.GroupPeers, name)
        for name in ("all_reduce_sum", "all_reduce_max", "all_gather", "reduce_scatter")
    }

    def counting(name: str) -> None:
        def method(self: mappings.GroupPeers, x: Tensor) -> Tensor:
            counts[name] += 1
            return originals[name](self, x)

        setattr(mappings.GroupPeers, name, method)

    for name in originals:
        counting(name)
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(mappings.GroupPeers, name, method)


def collectives_of_a_step(rank: int, config: ReaLModelConfig, sequence_parallel: bool) -> dict[str, dict[str, int]]:
    torch.set_num_threads(1)
    model = ReaLModel(config, seed=3, mesh=Mesh.of("tp2"), sequence_parallel=sequence_parallel)
    counts: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter(), "inference": Counter()}
    tokens, cu_seqlens = PACK
    with counted(counts["forward"]):
        hidden = model.hidden(tokens, cu_seqlens)
    with counted(counts["backward"]):
        hidden.sum().backward()
    with counted(counts["inference"]), torch.no_grad():
        model.hidden(tokens, cu_seqlens)
    return {name: dict(each) for name, each in counts.items()}


def test_a_block_has_two_all_reduces_forward_and_two_backward():
    (counts, other) = on_ranks(2, collectives_of_a_step, CONFIG, False)
    assert counts == other
    # queries, keys and values share their input, so do gate and up; the embedding has one more
    assert counts == {
        "forward": {"all_reduce_sum": 2 * 2 + 1},
        "backward": {"all_reduce_sum": 2 * 2},
        "inference": {"all_reduce_sum": 2 * 2 + 1},
    }


def test_sequence_parallelism_has_reduce_scatters_and_all_gathers_instead():
    (counts, other) = on_ranks(2, collectives_of_a_step, CONFIG, True)
    assert counts == other
    assert counts["forward"] == {"all_reduce_sum": 1, "all_gather": 2 * 2 + 1, "reduce_scatter": 2 * 2}
    assert counts["backward"] == {"all_gather": 2 * 2 + 1, "reduce_scatter": 2 * 2}
    assert counts["inference"] == {"all_reduce_sum": 2 * 2 + 1}


def rows_in_norms(rank: int, config: ReaLModelConfig) -> tuple[list[int], list[int]]:
    """How many tokens norms of blocks see, in training and without gradients."""
    torch.set_num_threads(1)
    model = ReaLModel(config, seed=3, mesh=Mesh.of("tp4"), sequence_parallel=True)
    rows: list[int] = []
    for number in model.network.block_numbers:
        model.network.layers[str(number)].mlp_norm.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    model.hidden(*PACK)
    trained = list(rows)
    rows.clear()
    with torch.no_grad():
        model.hidden(*PACK)
    return trained, rows


@pytest.mark.parametrize("moe", [None, MoEConfig(4, 2, 24)], ids=["dense", "experts"])
def test_each_rank_has_its_tokens_between_layers(moe):
    for trained, inferred in on_ranks(4, rows_in_norms, CONFIG.replace(moe=moe)):
        assert trained == [6, 6]  # a fourth of 23, the last ones padded
        assert inferred == [23, 23]


def refusals(rank: int) -> None:
    own = CONFIG.replace(mlp=f"{HERE}:OwnMLP")
    with pytest.raises(ConfigError, match=rf"sequence parallelism does not work with {HERE}.OwnMLP \('layers.1.mlp'\)"):
        ReaLModel(own, mesh=Mesh.of("tp2"), sequence_parallel=True)
    model = ReaLModel(own, seed=3, mesh=Mesh.of("tp2"))
    with pytest.raises(ConfigError, match="model.compile=true does not work with tensor parallelism"):
        model.compile_blocks()
    with pytest.raises(ConfigError, match="tp=2 does not fit the model's 3 query heads; use tp=1 or 3"):
        ReaLModel(CONFIG.replace(n_q_heads=3, n_kv_heads=1), mesh=Mesh.of("tp2"))
    with pytest.raises(
        ConfigError, match=r"tp=2 does not fit the parameter 'layers.1.mlp.down.weight' \[32, 1\]: its 1 c"
    ):
        ReaLModel(CONFIG.replace(intermediate_size=1), mesh=Mesh.of("tp2"))
    with pytest.raises(ConfigError, match=r"tp2pp1dp1@1,0 splits parameters over ranks that must ascend"):
        ReaLModel(CONFIG, mesh=Mesh.of("tp2@1,0"))


def test_what_cannot_be_split_is_named():
    on_ranks(2, refusals)


def row_parallel_output(rank: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output [T, 32] of a plugin's layer on two ranks in bfloat16, and the gradient of its bias."""
    module = OwnRowParallel().to(torch.bfloat16)
    module.weight = nn.Parameter(module.weight.detach().chunk(2, dim=1)[rank])
    bias, peers = module.bias, mappings.GroupPeers(Mesh.of("tp2").tp)
    module.forward = _row_parallel_forward(module, _RegionBoundary(peers))
    out = module(x.chunk(2, dim=1)[rank])
    assert module.bias is bias
    out.float().sum().backward()
    assert bias.grad is not None
    return out.detach(), bias.grad


def test_a_bias_that_a_layer_adds_itself_is_added_once_and_costs_no_precision():
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    weight = OwnRowParallel().weight.detach().to(torch.bfloat16)
    partial = [a @ b.T for a, b in zip(x.chunk(2, dim=1), weight.chunk(2, dim=1), strict=True)]
    for out, grad in on_ranks(2, row_parallel_output, x):
        assert torch.equal(out, partial[0] + partial[1] + torch.full((32,), 100.0, dtype=torch.bfloat16))
        assert torch.equal(grad, torch.full((32,), 5.0, dtype=torch.bfloat16))


def logprobs_and_gradients(rank: int, tied: bool, temperature: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.set_num_threads(1)
    mesh = Mesh.of("tp2") if dist.is_initialized() else None
    model = ReaLModel(CONFIG.replace(tied_embeddings=tied, vocab_size=97), seed=3, mesh=mesh)
    hidden = model.hidden(*PACK)
    targets = (PACK[0] * 4) % 97
    logprobs = model.logprobs(hidden, targets, temperature)
    nll = model.cross_entropy(hidden, targets, temperature)
    ((logprobs * torch.linspace(-1, 1, 23)).sum() + 0.5 * nll.loss_sum).backward()
    names = ["layers.0.tokens.weight", *([] if tied else ["layers.3.out.weight"]), "layers.1.attn.q.weight"]
    return logprobs.detach(), nll.nll, {name: model.get_parameter(name).grad for name in names}


@pytest.mark.parametrize(("tied", "temperature"), [(False, 1.0), (True, 0.6)])
def test_log_probabilities_over_parts_of_the_vocabulary(tied, temperature):
    whole, _, whole_gradients = logprobs_and_gradients(0, tied, temperature)
    by_rank = on_ranks(2, logprobs_and_gradients, tied, temperature)
    for logprobs, nll, _ in by_rank:
        torch.testing.assert_close(logprobs, whole, rtol=1e-5, atol=1e-6)
        assert torch.equal(nll, -logprobs)
    for name, expected in whole_gradients.items():
        found = torch.cat([gradients[name] for *_, gradients in by_rank])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


class SplitsNothing(OwnMLP):
    """A layer of a plugin that says how it is split, while none of its parameters is."""

    split = "column_row"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        for projection in (self.gate, self.up, self.down):
            projection.shards = {"weight": None}
            del projection.split


def test_a_split_without_a_split_parameter_is_refused():
    model = Transformer(CONFIG.replace(mlp=f"{HERE}:SplitsNothing"))
    with pytest.raises(PluginError, match="SplitsNothing declares split='column_row', but none of its parameters is"):
        check_splits(model, model.parameter_shards(), model.module_splits())
    whole = Transformer(CONFIG.replace(mlp=f"{HERE}:OwnMLP"))
    check_splits(whole, whole.parameter_shards(), whole.module_splits())


def test_layers_that_were_never_checked_are_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = CONFIG.replace(mlp=f"{HERE}:OwnMLP")
    notify_of_unchecked_layers(CONFIG)
    assert not caplog.messages
    notify_of_unchecked_layers(config)
    notify_of_unchecked_layers(config)
    [message] = caplog.messages
    assert f"splits {HERE}:OwnMLP as it declares, which no check has verified" in message
    assert "`reallm plugins check`" in message
    notify_once.cache_clear()
    record_split_checked(config.mlp)
    notify_of_unchecked_layers(config)
    assert len(caplog.messages) == 1
