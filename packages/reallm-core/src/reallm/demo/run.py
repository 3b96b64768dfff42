"""`reallm demo`: trains a tiny model from random weights, with the same runner as every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from reallm.demo import dpo, grpo, ppo, rw, sft
from reallm.demo.workspace import Workspace
from reallm.errors import ConfigError, did_you_mean
from reallm.experiments.run.runner import RunResult

Demo = Callable[[Workspace, int | None, int], RunResult]

DEMOS: dict[str, tuple[Demo, tuple[str, ...]]] = {
    "sft": (sft.sft_demo, sft.DATASETS),
    "rw": (rw.rw_demo, rw.DATASETS),
    "dpo": (dpo.dpo_demo, dpo.DATASETS),
    "ppo": (ppo.ppo_demo, ppo.DATASETS),
    "grpo": (grpo.grpo_demo, grpo.DATASETS),
}
"""Algorithm -> its demo, and the datasets that it needs."""


def run_demo(
    output_dir: str | Path = "runs",
    steps: int | None = None,
    seed: int = 1,
    *,
    algorithm: str = "sft",
    console: Console | None = None,
) -> RunResult:
    """Write data and an untrained model, train it with `run`, and show what it has learnt.

    Args:
        output_dir: folder in which `demo-<date>` is made.
        steps: optimizer steps; None: enough to learn the tasks, in a minute or two on two cores.
        seed: seed of the data, the weights and the order of rows.
        algorithm: `sft`, `rw`, `dpo`, `ppo` or `grpo`.
        console: console to print on; None is the standard output.

    Raises:
        ConfigError: there is no demo of the algorithm.
        PluginError: a package that the demo needs is not installed; says what to install.
    """
    if algorithm not in DEMOS:
        raise ConfigError(
            f"--algorithm {algorithm}: there are demos of {', '.join(DEMOS)}{did_you_mean(algorithm, DEMOS)}"
        )
    demo, datasets = DEMOS[algorithm]
    return demo(Workspace.make(output_dir, seed, datasets, console or Console()), steps, seed)
