"""Small runs of algorithms that answer prompts."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from reallm.algorithms.graph import Graph
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.experiments.run.runner import RunResult, run
from reallm.plugins import registry
from reallm.specs import Algorithm
from reallm_devkit.testing.algorithms.runs import undeclared
from reallm_devkit.testing.algorithms.subject import MACHINE


@dataclasses.dataclass
class PromptRuns:
    """Runs in a folder, of a policy from a checkpoint; `printed` is what the last one has printed."""

    folder: Path
    checkpoint: Path
    algorithm: Algorithm
    printed: str = ""

    def settings(self, *, n_valid: int, batch_size: int, n_rows: int) -> dict[str, Any]:
        """Settings of a run on so many prompts."""
        dataset = registry.get("dataset", "prompt").config_class()(
            train_path=self.rows("train", range(n_rows)),
            valid_path=self.rows("valid", range(50, 50 + n_valid)) if n_valid else None,
            train_bs_n_seqs=batch_size,
            valid_bs_n_seqs=2,
            max_prompt_len=32,
        )
        return {
            "actor": ModelArgs(path=str(self.checkpoint), device="cpu"),
            "dataset": dataset,
            "optimizer": OptimizerConfig(lr=1e-3),
            "eval_generations": 0,
            "reward_processes": 1,
            "loggers": ["jsonl"],
            "output_dir": str(self.folder / "runs"),
        }

    def rows(self, name: str, numbers: range) -> str:
        """A file of prompts of several lengths."""
        path = self.folder / f"{name}-{len(numbers)}.jsonl"
        rows = [{"prompt": "Say " + "so " * (i % 4) + f"{i}:"} for i in numbers]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def run(self, config: Any) -> RunResult:
        """A run, all of whose metrics are declared."""
        printed = io.StringIO()
        try:
            result = run(config, self.algorithm, name="run", console=Console(file=printed, width=200))
        finally:
            self.printed = printed.getvalue()
        found = [name for name in result.metrics if name != "epoch" and not name.endswith(MACHINE)]
        missing = undeclared(found, self.algorithm, Graph.of(self.algorithm, config))
        assert not missing, missing
        return result
