"""Models that leave a GPU's memory and come back, layer by layer, in streams of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.namedarray import from_dict
from reallm.engine.real_model import ReaLModel
from reallm.model.config import ReaLModelConfig
from reallm.training.engine import TrainEngine

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run `tox run -e gpu` on a machine that has one"
)

CONFIG = ReaLModelConfig(
    n_layers=6, hidden_size=512, n_q_heads=8, n_kv_heads=4, head_dim=64, intermediate_size=1536, vocab_size=4096,
    max_positions=512,
)  # fmt: skip
BOUNDS = torch.tensor([0, 100, 356])


def make_model(**changes) -> ReaLModel:
    return ReaLModel(CONFIG, seed=3, device="cuda", **changes)


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


def traced(file: Path, run: Callable[[], object]) -> list[dict[str, Any]]:
    """What the GPU copies and computes, in order: `cat` gpu_memcpy or kernel, `ts` and `dur` in microseconds."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        run()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(file))
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("cat") in ("gpu_memcpy", "kernel")]
    return sorted(found, key=lambda event: float(event["ts"]))


def large_copies(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [
        event
        for event in events
        if event["cat"] == "gpu_memcpy" and kind in event["name"] and event["args"]["bytes"] > 1 << 20
    ]


@pytest.fixture(scope="module")
def large() -> ReaLModel:
    """Blocks of 0.2 GB, whose copies are long enough to be compared."""
    config = CONFIG.replace(hidden_size=2048, n_q_heads=16, n_kv_heads=4, head_dim=128, intermediate_size=6144)
    return ReaLModel(config, seed=3, device="cuda").eval()


@torch.no_grad()
def test_round_trip_is_bit_for_bit(large):
    before = {name: tensor.clone() for name, tensor in large.local_tensors().items()}
    for _ in range(2):
        large.async_offload()
        large.wait_for_offload()
        torch.full((1 << 28,), 7, dtype=torch.uint8, device="cuda")  # the memory is used by others meanwhile
        large.reload()
        assert all(torch.equal(tensor, before[name]) for name, tensor in large.local_tensors().items())


@pytest.mark.parametrize("kind", ["DtoH", "HtoD"])
@torch.no_grad()
def test_copies_go_through_pinned_memory(large, tmp_path, kind):
    """Their bandwidth is measured by `benchmarks/offload.py`."""

    def run() -> None:
        large.async_offload()
        large.wait_for_offload()
        large.reload()

    copies = large_copies(traced(tmp_path / "trace.json", run), kind)
    assert copies
    assert all("Pinned" in copy["name"] for copy in copies)


@pytest.mark.parametrize("stream", [False, True])
@torch.no_grad()
def test_layers_come_while_others_compute(large, tmp_path, stream):
    many, bounds = tokens().repeat(20), torch.arange(0, 20 * 356 + 1, 356)
    expected = large(many, bounds)
    large.async_offload(stream=stream)
    large.wait_for_offload()
    found: list[torch.Tensor] = []
    events = traced(tmp_path / "trace.json", lambda: found.append(large(many, bounds)))
    assert torch.equal(found[0], expected)
    kernels = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["cat"] == "kernel"]
    copies = [(event["ts"], event["ts"] + event["dur"]) for event in large_copies(events, "HtoD")]
    at_once = [copy for copy in copies if any(start < copy[1] and copy[0] < stop for start, stop in kernels)]
    assert len(at_once) > len(copies) // 2, "all but those of the first block can come while another one computes"
    large.reload()


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
