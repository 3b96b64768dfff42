"""The memory that plans say calls of PPO take, item by item, against the bytes that real ones have alive."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

from reallm.algorithms.call_outputs import merged
from reallm.algorithms.context import CallContext
from reallm.algorithms.graph import Graph
from reallm.builtin import reallm_algorithms
from reallm.config.args import RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.products import linear as products
from reallm.parallel.layout import Layout
from reallm.planning.execution_plan import CallPlan
from reallm.planning.job import PlannedJob
from reallm.planning.this_machine import this_machine
from reallm.planning.workload import Lengths, Workload
from reallm.training.engine import TrainEngine
from reallm.training.memory import AliveBytes
from tests.algorithms.ppo.test_config import config
from tests.helpers.tiny_config import TINY

MODEL = TINY.replace(n_layers=4, hidden_size=64, head_dim=16, intermediate_size=160, vocab_size=1500, max_positions=640)
PROMPTS, ANSWER, MAX_TOKENS = (230,) * 8, 40, 600
CALLS = ("actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train")
ALGORITHM = reallm_algorithms()["ppo"]


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where operators are watched, as `AliveBytes` does, torch computes products."""
    monkeypatch.setattr(products, "linear_backend", lambda: "torch")


def settings() -> Any:
    ppo = {"gen": SamplingArgs(max_new_tokens=ANSWER), "ppo_n_minibatches": 2}
    made = config(ppo, reward=RewardArgs(path="reward"), max_tokens_per_microbatch=MAX_TOKENS, keep_rollouts=0)
    return dataclasses.replace(made, dataset=dataclasses.replace(made.dataset, train_bs_n_seqs=len(PROMPTS)))


def call_of(name: str) -> Any:
    return next(call for call in Graph.of(ALGORITHM, settings()).calls if call.name == name)


def model_config(role: str) -> Any:
    return MODEL.replace(is_critic=role in ("critic", "reward"))


def compute(name: str, batch: NamedArray) -> Any:
    """What makes a call of the interface of its role, with a model of its own."""
    call = call_of(name)
    model = ReaLModel(model_config(call.role), seed=1)
    interface = ALGORITHM.interface_class(call.role)(settings())
    context = CallContext(None, 5, 1, 9, MAX_TOKENS, True, {"actor": 0}, call=name)  # type: ignore[arg-type]
    if call.kind == "train_step":
        engine = TrainEngine(model, OptimizerConfig(), 9, MAX_TOKENS)
        return partial(interface.train_step, engine, batch, context)
    return partial(interface.generate if call.kind == "generate" else interface.inference, model, batch, context)


@pytest.fixture(scope="module")
def answered() -> NamedArray:
    """A batch that has what all calls read."""
    samples = []
    for index, n in enumerate(PROMPTS):
        tokens = torch.arange(n) * (index + 3) % MODEL.vocab_size
        samples.append(NamedArray(prompt_ids=tokens).with_metadata(seqlens={"prompt_ids": [[n]]}, ids=[str(index)]))
    batch = gather(samples)
    for name in CALLS[:4]:
        batch = merged(batch, [compute(name, batch)()]).with_metadata(weights_versions={"actor": 0})
    return batch


@pytest.mark.parametrize("name", CALLS)
def test_a_call_has_alive_what_is_planned(name: str, answered: NamedArray) -> None:
    graph, workload = (
        Graph.of(ALGORITHM, settings()),
        Workload(len(PROMPTS), Lengths.of(PROMPTS), 1, Lengths.constant(ANSWER), 2),
    )
    models = {role: model_config(role) for role in graph.roles}
    job = PlannedJob.of(settings(), graph, models, this_machine(1), workload)
    items = job.costs.memory(name, CallPlan(Layout()))
    call, alive = compute(name, answered), AliveBytes()
    with alive:
        call()
    unseen = items.parameters + items.other["allocator"] + items.other.get("prepacked weights", 0)
    assert alive.peak == pytest.approx(items.in_call - unseen, rel=0.03)
