"""Runs that are resumed on two ranks, as the command line reads them: under the plan that they have, or another one."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from reallm.cli.algorithm import load_configuration
from reallm.config.trust import TRUST_CODE
from reallm.errors import ConfigError
from reallm.experiments.run.runner import run
from reallm.experiments.runs.settings import read_settings
from reallm.launch.job import Job
from tests.experiments.checkpointing.test_resume import assert_same_run, numbers
from tests.helpers.ranks import on_ranks
from tests.helpers.reward_functions import VOWELS_OF_ANSWERS

CALLS = ("actor_gen", "ref_inf", "actor_train")


def trained(rank: int, size: int, arguments: list[str]) -> str:
    """What rank 0 prints in a run of `reallm grpo` with these arguments."""
    torch.set_num_threads(1)
    config = load_configuration("grpo", [], arguments).build()
    printed, job = io.StringIO(), Job()
    if size > 1:
        store = dist.PrefixStore(" ".join(arguments), dist.distributed_c10d._get_default_store())
        job = Job(rank, size, rank, size, store)
    run(config, "grpo", name="grpo", console=Console(file=printed, width=300), job=job)
    return printed.getvalue()


class Runs:
    """Runs in a folder: `whole` over four steps, `half` over two of them."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": "Say " + "so " * (i % 3) + f"{i}:"}) + "\n" for i in range(8)))
        self._settings = [
            f"actor.path={checkpoint}", "actor.device=cpu", "ref.device=cpu", f"dataset.train_path={prompts}",
            "dataset.train_bs_n_seqs=2", f"reward={VOWELS_OF_ANSWERS}", "reward_processes=1", "num_generations=2",
            "gen.max_new_tokens=4", "beta=0.1", "loggers=[jsonl]", f"output_dir={folder}", "optimizer.lr=1e-2",
            "optimizer.eps=1e-3", "optimizer.schedule=constant", "optimizer.warmup_steps=0",
        ]  # fmt: skip
        for name, max_steps in {"whole": 4, "half": 2}.items():
            keys = ["allocation=search", "actor_train.layout=dp2"]  # not all on one rank
            self.train(*self.first(name), f"max_steps={max_steps}", *keys)

    def first(self, name: str) -> list[str]:
        return [*self._settings, f"name={name}"]

    def train(self, *arguments: str, size: int = 2) -> str:
        printed: str = on_ranks(size, trained, size, list(arguments))[0]
        return printed

    def copy(self, name: str) -> Path:
        """A copy of the run that is half done."""
        return Path(shutil.copytree(self.folder / "half", self.folder / name, symlinks=True))

    def resume(self, name: str, *arguments: str, size: int = 2) -> str:
        """What is printed when a copy of the half run goes on to the end."""
        return self.train(f"resume={self.copy(name)}", "max_steps=4", TRUST_CODE, *arguments, size=size)

    def layouts(self, name: str) -> dict[str, str]:
        settings: dict[str, Any] = read_settings(self.folder / name / "config.yaml")
        return {call: settings[call]["layout"] for call in CALLS}

    def assert_same_up_to_order_of_sums(self, name: str) -> None:
        for found, expected in zip(numbers(self.folder / name), numbers(self.folder / "whole"), strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), "float32 sums in another order"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), checkpoint)


def test_the_plan_is_kept_and_numbers_go_on_bit_for_bit(runs: Runs) -> None:
    printed = runs.resume("same")
    assert "execution plan: as before, on 2 processes" in printed
    assert "allocation=" not in printed
    assert runs.layouts("same") == runs.layouts("half")
    assert_same_run(runs.folder / "same", runs.folder / "whole")


def test_the_command_that_has_started_it_keeps_the_plan_too(runs: Runs) -> None:
    runs.copy("again")
    before = read_settings(runs.folder / "again" / "config.yaml")
    other = dict.fromkeys(CALLS, "dp1@1")  # not what a search would find again
    text = (runs.folder / "again" / "config.yaml").read_text()
    for call in CALLS:
        text = text.replace(f"{call}:\n  layout: {before[call]['layout']}", f"{call}:\n  layout: {other[call]}")
    (runs.folder / "again" / "config.yaml").write_text(text)
    assert runs.layouts("again") == other
    printed = runs.train(*runs.first("again"), "resume=auto", "max_steps=4", "allocation=search")
    assert "allocation=" not in printed
    assert runs.layouts("again") == other
    runs.assert_same_up_to_order_of_sums("again")


@pytest.mark.parametrize(
    ("keys", "layouts"),
    [
        (["actor_gen.layout=dp1@1"], {"actor_gen": "dp1@1"}),
        (["allocation=d1p1m2"], dict.fromkeys(CALLS, "tp2")),
        (
            ["allocation=heuristic", "actor_gen.layout=tp2"],
            {"actor_gen": "tp2", "ref_inf": "dp2", "actor_train": "dp2"},
        ),
        (["allocation=manual", "parallel.pp=2"], dict.fromkeys(CALLS)),
    ],
    ids=["one call", "one layout", "heuristic", "manual"],
)
def test_it_goes_on_under_another_plan(runs: Runs, keys: list[str], layouts: dict[str, str | None]) -> None:
    name = "-".join(keys)
    printed = runs.resume(name, *keys)
    assert "execution plan: changed, on 2 processes; last digits may differ" in printed
    assert runs.layouts(name) == runs.layouts("half") | layouts
    runs.assert_same_up_to_order_of_sums(name)


def test_it_is_planned_anew_for_another_number_of_processes(runs: Runs) -> None:
    printed = runs.resume("alone", "allocation=search", size=1)
    assert "execution plan: changed, on 1 process instead of 2; last digits may differ" in printed
    runs.assert_same_up_to_order_of_sums("alone")


def test_a_plan_for_more_processes_than_there_are_is_refused(runs: Runs) -> None:
    config = load_configuration("grpo", [], [f"resume={runs.copy('refused')}", TRUST_CODE]).build()
    pattern = (
        r"the execution plan of this run takes 2 processes, but 1 was started; start as many \(torchrun "
        r"--nproc-per-node\), or add allocation=search to plan anew for 1"
    )
    with pytest.raises(ConfigError, match=pattern):
        run(replace(config, max_steps=4), "grpo", name="grpo", job=Job())


def test_as_many_processes_are_planned_for_as_the_run_has_had(runs: Runs) -> None:
    resume = [f"resume={runs.folder / 'half'}", TRUST_CODE]
    for keys in (["allocation=heuristic"], ["allocation=search"], ["allocation=d2"], []):
        assert load_configuration("grpo", [], [*resume, *keys]).build().n_processes == 2
    assert load_configuration("grpo", [], [*resume, "allocation=manual"]).build().n_processes == 1
