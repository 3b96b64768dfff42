"""Where the time of a decoding step goes, by kind of work, measured around the functions that do it.

On a CPU a call returns when its work is done, so that no profiler is needed, which would itself take more time than the
small operations of a step. Time of a function that calls another one is counted without it. With one thread it is CPU
time, which other programs disturb less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from generation_work import Job, Requests
from reallm import ReaLModel
from reallm.generation import decode_pass, replica
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import Request
from reallm.generation.row_cache import RowBlock
from reallm.generation.row_store import RowStore
from reallm.generation.scheduler import Scheduler
from reallm.model import layers
from reallm.model.block import ResidualAdd
from reallm.model.products import onednn
from reallm.model.rope import JointRotation, Rotation

WARM_UP = 3
"""Steps after the one that computes the prompts."""

FUNCTIONS: Sequence[tuple[str, object, str]] = (
    ("products", onednn, "product"),
    ("products", decode_pass, "product_of_rows"),
    ("products", F, "linear"),
    ("attention", F, "scaled_dot_product_attention"),
    ("attention, around the kernel", RowBlock, "attend"),
    ("cache writes", torch.Tensor, "index_copy_"),
    ("norms", layers, "rms_norm"),
    ("rotations", Rotation, "both"),
    ("rotations", JointRotation, "__call__"),
    ("activations", layers, "gated"),
    ("residual sums", ResidualAdd, "forward"),
    ("sampling", replica, "_sample"),
    ("scheduling", Scheduler, "schedule"),
    ("places in the cache", RowStore, "prepare"),
)
"""Kind of work, and an owner with the name of the function that does it."""
OTHER = "Python and the rest"


class Clock:
    """Exclusive seconds of each kind of work."""

    def __init__(self) -> None:
        self.now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # for each function being called, the time of those that it has called

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time counted."""

        def call(*arguments: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            start = self.now()
            try:
                return function(*arguments, **named)
            finally:
                elapsed = self.now() - start
                self.seconds[kind] = self.seconds.get(kind, 0.0) + elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        return call


@contextmanager
def _watched() -> Iterator[Clock]:
    """Count the time of all functions in `FUNCTIONS`."""
    clock = Clock()
    with ExitStack() as patches:
        for kind, owner, name in FUNCTIONS:
            patches.enter_context(mock.patch.object(owner, name, clock.timed(kind, getattr(owner, name))))
        yield clock


def profile(job: Job, n_steps: int) -> None:
    """Print a table of milliseconds for a decoding step of each number of sequences, and for the lognormal run."""
    model = ReaLModel.from_pretrained(job.folder, dtype=job.dtype, device=job.device)
    columns: dict[str, tuple[dict[str, float], int]] = {}
    for name, requests in job.requests.items():
        if name.startswith("equal"):
            columns[f"{len(requests.prompts)} seqs."] = _steps(model, requests, n_steps)
    columns["lognormal"] = _run(model, job.requests["lognormal"])
    kinds = [*dict.fromkeys(kind for kind, _, _ in FUNCTIONS), OTHER]
    print("\nwhere the time of a step goes, milliseconds" + " " * 4 + "".join(f"{name:>18s}" for name in columns))
    for kind in [*kinds, "all"]:
        cells = []
        for seconds, steps in columns.values():
            total = sum(seconds.values())
            value = total if kind == "all" else seconds.get(kind, 0.0)
            cells.append(f"{1e3 * value / steps:11.2f} {value / total:6.1%}")
        print(f"  {kind:45s}{''.join(cells)}")
    print(flush=True)


def _steps(model: ReaLModel, requests: Requests, n_steps: int) -> tuple[dict[str, float], int]:
    """Seconds of some decoding steps by kind of work."""
    with model.generation_engine() as engine:
        _add(engine, requests, [WARM_UP + n_steps + 2] * len(requests.prompts))
        for _ in range(1 + WARM_UP):
            engine.step()
        with _watched() as clock:
            start = clock.now()
            for _ in range(n_steps):
                engine.step()
            elapsed = clock.now() - start
    return clock.seconds | {OTHER: elapsed - sum(clock.seconds.values())}, n_steps


def _run(model: ReaLModel, requests: Requests) -> tuple[dict[str, float], int]:
    """Seconds of a whole run by kind of work, and its number of steps."""
    n_steps = 0
    with model.generation_engine() as engine, _watched() as clock:
        _add(engine, requests, requests.new_tokens)
        start = clock.now()
        while engine.has_work:
            engine.step()
            n_steps += 1
        elapsed = clock.now() - start
    return clock.seconds | {OTHER: elapsed - sum(clock.seconds.values())}, n_steps


def _add(engine: GenerationEngine, requests: Requests, new_tokens: Sequence[int]) -> None:
    for key, (prompt, n_new) in enumerate(zip(requests.prompts, new_tokens, strict=True)):
        engine.add(Request(prompt, GenerationConfig(max_new_tokens=n_new, temperature=0.0, stop_token_ids=()), key))
