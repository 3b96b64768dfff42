"""Commands that do not train, with faults: plans, graphs, lists of runs, new plugins, an upload, a server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.io_faults import Ended, FaultServer
from tests.helpers.io_faults.more_scenarios import files_of
from tests.helpers.io_faults.sweep import Scenario

HERE = "tests.helpers.io_faults.command_scenarios"
PLAN = f"{HERE}:plan_with_stated_times"
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
QUESTION = {"model": "model", "prompt": "Say 1:", "max_tokens": 3, "temperature": 0}


def make_inputs_of_commands(server: FaultServer, inputs: Path) -> None:
    """Add the keys of an algorithm, and what a plan can be told: a machine, times, the lengths of a run's answers."""
    (inputs / "grpo.yaml").write_text("async_steps: 1\n")
    (inputs / "machine.yaml").write_text(MACHINE)
    lines = [json.dumps({"answers": [{"length": n}]}) for n in range(1, 9)]
    (inputs / "rollouts.jsonl").write_text("\n".join(lines) + "\n")
    ended = server.run(_plan(inputs, inputs / "times.json"), [inputs], target=PLAN)
    assert ended.code == 0, ended


def drawing_a_graph(inputs: Path) -> Scenario:
    """A picture of the calls of an algorithm whose keys are in a file."""
    graph = ["graph", "grpo", "--config", str(inputs / "grpo.yaml"), "--svg"]
    return _writing(inputs, lambda folder: [*graph, str(folder / "graph.svg")])


def listing(inputs: Path) -> Scenario:
    """A list of runs, for programs."""

    def result(folder: Path, ended: Ended) -> Mapping[str, Any]:
        return {run["name"]: {key: run[key] for key in ("status", "steps", "loss")} for run in json.loads(ended.out)}

    told = {name: f"note: {name} is left out: " for name in ("adapted", "adapted again")}
    return Scenario(lambda folder: ["runs", str(inputs), "--json"], result, inputs=[inputs], told=told, goes_on=False)


def making_a_plugin(inputs: Path) -> Scenario:
    """A package with a plugin."""
    scenario = _writing(inputs, lambda folder: ["plugins", "new", "dataset", "my-data", "--dir", str(folder)])
    return dataclasses.replace(scenario, goes_on=False)  # what is there is refused


def planning(inputs: Path) -> Scenario:
    """A plan with times that are measured and kept in a file, and a picture of it."""
    scenario = _writing(inputs, lambda at: [*_plan(inputs, at / "times.json"), "--svg", str(at / "plan.svg")])
    return dataclasses.replace(scenario, target=PLAN)


def planning_as_measured(inputs: Path) -> Scenario:
    """A plan for another machine, all of it from files, and a picture of it."""
    given = ["--machine", str(inputs / "machine.yaml"), "--answer-lens", str(inputs / "rollouts.jsonl")]
    plan = [*_plan(inputs, inputs / "times.json"), *given, "--svg"]
    return _writing(inputs, lambda folder: [*plan, str(folder / "calls.svg")])


def _plan(inputs: Path, times: Path) -> list[str]:
    return [
        "plan", "grpo", f"actor.path={inputs / 'model'}", "actor.dtype=float32",
        f"reward={inputs / 'rewards.py'}:distinct", "--profile", str(times), "--ranks", "1",
    ]  # fmt: skip


def pushing(inputs: Path) -> Scenario:
    """An upload of a run's checkpoint, to a hub that only notes down what it gets."""
    return Scenario(
        lambda folder: ["push", str(inputs / "adapted"), "me/adapted"],
        lambda folder, ended: {"text": ended.out},
        inputs=[inputs],
        goes_on=False,
        target=f"{HERE}:push_to_nowhere",
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
        target=f"{HERE}:serve_one_request",
    )


def _writing(inputs: Path, arguments: Callable[[Path], Sequence[str]]) -> Scenario:
    return Scenario(arguments, lambda folder, ended: files_of(folder), inputs=[inputs])


def plan_with_stated_times(arguments: Sequence[str]) -> int:
    """The command, in which each measurement takes no time, and finds the same."""
    from reallm.cli.main import run
    from reallm.planning.profiling import on_ranks
    from reallm.planning.profiling.measure import MeasuredModel, merged_models
    from reallm.planning.profiling.profile import DecodeTimes, LinkProfile, ModelProfile, PassTimes, Profile

    times = ModelProfile(
        (PassTimes(1, 1, 10, 0.1, 0.1, 0.2, 0.2),), (DecodeTimes(1, 1, 10, 0.1, 0.1),), ((100, 0.1),), ((100, 0.1),)
    )

    def measure(models: Sequence[MeasuredModel], *_: object, **others: object) -> Profile:
        return Profile(on_ranks.setting_here(1), {key: {1: times} for key in merged_models(models)}, LinkProfile())

    on_ranks.measure = measure
    return run(arguments)


def push_to_nowhere(arguments: Sequence[str]) -> int:
    """The command, with a hub that prints what it gets."""
    import huggingface_hub

    from reallm.cli.main import run

    class Hub:
        def whoami(self) -> dict[str, str]:
            return {"name": "me"}

        def create_repo(self, repo: str, **options: object) -> str:
            return f"https://hub/{repo}"

        def create_commit(
            self, repo: str, operations: Sequence[huggingface_hub.CommitOperationAdd], commit_message: str
        ) -> None:
            for operation in operations:
                with operation.as_file() as file:
                    sys.stdout.write(f"{operation.path_in_repo} {hashlib.sha256(file.read()).hexdigest()}\n")

    huggingface_hub.HfApi = Hub  # type: ignore[assignment,misc]
    return run(arguments)


def serve_one_request(arguments: Sequence[str]) -> int:
    """The command, which is asked something when it has started, and then told to end."""
    import threading
    import urllib.error
    import urllib.request

    from reallm.cli import serve
    from reallm.cli.main import run
    from reallm.serving import address

    def ask(url: str) -> None:
        try:
            request = urllib.request.Request(
                f"{url}/v1/completions", json.dumps(QUESTION).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = json.load(answer)["choices"][0]["text"]
        except urllib.error.HTTPError as error:
            text = error.status
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        sys.stdout.write(f"answer: {text!r}\n")

    def greeting(model: object, served: object, bound: Any) -> str:
        threading.Thread(target=ask, args=(address.url(bound),)).start()
        return "started"

    serve._greeting = greeting
    return run(arguments)
