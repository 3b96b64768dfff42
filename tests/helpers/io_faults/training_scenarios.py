"""Runs of SFT, DPO and GRPO with faults: new ones, and such as were killed before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.helpers.io_faults.results import LOST_WHEN_TOLD, TOLD, files_of, state_of
from tests.helpers.io_faults.sweep import Scenario
from tests.helpers.io_faults.targets import run_until_killed, run_until_second_step, run_with_cache
from tests.helpers.jobs import sft

RUN = ("name=run", "resume=auto", "max_steps=1")


def training_arguments(inputs: Path, folder: Path, *more: str) -> list[str]:
    """A run of four steps that saves and evaluates after each second one, and goes on if it is there."""
    return sft(
        inputs, folder, "name=run", "resume=auto", "max_steps=4", "epochs=4", "save_every=2", "eval_every=2",
        "keep_last=1", "best_metric=eval/loss", "eval_generations=1", "eval_max_new_tokens=2",
        f"dataset.valid_path={inputs / 'valid.jsonl'}", f"dataset.cache_dir={folder / 'cache'}", *more,
    )  # fmt: skip


def training(inputs: Path, *more: str) -> Scenario:
    """A new run."""
    return Scenario(
        lambda folder: training_arguments(inputs, folder, *more),
        lambda folder, ended: state_of(folder),
        inputs=[inputs],
        told=LOST_WHEN_TOLD,
        target=run_with_cache,
    )


def resuming(inputs: Path, *more: str) -> Scenario:
    """A run that was killed in its fourth step, after a save in its second."""
    return replace(training(inputs, *more), killed_by=run_until_killed)


def reading_compressed(inputs: Path) -> Scenario:
    """A step on compressed rows, whose tokens are cached."""

    def arguments(folder: Path) -> list[str]:
        run = [one for one in sft(inputs, folder, *RUN) if not one.startswith("dataset.train_path=")]
        return [*run, f"dataset.cache_dir={folder / 'cache'}", f"dataset.train_path={inputs / 'train.jsonl.gz'}"]

    return caching(inputs, arguments)


def scoring_ahead(inputs: Path) -> Scenario:
    """A step of DPO on pairs that the reference has scored before."""

    def arguments(folder: Path) -> list[str]:
        return [
            "dpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", "ref_logprobs=cache",
            f"dataset.train_path={inputs / 'pairs.jsonl'}", "dataset.train_bs_n_seqs=2", "loggers=[jsonl]",
            *RUN, f"output_dir={folder}", f"dataset.cache_dir={folder / 'cache'}",
        ]  # fmt: skip

    return caching(inputs, arguments)


def rewarding(inputs: Path, *more: str) -> Scenario:
    """A run of GRPO with a reward function in a process of its own."""
    return caching(inputs, lambda folder: _grpo(inputs, folder, *more))


def resuming_rewarding(inputs: Path, *more: str) -> Scenario:
    """Such a run that was killed in its second step, after a save in its first."""
    return replace(rewarding(inputs, *more), killed_by=run_until_second_step)


def _grpo(inputs: Path, folder: Path, *more: str) -> list[str]:
    return [
        "grpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", f"dataset.train_path={inputs / 'prompts.jsonl'}",
        "dataset.train_bs_n_seqs=2", f"reward={inputs / 'rewards.py'}:distinct", "reward_processes=1",
        "num_generations=2", "gen.max_new_tokens=4", "max_steps=2", "epochs=2", "save_every=1", "keep_last=1",
        "timeline=true", "loggers=[jsonl]", "name=run", "resume=auto", f"output_dir={folder}",
        f"dataset.cache_dir={folder / 'cache'}", *more,
    ]  # fmt: skip


def caching(inputs: Path, arguments: Callable[[Path], list[str]]) -> Scenario:
    """A command that may cache tokens, judged by all files that it leaves."""
    return Scenario(
        arguments, lambda folder, ended: files_of(folder), inputs=[inputs], told=TOLD, target=run_with_cache
    )
