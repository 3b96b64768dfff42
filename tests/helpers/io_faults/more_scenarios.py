"""More of what is run with faults: answers and rewards, preferences, an adapter, evaluation, pages and pictures."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reallm.data.sample_fields import load_fields
from tests.helpers.io_faults import FaultServer
from tests.helpers.io_faults.scenarios import (
    LOST_WHEN_TOLD,
    WITH_CACHE,
    numbers_of,
    run_until_killed,
    training_arguments,
)
from tests.helpers.io_faults.sweep import Scenario
from tests.helpers.jobs import sft

RUN = ("name=run", "resume=auto", "max_steps=1")
UNTIL_KILLED = "tests.helpers.io_faults.more_scenarios:run_until_second_step"
REWARD = "def distinct(completions, **columns):\n    return [len(set(text)) for text in completions]\n"
TOLD = {
    **LOST_WHEN_TOLD,
    "graph.svg": "no drawing of the graph: ",
    "outputs": "outputs are not cached",
    "rollouts": "no rollouts: ",
    "timeline": "no timeline: ",
}
OF_THE_TIME = (
    "summary.html",
    "summary.json",
    "loss.png",
    "state.json",
    "checksums.json",
    "timeline.jsonl",
    ".lock",
    "plan.svg",
)
"""Files with times of the clock, of which only matters whether they are there."""


def make_more_inputs(server: FaultServer, inputs: Path) -> None:
    """Add compressed rows, pairs, prompts, a reward function, and two runs with adapters to the inputs of a run."""
    (inputs / "train.jsonl.gz").write_bytes(gzip.compress((inputs / "train.jsonl").read_bytes(), mtime=0))
    rows = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()]
    pairs = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": " blue"} for row in rows[:4]]
    (inputs / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompts = [{"prompt": row["prompt"]} for row in rows[:4]]
    (inputs / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (inputs / "rewards.py").write_text(REWARD)
    ended = server.run(
        sft(inputs, inputs, "name=adapted", "max_steps=1", "model.lora.rank=2"), [inputs], target=WITH_CACHE
    )
    assert ended.code == 0, ended
    shutil.copytree(inputs / "adapted", inputs / "adapted again", symlinks=True)


def warm_up(server: FaultServer, inputs: Path, folder: Path) -> None:
    """Let the server train once, in a new folder."""
    folder.mkdir()
    server.warm_up(training_arguments(inputs, folder), WITH_CACHE)


def rewarding(inputs: Path, *more: str) -> Scenario:
    """A run of GRPO with a reward function in a process of its own."""
    return _scenario(inputs, lambda folder: _grpo(inputs, folder, *more))


def resuming_rewarding(inputs: Path, *more: str) -> Scenario:
    """Such a run that was killed in its second step, after a save in its first."""
    return dataclasses.replace(rewarding(inputs, *more), killed_by=UNTIL_KILLED)


def _grpo(inputs: Path, folder: Path, *more: str) -> list[str]:
    return [
        "grpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", f"dataset.train_path={inputs / 'prompts.jsonl'}",
        "dataset.train_bs_n_seqs=2", f"reward={inputs / 'rewards.py'}:distinct", "reward_processes=1",
        "num_generations=2", "gen.max_new_tokens=4", "max_steps=2", "epochs=2", "save_every=1", "keep_last=1",
        "timeline=true", "loggers=[jsonl]", "name=run", "resume=auto", f"output_dir={folder}",
        f"dataset.cache_dir={folder / 'cache'}", *more,
    ]  # fmt: skip


def reading_compressed(inputs: Path) -> Scenario:
    """A step on compressed rows, whose tokens are cached."""

    def arguments(folder: Path) -> list[str]:
        run = [one for one in sft(inputs, folder, *RUN) if not one.startswith("dataset.train_path=")]
        return [*run, f"dataset.cache_dir={folder / 'cache'}", f"dataset.train_path={inputs / 'train.jsonl.gz'}"]

    return _scenario(inputs, arguments)


def scoring_ahead(inputs: Path) -> Scenario:
    """A step of DPO on pairs that the reference has scored before."""

    def arguments(folder: Path) -> list[str]:
        return [
            "dpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", "ref_logprobs=cache",
            f"dataset.train_path={inputs / 'pairs.jsonl'}", "dataset.train_bs_n_seqs=2", "loggers=[jsonl]",
            *RUN, f"output_dir={folder}", f"dataset.cache_dir={folder / 'cache'}",
        ]  # fmt: skip

    return _scenario(inputs, arguments)


def merging(inputs: Path) -> Scenario:
    """The adapter of a run is merged with its base."""
    scenario = _scenario(inputs, lambda folder: ["merge", str(inputs / "adapted"), "--output", str(folder / "merged")])
    return dataclasses.replace(scenario, goes_on=False)  # what is there is refused, even if its fsync failed


def evaluating(inputs: Path) -> Scenario:
    """An evaluation whose result goes to a file."""

    def arguments(folder: Path) -> list[str]:
        return [
            "eval", f"model.path={inputs / 'model'}", "model.device=cpu", "dataset.max_seqlen=64",
            f"dataset.valid_path={inputs / 'valid.jsonl'}", f"dataset.cache_dir={folder / 'cache'}",
            "--json", str(folder / "result.json"),
        ]  # fmt: skip

    return _scenario(inputs, arguments)


def answering(inputs: Path) -> Scenario:
    """Completions of a file of prompts."""
    return _scenario(
        inputs,
        lambda folder: [
            "generate", str(inputs / "model"), "--prompts", str(inputs / "prompts.jsonl"), "--output",
            str(folder / "answers.jsonl"), "--max-new-tokens", "3", "--device", "cpu",
        ],
    )  # fmt: skip


def comparing(inputs: Path) -> Scenario:
    """A picture of two finished runs."""
    runs = [str(inputs / name) for name in ("adapted", "adapted again")]
    return _scenario(inputs, lambda folder: ["compare", *runs, "--output", str(folder / "a.png")])


def previewing(inputs: Path) -> Scenario:
    """A page of the first rows."""
    return _scenario(
        inputs,
        lambda folder: [
            "preview", f"model.path={inputs / 'model'}", f"dataset.train_path={inputs / 'train.jsonl.gz'}",
            "dataset.max_seqlen=64", f"dataset.cache_dir={folder / 'cache'}", "--html", str(folder / "rows.html"),
        ],
    )  # fmt: skip


def _scenario(inputs: Path, arguments: Callable[[Path], list[str]]) -> Scenario:
    return Scenario(arguments, lambda folder, ended: files_of(folder), inputs=[inputs], told=TOLD, target=WITH_CACHE)


def run_until_second_step(arguments: list[str]) -> int:
    """The command, which ends as if it were killed when its second step begins and its save is complete."""
    return run_until_killed(arguments, step=2)


def files_of(folder: Path) -> Mapping[str, Any]:
    """All files and links of a folder, by their contents where they are the same in each run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"[0-9a-f]{32,}", "*", str(path.relative_to(folder)))
        key = "rollouts" if path.name == "rollouts.jsonl" else path.name if path.name in TOLD else name
        if path.is_symlink():
            found[key] = str(path.readlink())
        elif path.name == "metrics.jsonl":
            found[key] = numbers_of(path)
        elif path.name == "result.json":
            found[key] = {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}
        elif path.parent.parent.name == "precomputed":  # the file also has a name drawn for the computation
            fields, _ = load_fields(path)
            found[key] = {name: field.values.tolist() for name, field in fields.items()}
        elif path.is_file():
            is_same = path.name not in OF_THE_TIME and not name.startswith(("cache/", "run/config"))
            found[key] = hashlib.sha256(path.read_bytes()).hexdigest() if is_same else "is there"
    return found
