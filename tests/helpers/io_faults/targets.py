"""What is run in place of `reallm`: the command, altered so that it is quick, meets no other machine, or is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reallm.cli.main import run
from tests.helpers.io_faults.sweep import KILLED

if TYPE_CHECKING:
    import huggingface_hub

QUESTION = {"model": "model", "prompt": "Say 1:", "max_tokens": 3, "temperature": 0}


def run_with_cache(arguments: Sequence[str]) -> int:
    """The command, which caches tokens even of small files; it neither estimates its memory nor draws its curves, which
    take long: the picture that it writes is empty.
    """
    from matplotlib.figure import Figure

    from reallm.data.tokenization import cache
    from reallm.experiments.reports import png, write
    from reallm.training import memory

    cache.entry_for.__kwdefaults__["min_bytes"] = 0  # type: ignore[index]
    memory.traced_activations = lambda *_: None  # type: ignore[assignment]
    write.save_plot = lambda _, path: png._save(Figure(figsize=(1, 1)), path)
    return run(arguments)


def run_until_killed(arguments: Sequence[str], step: int = 4) -> int:
    """The command, which ends as if it were killed when a step begins and the save before it is complete."""
    from reallm.experiments.run.trainer import Trainer

    train_step = Trainer._train_step

    def stopping(trainer: Trainer, at: int) -> None:
        if at == step:
            trainer._finish_save()
            os._exit(KILLED)
        train_step(trainer, at)

    Trainer._train_step = stopping  # type: ignore[method-assign]
    return run_with_cache(arguments)


def run_until_second_step(arguments: Sequence[str]) -> int:
    """The command, which ends as if it were killed when its second step begins and its save is complete."""
    return run_until_killed(arguments, step=2)


def plan_with_stated_times(arguments: Sequence[str]) -> int:
    """The command, in which each measurement takes no time, and finds the same."""
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
