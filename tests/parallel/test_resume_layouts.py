"""A run that was saved in one layout goes on in any other: bit for bit in the same one, else up to rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from reallm.engine.optimizer_config import OptimizerConfig
from reallm.errors import CheckpointError
from reallm.experiments.config import ModelArgs
from reallm.experiments.parallel_config import ParallelArgs
from reallm.experiments.runner import run
from reallm.experiments.sft import SFTConfig
from reallm.parallel.job import Job
from reallm.plugins import registry
from tests.helpers.jobs import make_inputs
from tests.helpers.ranks import on_ranks

STEPS_BEFORE, STEPS = 3, 6
FSDP = ParallelArgs(dp=2, zero=2)
PIPELINE = ParallelArgs(pp=2)
ALL_KINDS = ParallelArgs(dp=1, tp=2, pp=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def configuration(inputs: Path, output: Path, steps: int, parallel: ParallelArgs, dtype: str, **changes) -> SFTConfig:
    dataset = registry.get("dataset", "prompt_answer").config_class()(
        train_path=str(inputs / "train.jsonl"), max_seqlen=64, train_bs_n_seqs=4
    )
    return SFTConfig(
        model=ModelArgs(path=str(inputs / "model"), device="cpu", dtype=dtype),
        dataset=dataset,
        # with a large eps, what AdamW does is smooth in the gradients, also where these are rounding noise
        optimizer=OptimizerConfig(lr=1e-3, eps=1e-3, schedule="constant", warmup_ratio=0.0),
        loggers=["jsonl"],
        max_tokens_per_microbatch=40,
        output_dir=str(output),
        max_steps=steps,
        parallel=parallel,
        **changes,
    )


def train(rank: int, n_ranks: int, config: SFTConfig) -> None:
    """As one of a job's processes, after `torch.distributed` was set up; alone where there is one."""
    torch.set_num_threads(1)
    job = Job()
    if n_ranks > 1:
        store = dist.PrefixStore(config.output_dir, dist.distributed_c10d._get_default_store())
        job = Job(rank, n_ranks, rank, n_ranks, store)
    run(config, registry.get("algorithm", "sft"), job=job)


def trained(n_ranks: int, config: SFTConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Tensors of the last checkpoint, its state included, and all losses."""
    on_ranks(n_ranks, train, n_ranks, config)
    (folder,) = (path for path in Path(config.output_dir).iterdir() if path.is_dir())
    checkpoint, found = folder / "checkpoints" / f"step-{config.max_steps:06d}", {}
    for file in checkpoint.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return found, [record["train/loss"] for record in records if "train/loss" in record]


@pytest.mark.parametrize(
    ("dtype", "before", "after"),
    [
        ("float32", (2, FSDP), [(2, FSDP), (1, ParallelArgs()), (4, ALL_KINDS)]),
        ("bfloat16", (2, PIPELINE), [(2, PIPELINE), (2, FSDP)]),
        ("float32", (1, ParallelArgs()), [(2, ParallelArgs(dp=2))]),
    ],
    ids=["fsdp", "pipeline-in-bfloat16", "alone"],
)
def test_it_goes_on_in_any_layout(inputs, tmp_path, dtype, before, after):
    n_before, parallel = before
    whole, losses = trained(n_before, configuration(inputs, tmp_path / "whole", STEPS, parallel, dtype))
    trained(n_before, configuration(inputs, tmp_path / "first", STEPS_BEFORE, parallel, dtype))
    for number, (n_ranks, layout) in enumerate(after):
        shutil.copytree(tmp_path / "first", tmp_path / f"then-{number}", symlinks=True)
        (folder,) = (tmp_path / f"then-{number}").iterdir()
        resumed = configuration(inputs, folder.parent, STEPS, layout, dtype, resume=str(folder))
        found, all_losses = trained(n_ranks, resumed)
        assert found.keys() == whole.keys()
        if layout == parallel:
            assert all_losses == losses
            assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
            continue
        assert all_losses == pytest.approx(losses, rel=2e-5 if dtype == "float32" else 2e-2)
        for name, tensor in whole.items():
            if dtype == "float32":
                torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6, msg=name)


def test_a_state_of_another_model_is_refused(inputs, tmp_path):
    config = configuration(inputs, tmp_path / "runs", STEPS_BEFORE, FSDP, "float32")
    trained(2, config)
    (folder,) = (tmp_path / "runs").iterdir()
    saved = json.loads((folder / "checkpoints" / "step-000003" / "config.json").read_text())
    saved["num_hidden_layers"] = 3
    (folder / "checkpoints" / "step-000003" / "config.json").write_text(json.dumps(saved))
    resumed = configuration(inputs, tmp_path / "runs", STEPS, ParallelArgs(), "float32", resume=str(folder))
    with pytest.raises(CheckpointError, match="layers"):
        train(0, 1, resumed)
