"""Every family in every layout of up to four ranks: losses, gradients, trained parameters and generated tokens are
those of one process.

What is compared is float32, and differs by the order in which numbers are added up: over parts of a dim, over ranks.
Relative to the largest number of a tensor that stays below 2e-5 in these sizes; `TOLERANCE` leaves some room, for three
optimizer steps carry differences on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm import OptimizerConfig, ReaLModel, from_dict
from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.namedarray import NamedArray
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.helpers.hf_grid import GRID, raw_config, save_hf
from tests.helpers.ranks import on_ranks

TOLERANCE = 1e-4
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # ranks draw masks of their own
N_BLOCKS = 4  # one for each stage of four
FAMILIES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mqa": {},
    "tied": {},
    "all-biases-tied": {},
    "rope-dynamic-new": {},
    "mistral-window": {},
    "mixtral": {},
    "qwen2-window": {},
    "qwen3-bias": {},
    "qwen3-moe-dense-layer": {},
    "gemma": {},
    "gemma2": {},
    "gemma3-seven-layers": {},
    "gpt2": NO_DROPOUT,
    "gpt2-untied": NO_DROPOUT,
    "phi3": {},
    "phi3-longrope": {},
}
"""Entries of the grid, and what changes besides the number of blocks. Their vocabulary of 97 divides by nothing."""

BY_TOKENS = " by tokens"
LAYOUTS = [
    *("dp2", "pp2", "tp2"),
    *("dp3", "pp3"),
    *("dp4", "pp4", "tp4", "dp2pp2", "dp2tp2", "pp2tp2"),
    *("fsdp2", "fsdp4", "fsdp2pp2", "fsdp2tp2"),
    *("tp2 by tokens", "tp4 by tokens", "pp2tp2 by tokens"),
]
"""Those "by tokens" with sequence parallelism."""
LENGTHS = [9, 17, 5, 12, 3, 21, 7]
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3, 2], [40, 41, 42, 43]]


@dataclass(frozen=True)
class Found:
    """What came out of one model in one process."""

    metrics: list[dict[str, float]]
    """Of each step."""
    tokens: list[list[int]]
    logprobs: list[list[float]]
    trained: dict[str, Tensor]
    """Parts of the parameters after the last step."""
    slices: dict[str, tuple[slice, ...]]
    """Which part of the whole each of them is."""


def a_batch(seed: int) -> NamedArray:
    generator = torch.Generator().manual_seed(seed)
    total = sum(LENGTHS)
    lengths = [[n] for n in LENGTHS]
    return from_dict(
        {
            "input_ids": torch.randint(0, 97, (total,), generator=generator),
            "loss_mask": torch.rand(total, generator=generator) < 0.6,
        },
        {"seqlens": {"input_ids": lengths, "loss_mask": lengths}, "ids": [f"s{i}" for i in range(len(LENGTHS))]},
    )


def results(folder: Path, layout: str | None, *, aux_loss: bool) -> Found:
    """Generate, then train three steps."""
    mesh = None if layout is None else Mesh.of(layout.removesuffix(BY_TOKENS))
    by_tokens = layout is not None and layout.endswith(BY_TOKENS)
    model = ReaLModel.from_pretrained(folder, mesh=mesh, sequence_parallel=by_tokens)
    made = model.generate(PROMPTS, max_new_tokens=6, temperature=0.8, seed=3, stop_token_ids=[1])
    coef = 0.05 if aux_loss and model.config.moe else None if model.config.moe is None else 0.0
    # a large eps: Adam's step is the gradient's sign where gradients are tiny, and would enlarge any difference
    options = OptimizerConfig(lr=1e-2, eps=1e-2, warmup_ratio=0.0, max_grad_norm=1.0)
    engine = TrainEngine(model, options, 3, 20, moe_aux_loss_coef=coef)  # 4 micro-batches or more
    metrics = [engine.train_batch(a_batch(seed), SFTInterface()) for seed in range(3)]
    return Found(
        metrics,
        [completion.token_ids for completion in made],
        [completion.logprobs for completion in made],
        {name: tensor.clone() for name, tensor in model.local_tensors().items()},
        {name: box.slices for name, box in model.boxes.items()},
    )


def on_a_rank(rank: int, root: str, layout: str, names: list[str], aux_loss: bool) -> dict[str, Found]:
    torch.set_num_threads(1)
    return {name: results(Path(root) / name, layout, aux_loss=aux_loss) for name in names}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name, changes in FAMILIES.items():
        raw = raw_config(name)
        blocks = "n_layer" if raw["model_type"] == "gpt2" else "num_hidden_layers"
        save_hf({**raw, blocks: max(N_BLOCKS, raw[blocks]), **changes}, folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(root) -> dict[tuple[str, bool], Found]:
    torch.set_num_threads(1)
    return {(name, aux): results(root / name, None, aux_loss=aux) for name in FAMILIES for aux in (False, True)}


def fits(name: str, layout: Layout) -> bool:
    """Whether the heads of an entry can be spread."""
    raw = raw_config(name)
    n_kv = raw.get("num_key_value_heads", raw.get("n_head"))
    return layout.tp <= 4 and (n_kv % layout.tp == 0 or layout.tp % n_kv == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_those_of_one_process(layout, root, alone):
    parsed = Layout.parse(layout.removesuffix(BY_TOKENS))
    aux_loss = parsed.dp == 1  # it depends on which samples go through the model together
    names = [name for name in FAMILIES if fits(name, parsed)]
    assert len(names) > 10
    by_rank = on_ranks(parsed.size, on_a_rank, str(root), layout, names, aux_loss, timeout_s=300)
    faults = []
    for name in names:
        expected = alone[name, aux_loss]
        for rank, found in enumerate(each[name] for each in by_rank):
            faults += [f"{name}, rank {rank}: {fault}" for fault in differences(found, expected)]
    assert not faults, "\n".join(faults[:40])


def differences(found: Found, expected: Found) -> list[str]:
    faults = []
    for step, (numbers, wanted) in enumerate(zip(found.metrics, expected.metrics, strict=True)):
        faults += [
            f"step {step}: {key} {numbers.get(key)} instead of {wanted[key]}"
            for key in ("loss", "grad_norm", "accuracy", "tokens", "aux_loss")
            if key in wanted and numbers.get(key) != pytest.approx(wanted[key], rel=TOLERANCE)
        ]
    if found.tokens != expected.tokens:
        faults.append(f"generated {found.tokens} instead of {expected.tokens}")
    elif any(
        abs(one - other) > TOLERANCE
        for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ):
        faults.append("log-probabilities of generated tokens differ")
    for name, part in found.trained.items():
        whole = expected.trained[name]
        wanted = whole[found.slices[name]]
        if part.shape != wanted.shape:
            faults.append(f"{name} has shape {list(part.shape)} instead of {list(wanted.shape)}")
        elif part.numel() and float((part - wanted).abs().max()) > TOLERANCE * float(whole.abs().max()):
            faults.append(f"{name} differs by {float((part - wanted).abs().max()):.2g} after three steps")
    return faults


@pytest.mark.parametrize("layout", ["dp2tp2", "pp2tp2", "fsdp2pp2"])
def test_the_same_twice_bit_for_bit(layout, root):
    names = ["gqa", "mixtral", "gemma2"]
    first, second = (
        on_ranks(Layout.parse(layout).size, on_a_rank, str(root), layout, names, True, timeout_s=300) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        for name in names:
            assert one[name].metrics == other[name].metrics
            assert one[name].tokens == other[name].tokens
            assert all(torch.equal(one[name].trained[key], other[name].trained[key]) for key in one[name].trained)


def test_every_model_type_of_the_grid_is_here():
    assert {GRID[name][0] for name in FAMILIES} == {model_type for model_type, _ in GRID.values()}
