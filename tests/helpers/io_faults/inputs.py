"""The files that the scenarios read: a model, rows, a reward function, runs, what a plan can be told."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from reallm.engine.real_model import ReaLModel
from tests.helpers import jobs
from tests.helpers.io_faults import FaultServer
from tests.helpers.io_faults.command_scenarios import plan_arguments
from tests.helpers.io_faults.targets import plan_with_stated_times, run_with_cache
from tests.helpers.io_faults.training_scenarios import training_arguments
from tests.helpers.tokenizers import tiny_tokenizer

REWARD = "def distinct(completions, **columns):\n    return [len(set(text)) for text in completions]\n"
MACHINE = """
n_nodes: 1
ranks_per_node: 1
memory: 1e9
host_memory: 1e9
flops: 1e12
memory_bandwidth: 1e10
within_node: {bandwidth: 1e9, latency: 1e-6}
between_nodes: {bandwidth: 1e9, latency: 1e-6}
host: {bandwidth: 1e9, latency: 1e-6}
"""


def make_inputs(servers: Sequence[FaultServer], folder: Path) -> Path:
    """Inputs of all scenarios, in a new folder, for which each server has been warmed up by a training."""
    make_small_inputs(folder)
    _add_files(folder)
    _add_runs(servers[0], folder)
    for number, server in enumerate(servers):
        outputs = folder.with_name(f"warm-{number}")
        outputs.mkdir()
        server.warm_up(training_arguments(folder, outputs), run_with_cache)
    return folder


def make_small_inputs(folder: Path) -> Path:
    """Inputs of a run with a model of one layer in several files, so that a run makes few calls and takes a second."""
    folder.mkdir()
    jobs.make_inputs(folder)
    shutil.rmtree(folder / "model")
    model = ReaLModel.from_llama({**jobs.HF_CONFIG, "num_hidden_layers": 1}, seed=5)
    model.save_pretrained(folder / "model", tokenizer=tiny_tokenizer(), max_shard_size="40KB")
    return folder


def _add_files(inputs: Path) -> None:
    (inputs / "train.jsonl.gz").write_bytes(gzip.compress((inputs / "train.jsonl").read_bytes(), mtime=0))
    rows = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()][:4]
    _write_rows(
        inputs / "pairs.jsonl",
        [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": " blue"} for row in rows],
    )
    _write_rows(inputs / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])
    _write_rows(inputs / "rollouts.jsonl", [{"answers": [{"length": n}]} for n in range(1, 9)])
    (inputs / "rewards.py").write_text(REWARD)
    (inputs / "grpo.yaml").write_text("async_steps: 1\n")
    (inputs / "machine.yaml").write_text(MACHINE)


def _write_rows(file: Path, rows: Sequence[object]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _add_runs(server: FaultServer, inputs: Path) -> None:
    """Two runs with adapters, and the times that a plan measures."""
    adapted = jobs.sft(inputs, inputs, "name=adapted", "max_steps=1", "model.lora.rank=2")
    ended = server.run(adapted, [inputs], target=run_with_cache)
    assert ended.code == 0, ended
    shutil.copytree(inputs / "adapted", inputs / "adapted again", symlinks=True)
    ended = server.run(plan_arguments(inputs, inputs / "times.json"), [inputs], target=plan_with_stated_times)
    assert ended.code == 0, ended
