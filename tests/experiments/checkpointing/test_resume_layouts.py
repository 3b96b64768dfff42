"""A run that was saved in one layout goes on in any other: bit for bit in the same one, else up to rounding."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reallm.algorithms.sft.config import SFTConfig
from reallm.checkpoint import distributed_save as saving
from reallm.checkpoint.checksums import CHECKSUMS
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.errors import CheckpointError, ConfigError, DataError
from reallm.experiments.checkpointing.state_file import Generators
from reallm.experiments.checkpointing.train_state import read_state
from reallm.experiments.run import runner
from reallm.experiments.run.runner import run
from reallm.experiments.runs.folder import RunFolder, has_state
from reallm.launch.job import Job
from reallm.plugins import registry
from reallm.seeding import seed_global_generators
from tests.helpers.jobs import Command, make_inputs
from tests.helpers.ranks import RankError, on_ranks

STEPS_BEFORE, STEPS = 3, 6
FSDP = ParallelArgs(dp=2, zero=2)
PIPELINE = ParallelArgs(pp=2)
ALL_KINDS = ParallelArgs(dp=1, tp=2, pp=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


# with a large eps, what AdamW does is smooth in the gradients, also where these are rounding noise
ADAMW = OptimizerConfig(lr=1e-3, eps=1e-3, schedule="constant", warmup_ratio=0.0)


def configuration(
    inputs: Path,
    output: Path,
    steps: int,
    parallel: ParallelArgs,
    dtype: str,
    optimizer: OptimizerConfig = ADAMW,
    **changes,
) -> SFTConfig:
    dataset = registry.get("dataset", "prompt_answer").config_class()(
        train_path=str(inputs / "train.jsonl"), max_seqlen=64, train_bs_n_seqs=4
    )
    return SFTConfig(
        model=ModelArgs(path=str(inputs / "model"), device="cpu", dtype=dtype),
        dataset=dataset,
        optimizer=optimizer,
        loggers=["jsonl"],
        max_tokens_per_microbatch=40,
        output_dir=str(output),
        max_steps=steps,
        parallel=parallel,
        **changes,
    )


def train(rank: int, n_ranks: int, config: SFTConfig, console: Console | None = None) -> None:
    """As one of a job's processes, after `torch.distributed` was set up; alone where there is one."""
    torch.set_num_threads(1)
    job = Job()
    if n_ranks > 1:
        store = dist.PrefixStore(config.output_dir, dist.distributed_c10d._get_default_store())
        job = Job(rank, n_ranks, rank, n_ranks, store)
    run(config, registry.get("algorithm", "sft"), job=job, console=console)


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
        ("float32", (4, ParallelArgs(dp=2, tp=2)), [(2, PIPELINE)]),
    ],
    ids=["fsdp", "pipeline-in-bfloat16", "alone", "tensor"],
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


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_state_of_other_shapes_goes_on_in_a_pipeline_and_alone(inputs, tmp_path, name):
    optimizer = OptimizerConfig(name=name, lr=1e-2, schedule="constant", warmup_ratio=0.0)
    losses = {}
    for layout in (ParallelArgs(pp=2), ParallelArgs()):
        folder = tmp_path / f"from-pp{layout.pp}"
        trained(layout.pp, configuration(inputs, folder, STEPS_BEFORE, layout, "float32", optimizer))
        (run_folder,) = folder.iterdir()
        for then in (ParallelArgs(pp=2), ParallelArgs()):
            copy = tmp_path / f"from-pp{layout.pp}-to-pp{then.pp}"
            shutil.copytree(folder, copy, symlinks=True)
            resume = str(copy / run_folder.name)
            config = configuration(inputs, copy, STEPS, then, "float32", optimizer, resume=resume)
            _, losses[layout.pp, then.pp] = trained(then.pp, config)
    for found in losses.values():
        # Muon rounds to bfloat16, so that other last bits of a gradient can become other eighth bits of an update
        assert found == pytest.approx(losses[1, 1], rel=2e-5 if name == "adafactor" else 1e-3)


def test_matrices_that_processes_would_split_are_refused_before_anything_is_loaded(inputs, tmp_path):
    optimizer = OptimizerConfig(name="muon")
    with pytest.raises(ConfigError, match=r"optimizer\.name=muon computes with whole matrices, which parallel\.dp=2"):
        configuration(inputs, tmp_path, STEPS, ParallelArgs(dp=2), "float32", optimizer)
    config = configuration(inputs, tmp_path, STEPS, ParallelArgs(), "float32", optimizer)  # dp follows from the job
    with pytest.raises(RankError, match=r"optimizer\.name=muon computes with whole matrices, which parallel\.dp=2"):
        on_ranks(2, train, 2, config)


def test_a_state_of_another_model_is_refused(inputs, tmp_path):
    config = configuration(inputs, tmp_path / "runs", STEPS_BEFORE, FSDP, "float32")
    trained(2, config)
    (folder,) = (tmp_path / "runs").iterdir()
    saved = json.loads((folder / "checkpoints" / "step-000003" / "config.json").read_text())
    saved["num_hidden_layers"] = 3
    (folder / "checkpoints" / "step-000003" / "config.json").write_text(json.dumps(saved))
    (folder / "checkpoints" / "step-000003" / CHECKSUMS).unlink()
    resumed = configuration(inputs, tmp_path / "runs", STEPS, ParallelArgs(), "float32", resume=str(folder))
    with pytest.raises(CheckpointError, match="layers"):
        train(0, 1, resumed)


@pytest.fixture(scope="module")
def saved(inputs, tmp_path_factory) -> Path:
    """The folder of a run that two ranks have saved after step 3."""
    output = tmp_path_factory.mktemp("saved")
    trained(2, configuration(inputs, output, STEPS_BEFORE, FSDP, "float32"))
    (folder,) = output.iterdir()
    return folder


def another_state(saved: Path, folder: Path) -> Path:
    """A copy of a run whose optimizer has stepped a wider model."""
    shutil.copytree(saved, folder, symlinks=True)
    for file in (folder / "checkpoints" / "last").resolve().joinpath("training_state", "model").glob("*.safetensors"):
        tensors = {
            name: torch.cat([tensor, tensor]) if "norm" in name and tensor.dim() else tensor
            for name, tensor in load_file(file).items()
        }
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
        (file.parent.parent / CHECKSUMS).unlink(missing_ok=True)
    return folder


def test_an_optimizer_of_another_model_is_one_line_of_one_rank(inputs, saved, tmp_path):
    """A rank that took its part of what is too large would not notice."""
    folder = another_state(saved, tmp_path / "runs" / "run")
    arguments = ["sft", f"resume={folder}", f"max_steps={STEPS}", "parallel.dp=1", "parallel.pp=2"]
    ended = Command(tmp_path, arguments).end()
    assert ended.code == 2
    (line,) = ended.errors
    assert "/training_state: the saved state does not fit the role 'model' ('layers." in line
    assert "has the shape [64], not [32]" in line


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(1))]


def train_and_draw(rank: int, config: SFTConfig) -> list[float]:
    """What code that draws from the global generators would have drawn in the step after the last save."""
    seed, runner.seed_global_generators = runner.seed_global_generators, lambda seed: seed_global_generators(rank)
    try:
        train(rank, 2, config)
    finally:
        runner.seed_global_generators = seed
    return draws()


def test_each_rank_goes_on_with_its_own_random_numbers(inputs, tmp_path):
    by_rank = on_ranks(2, train_and_draw, configuration(inputs, tmp_path, 1, FSDP, "float32"))
    assert by_rank[0] != by_rank[1]
    (checkpoint,) = tmp_path.glob("*/checkpoints/step-000001")
    before, found = Generators.capture(), []
    for rank in range(3):
        read_state(checkpoint, rank)[0].generators.restore()
        found.append(draws())
    before.restore()
    assert found == [*by_rank, by_rank[0]]  # a rank that was not there has those of the first


def train_on_a_disk_that_gets_full(rank: int, config: SFTConfig) -> tuple[str, str]:
    """What was printed, and the error; from the second save on rank 1 cannot write."""
    write = saving.write_file

    def full(path: Path, *arguments: Any) -> None:
        if rank == 1 and "step-000001" not in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments)

    printed = io.StringIO()
    saving.write_file = full
    try:
        with pytest.raises(DataError) as caught:
            train(rank, 2, config, Console(file=printed, width=400))
    finally:
        saving.write_file = write
    return printed.getvalue(), str(caught.value)


def test_what_one_rank_cannot_write_costs_that_save_and_the_run_goes_on_without_its_first_checkpoint(inputs, tmp_path):
    shutil.copytree(inputs, tmp_path / "inputs")
    config = configuration(tmp_path / "inputs", tmp_path / "runs", 3, FSDP, "float32", save_every=1, name="run")
    (printed, error), (nothing, same) = on_ranks(2, train_on_a_disk_that_gets_full, config)
    assert error == same
    assert error.startswith("rank 1: cannot write ")
    assert printed.count("saving failed: rank 1: cannot write ") == 1
    assert "step-000001 is still there" in printed
    assert nothing == ""
    folder = RunFolder(tmp_path / "runs" / "run")
    assert {path.name for path in folder.checkpoints.iterdir()} == {"step-000001", "last"}
    shutil.rmtree(tmp_path / "inputs" / "model")
    resumed = dataclasses.replace(config, resume="auto")
    on_ranks(2, train, 2, resumed)
    assert max(folder.saved_steps()) == 3


def train_and_die(rank: int, config: SFTConfig) -> None:
    """Rank 1 is gone in the middle of the second save."""
    write = saving.write_file

    def die(path: Path, *arguments: Any) -> None:
        if rank == 1 and "step-000002" in str(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, *arguments)

    saving.write_file = die
    train(rank, 2, config)


def test_killed_while_saving_the_last_whole_state_is_there(inputs, tmp_path):
    config = configuration(inputs, tmp_path, STEPS_BEFORE, FSDP, "float32", save_every=1, name="run")
    with pytest.raises(RankError):
        on_ranks(2, train_and_die, config)
    folder = RunFolder(tmp_path / "run")
    assert list(folder.saved_steps()) == [1]
    assert has_state(folder.checkpoint(1))
    run(dataclasses.replace(config, parallel=ParallelArgs(), resume="auto"), registry.get("algorithm", "sft"))
    assert max(folder.saved_steps()) == STEPS_BEFORE
    assert all(not path.name.startswith(".") for path in folder.checkpoints.iterdir())  # nor is anything left over
