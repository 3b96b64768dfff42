"""The sides of reallm in the benchmark of reinforcement learning: runs of `reallm grpo` and `reallm ppo`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from reallm import run
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.ppo.config import PPOArgs, PPOConfig
from reallm.config.args import ModelArgs, RewardArgs, SamplingArgs
from reallm.data.namedarray import NamedArray
from reallm.plugins import registry
from reallm.specs import Algorithm, ModelFunctionCall
from reallm_datasets.config import PromptOnlyDatasetConfig
from rlhf_work import RLHFJob
from sides import OPTIMIZER
from workers import Turns

LEARNING_RATE = 1e-6
"""So small that the lengths of answers stay what they are; TRL's default for GRPO."""
KL_COEF = 0.05
"""Of PPO: TRL's default."""
MAX_STEPS = 200


class _Turn:
    """Ends a turn with the last call of a step, and adds up the time that a step spends in its calls.

    A turn is all that a run does from one step's last call to the next one's: the calls, and between them loading and
    moving data, weights, records and logging.
    """

    def __init__(self, turns: Turns, calls: tuple[ModelFunctionCall, ...]) -> None:
        self._turns, self._last = turns, calls[-1]
        self._started = self._in_calls = 0.0
        self._waits = True

    def method(self, kind: str, role: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of an interface, timed."""

        def timed(interface: Any, *arguments: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            result = method(interface, *arguments)
            self._in_calls += time.perf_counter() - start
            if (kind, role) == (self._last.kind, self._last.role):
                self._done(arguments[1])
                self._wait()
            return result

        return timed

    def _wait(self) -> None:
        if not self._waits:
            return
        if self._turns.wait() is None:
            raise KeyboardInterrupt  # as a person stops a run
        self._waits, self._started, self._in_calls = False, time.perf_counter(), 0.0

    def _done(self, batch: NamedArray) -> None:
        self._waits = True
        share = 1 - self._in_calls / (time.perf_counter() - self._started)
        self._turns.done(share, _answers(batch))


def _answers(batch: NamedArray) -> list[list[int]]:
    """The tokens of each answer."""
    lengths = [n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]
    sequences = batch["input_ids"].split(lengths)
    return [ids[n:].tolist() for ids, n in zip(sequences, batch["prompt_lens"].tolist(), strict=True)]


def _run(name: str, config: Any, turns: Turns) -> None:
    """Run an algorithm step by step. What is reported as a step's loss is the share of it that is in no call."""
    algorithm: Algorithm = registry.get("algorithm", name)
    calls = algorithm.calls(config)
    turn = _Turn(turns, calls)
    kinds = {"generate", "inference", "reward", "train_step"}
    interfaces = {}
    for role in {call.role for call in calls}:
        base = algorithm.interface_class(role)
        methods = {kind: turn.method(kind, role, getattr(base, kind)) for kind in kinds if hasattr(base, kind)}
        interfaces[role] = type(base.__name__, (base,), methods)
    turns.before_model()
    try:
        run(config, replace(algorithm, interfaces={**algorithm.interfaces, **interfaces}), name=name)
    except KeyboardInterrupt:
        return


def _settings(job: RLHFJob) -> dict[str, Any]:
    rows = job.scratch / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in job.prompts), encoding="utf-8")
    return {
        "actor": ModelArgs(path=str(job.folder), dtype="float32", device="cpu"),
        "dataset": PromptOnlyDatasetConfig(train_path=str(rows), train_bs_n_seqs=len(job.prompts), cache_dir=None),
        "optimizer": replace(OPTIMIZER, lr=LEARNING_RATE),
        "epochs": MAX_STEPS,
        "save_every_minutes": None,
        "output_dir": str(job.scratch),
    }


def reallm_grpo(exact: bool, job: RLHFJob, turns: Turns) -> None:
    """Steps of `reallm grpo` with its defaults."""
    config = GRPOConfig(
        **_settings(job),
        reward=RewardArgs(functions=["rlhf_work:share_of_vowels"]),
        gen=SamplingArgs(max_new_tokens=job.max_new_tokens),
        num_generations=job.group_size,
        exact=exact,
    )
    _run("grpo", config, turns)


def reallm_ppo(job: RLHFJob, turns: Turns) -> None:
    """Steps of `reallm ppo`, with reward model, reference and critic, in as many epochs as the other side."""
    config = PPOConfig(
        **_settings(job),
        reward=RewardArgs(path=str(job.reward_folder), dtype="float32", device="cpu"),
        ppo=PPOArgs(
            gen=SamplingArgs(max_new_tokens=job.max_new_tokens),
            ppo_n_minibatches=1,
            ppo_n_epochs=job.ppo_epochs,
            kl_ctl=KL_COEF,
        ),
    )
    _run("ppo", config, turns)


grpo, grpo_exact = partial(reallm_grpo, False), partial(reallm_grpo, True)
