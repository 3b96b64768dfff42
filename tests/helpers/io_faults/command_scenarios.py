"""Commands that do not train, with faults: text, checks, pages, pictures, plans, new plugins, an upload, a server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.helpers.io_faults import Ended
from tests.helpers.io_faults.results import files_of
from tests.helpers.io_faults.sweep import Scenario
from tests.helpers.io_faults.targets import (
    plan_with_stated_times,
    push_to_nowhere,
    serve_one_request,
)
from tests.helpers.io_faults.training_scenarios import caching


def answering(inputs: Path) -> Scenario:
    """Completions of a file of prompts."""
    return caching(
        inputs,
        lambda folder: [
            "generate", str(inputs / "model"), "--prompts", str(inputs / "prompts.jsonl"), "--output",
            str(folder / "answers.jsonl"), "--max-new-tokens", "3", "--device", "cpu",
        ],
    )  # fmt: skip


def comparing(inputs: Path) -> Scenario:
    """A picture of two finished runs."""
    runs = [str(inputs / name) for name in ("adapted", "adapted again")]
    return caching(inputs, lambda folder: ["compare", *runs, "--output", str(folder / "a.png")])


def drawing_a_graph(inputs: Path) -> Scenario:
    """A picture of the calls of an algorithm whose keys are in a file."""
    graph = ["graph", "grpo", "--config", str(inputs / "grpo.yaml"), "--svg"]
    return _writing(inputs, lambda folder: [*graph, str(folder / "graph.svg")])


def evaluating(inputs: Path) -> Scenario:
    """An evaluation whose result goes to a file."""

    def arguments(folder: Path) -> list[str]:
        return [
            "eval", f"model.path={inputs / 'model'}", "model.device=cpu", "dataset.max_seqlen=64",
            f"dataset.valid_path={inputs / 'valid.jsonl'}", f"dataset.cache_dir={folder / 'cache'}",
            "--json", str(folder / "result.json"),
        ]  # fmt: skip

    return caching(inputs, arguments)


def generating(inputs: Path) -> Scenario:
    """Text from a checkpoint in several files."""
    command = ["generate", "--model", str(inputs / "model"), "--max-new-tokens", "4", "--device", "cpu"]
    return Scenario(
        lambda folder: [*command, "Say 1:"],
        lambda folder, ended: {"text": ended.out},
        inputs=[inputs],
        goes_on=False,
    )


def listing(inputs: Path) -> Scenario:
    """A list of runs, for programs."""

    def result(folder: Path, ended: Ended) -> Mapping[str, Any]:
        return {run["name"]: {key: run[key] for key in ("status", "steps", "loss")} for run in json.loads(ended.out)}

    told = {name: f"note: {name} is left out: " for name in ("adapted", "adapted again")}
    return Scenario(lambda folder: ["runs", str(inputs), "--json"], result, inputs=[inputs], told=told, goes_on=False)


def making_a_plugin(inputs: Path) -> Scenario:
    """A package with a plugin."""
    scenario = _writing(inputs, lambda folder: ["plugins", "new", "dataset", "my-data", "--dir", str(folder)])
    return replace(scenario, goes_on=False)  # what is there is refused


def merging(inputs: Path) -> Scenario:
    """The adapter of a run is merged with its base."""
    scenario = caching(inputs, lambda folder: ["merge", str(inputs / "adapted"), "--output", str(folder / "merged")])
    return replace(scenario, goes_on=False)  # what is there is refused, even if its fsync failed


def planning(inputs: Path) -> Scenario:
    """A plan with times that are measured and kept in a file, and a picture of it."""
    scenario = _writing(inputs, lambda at: [*plan_arguments(inputs, at / "times.json"), "--svg", str(at / "plan.svg")])
    return replace(scenario, target=plan_with_stated_times)


def planning_as_measured(inputs: Path) -> Scenario:
    """A plan for another machine, all of it from files, and a picture of it."""
    given = ["--machine", str(inputs / "machine.yaml"), "--answer-lens", str(inputs / "rollouts.jsonl")]
    plan = [*plan_arguments(inputs, inputs / "times.json"), *given, "--svg"]
    return _writing(inputs, lambda folder: [*plan, str(folder / "calls.svg")])


def plan_arguments(inputs: Path, times: Path) -> list[str]:
    """A plan whose measured times are in a file."""
    return [
        "plan", "grpo", f"actor.path={inputs / 'model'}", "actor.dtype=float32",
        f"reward={inputs / 'rewards.py'}:distinct", "--profile", str(times), "--ranks", "1",
    ]  # fmt: skip


def previewing(inputs: Path) -> Scenario:
    """A page of the first rows."""
    return caching(
        inputs,
        lambda folder: [
            "preview", f"model.path={inputs / 'model'}", f"dataset.train_path={inputs / 'train.jsonl.gz'}",
            "dataset.max_seqlen=64", f"dataset.cache_dir={folder / 'cache'}", "--html", str(folder / "rows.html"),
        ],
    )  # fmt: skip


def pushing(inputs: Path) -> Scenario:
    """An upload of a run's checkpoint, to a hub that only notes down what it gets."""
    return Scenario(
        lambda folder: ["push", str(inputs / "adapted"), "me/adapted"],
        lambda folder, ended: {"text": ended.out},
        inputs=[inputs],
        goes_on=False,
        target=push_to_nowhere,
    )


def reallocating(inputs: Path) -> Scenario:
    """What would be sent to move a model."""
    return Scenario(
        lambda folder: ["realloc", "--from", "dp2", "--to", "tp2", f"model.path={inputs / 'model'}"],
        lambda folder, ended: {"text": ended.out},
        inputs=[inputs],
        goes_on=False,
    )


def serving(inputs: Path) -> Scenario:
    """A server that answers a request and is then ended."""
    return Scenario(
        lambda folder: ["serve", str(inputs / "model"), "--port", "0", "--device", "cpu"],
        lambda folder, ended: {"answer": re.findall("answer: .*", ended.out)},
        inputs=[inputs],
        told={"answer": "1 request failed while the engine generated: "},
        goes_on=False,
        target=serve_one_request,
    )


def verifying(run: Path) -> Scenario:
    """A check of a run's checkpoints."""
    return Scenario(
        lambda folder: ["verify", str(run)], lambda folder, ended: {"text": ended.out}, inputs=[run], goes_on=False
    )


def _writing(inputs: Path, arguments: Callable[[Path], Sequence[str]]) -> Scenario:
    return Scenario(arguments, lambda folder, ended: files_of(folder), inputs=[inputs])
