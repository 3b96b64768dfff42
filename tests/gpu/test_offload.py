"""Models that leave a GPU's memory and come back, layer by layer, in streams of their own."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.sft import SFTInterface
from reallm.data.namedarray import from_dict
from reallm.engine.optimizer_config import OptimizerConfig
from reallm.engine.spread_model import SpreadModel
from reallm.engine.train import TrainEngine
from reallm.model.config import ReaLModelConfig

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run `tox run -e gpu` on a machine that has one"
)

CONFIG = ReaLModelConfig(
    n_layers=6, hidden_size=512, n_q_heads=8, n_kv_heads=4, head_dim=64, intermediate_size=1536, vocab_size=4096,
    max_positions=512,
)  # fmt: skip
BOUNDS = torch.tensor([0, 100, 356])


def make_model(**changes) -> SpreadModel:
    return SpreadModel(CONFIG, seed=3, device="cuda", **changes)


def tokens() -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (356,), generator=torch.Generator().manual_seed(0)).cuda()


@pytest.mark.parametrize("stream", [False, True])
@torch.no_grad()
def test_outputs_stay_the_same_and_memory_is_free(stream):
    model = make_model(dtype=torch.bfloat16).eval()
    expected, before = model(tokens(), BOUNDS), torch.cuda.memory_allocated()
    size = sum(parameter.nbytes for parameter in model.parameters())
    for _ in range(3):
        model.async_offload(stream=stream)
        assert torch.equal(model(tokens(), BOUNDS), expected), "while it is leaving"
        model.wait_for_offload()
        assert torch.cuda.memory_allocated() <= before - size + (1 << 20)
        for _ in range(2):
            assert torch.equal(model(tokens(), BOUNDS), expected)


def test_training_goes_on_bit_for_bit():
    mask = torch.ones(356, dtype=torch.bool)
    lengths = [[100], [256]]
    batch = from_dict(
        {"input_ids": tokens().cpu(), "loss_mask": mask},
        {"seqlens": {"input_ids": lengths, "loss_mask": lengths}, "ids": ["a", "b"]},
    )
    found = []
    for offloads in (False, True):
        engine = TrainEngine(make_model(dtype=torch.bfloat16), OptimizerConfig(lr=1e-3), 10, 1000)
        metrics = []
        for _ in range(3):
            if offloads:
                engine.async_offload()
                engine.wait_for_offload()
            metrics.append(engine.train_batch(batch, SFTInterface()))
        found.append((metrics, [value.cpu() for value in engine.state().weights.values()]))
    (plain, weights), (offloaded, others) = found
    assert plain == offloaded
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))
