"""Runs of `rw` and `dpo` on up to four ranks give the numbers of one process, in any layout."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from reallm.algorithms.dpo.config import DPOConfig
from reallm.config.args import CallArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.experiments.run.runner import run
from reallm.launch.job import Job
from tests.experiments.checkpointing.test_resume import numbers
from tests.experiments.run.test_preferences import dpo, quiet_run, rw
from tests.helpers.ranks import on_ranks

LAYOUTS = {
    "dp2": ParallelArgs(dp=2),
    "fsdp2": ParallelArgs(dp=2, zero=3),
    "tp2": ParallelArgs(tp=2),
    "pp2": ParallelArgs(pp=2),
    "dp2tp2": ParallelArgs(dp=2, tp=2),
    "pp2dp2": ParallelArgs(dp=2, pp=2),
}
OF_ALL_KINDS = ("dp2tp2", "pp2dp2")
"""For most cases: what ranks divide is the same for all losses."""
EVERY: dict[str, dict[str, Any]] = {
    "rw": {"center_coef": 0.01},
    "sigmoid": {"rpo_alpha": 0.5},
    "live": {"ref_logprobs": "live"},
    "ipo": {"loss_type": "ipo"},
    "aot": {"loss_type": ["aot", "aot_unpaired"]},
    "kto": {"loss_type": "kto"},
    "orpo": {"loss_type": "orpo"},
}
# with a large eps, what AdamW does is smooth in the gradients, also where these are rounding noise
SMOOTH = OptimizerConfig(lr=1e-2, eps=1e-3, schedule="constant", warmup_steps=0)


def config(folder: Path, checkpoint: Path, case: str, **changes: Any) -> Any:
    make = rw if case == "rw" else dpo
    settings = {"optimizer": SMOOTH, "max_tokens_per_microbatch": 60, "max_steps": 3, **EVERY[case], **changes}
    return make(folder, checkpoint, **settings)


def train_all(rank: int, configs: list[Any]) -> None:
    """The runs whose layout has this rank."""
    torch.set_num_threads(1)
    for number, one in enumerate(configs):
        n = one.parallel.n_processes
        if rank < n:
            group = dist.distributed_c10d._get_default_store()
            store = dist.PrefixStore(f"{one.output_dir}/{one.name}/{number}", group)
            name = "dpo" if isinstance(one, DPOConfig) else "rw"
            run(one, name, name=name, console=Console(file=io.StringIO()), job=Job(rank, n, rank, n, store))


def assert_same_numbers(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("case", EVERY)
def test_layouts_give_the_numbers_of_one_process(tmp_path: Path, checkpoint: Path, case: str) -> None:
    whole = numbers(quiet_run(config(tmp_path, checkpoint, case, name="whole")).run_dir)
    layouts = LAYOUTS if case in ("rw", "sigmoid") else OF_ALL_KINDS
    configs = [config(tmp_path, checkpoint, case, name=layout, parallel=LAYOUTS[layout]) for layout in layouts]
    for size in (2, 4):
        on_ranks(size, train_all, [one for one in configs if one.parallel.n_processes == size])
    for one in configs:
        assert_same_numbers(numbers(tmp_path / "runs" / one.name), whole)


@pytest.mark.parametrize("case", ["live", "kto"])
def test_each_call_may_have_a_layout_of_its_own(tmp_path: Path, checkpoint: Path, case: str) -> None:
    calls = {
        "actor_train": CallArgs(layout="tp2pp2"),
        "actor_inf": CallArgs(layout="dp4"),
        "ref_inf": CallArgs(layout="dp2@2-3", offload=True),
    }
    if case == "live":
        calls.pop("actor_inf")
    settings = {"ref_logprobs": "live", "parallel": ParallelArgs(dp=4)}
    whole = numbers(quiet_run(config(tmp_path, checkpoint, case, name="whole", ref_logprobs="live")).run_dir)
    on_ranks(4, train_all, [config(tmp_path, checkpoint, case, name="split", **settings, **calls)])
    assert_same_numbers(numbers(tmp_path / "runs" / "split"), whole)
