"""Settings of runs: how they are compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from reallm.config.args import CallArgs, ModelArgs
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder, rank_file
from reallm.experiments.runs.settings import diff, n_processes_of, of_plan, without_parallel


def test_options_of_the_optimizer_that_are_null_have_its_defaults() -> None:
    before = {"optimizer": {"name": "adamw", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}}
    now = {"optimizer": {"name": "adamw", "beta1": None, "beta2": 0.98, "eps": None}}
    assert diff(before, now) == {"optimizer.beta2": (0.95, 0.98)}


def test_a_run_without_the_name_of_its_optimizer_has_the_default_one() -> None:
    before = {"optimizer": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}}
    now = {"optimizer": {"name": "adamw", "beta1": None, "beta2": None, "eps": None}}
    assert diff(before, now, now) == {}


def test_where_calls_are_computed_does_not_change_what_a_run_computes() -> None:
    keys = "parallel.dp", "actor_gen.layout", "ref_inf.offload", "ref_inf.max_tokens_per_microbatch", "allocation"
    changed = dict.fromkeys(keys, (None, "dp2"))
    others = "seed", "optimizer.lr", "dataset.layout", "actor.max_tokens_per_microbatch", "max_tokens_per_microbatch"
    kept = dict.fromkeys(others, (1, 2))
    call, settings = asdict(CallArgs()), {"actor": asdict(ModelArgs(path="x")), "optimizer": {"lr": 1e-5}}
    settings |= {"actor_gen": call, "ref_inf": call}
    assert without_parallel({**changed, **kept}, settings) == kept
    assert of_plan({**changed, **kept}, settings).keys() == changed.keys() - {"allocation"}


def test_a_run_had_the_processes_that_saved_it_though_its_plan_may_leave_some_idle(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"parallel": {"dp": 1, "pp": 1, "tp": 1}, "actor_gen": {"layout": "dp2"}})
    assert n_processes_of(folder) == 2
    state = folder.checkpoint(4) / TRAINING_STATE
    state.mkdir(parents=True)
    for name in ("state.json", *map(rank_file, (1, 2, 3))):
        (state / name).write_text("{}")
    assert n_processes_of(folder) == 4
