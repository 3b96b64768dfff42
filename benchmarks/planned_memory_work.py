"""The work of the benchmark of planned memory: PPO on random weights, a call or a whole step, on one or two ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist

from peaks import peak, start_counting
from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.role import Role
from reallm.builtin import reallm_algorithms
from reallm.config.args import ModelArgs, RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.config import ReaLModelConfig
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.planning.execution_plan import CallPlan, ExecutionPlan
from reallm.planning.job import PlannedJob
from reallm.planning.this_machine import this_machine
from reallm.planning.workload import Lengths, Workload
from reallm.training.engine import TrainEngine
from reallm_datasets.config import PromptOnlyDatasetConfig
from workloads import LLAMA_40M, LLAMA_TINY, SMOLLM2_135M, hf_config

MODELS = {"llama_40m": LLAMA_40M, "smollm2_135m": SMOLLM2_135M}
CALLS = ("actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train")
STEP = "step"
"""In place of a call: a whole step, with the models of all roles in each process."""
PROMPTS = tuple(range(40, 152, 8))
"""Lengths of the prompts of a step."""
MAX_NEW_TOKENS = 200
"""Tokens of each answer; none ends before."""
MAX_TOKENS = 1024
"""Most tokens of a micro-batch."""
OPTIMIZER = OptimizerConfig(lr=1e-6, schedule="constant")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


@dataclass(frozen=True)
class Case:
    """What is measured in processes of its own."""

    model: str
    call: str
    """One of `CALLS`, or `STEP`."""
    layout: str = "dp1"
    """Of all calls."""

    @property
    def name(self) -> str:
        """Its part of the names of figures."""
        return f"{self.model}_{self.call}" + ("" if self.layout == "dp1" else f"_{self.layout}")


def make(way: str, case: Case) -> Callable[[], tuple[int, int]]:
    """What a rank does."""
    return partial(measure, case)


def measure(case: Case) -> tuple[int, int]:
    """Bytes that a rank takes by the plan, and those that this one took: its peak, less what the process held before
    its models were there, when a step of tiny models had brought all code into memory."""
    sizes = MODELS[case.model]
    configs = _configs(sizes)
    job = PlannedJob.of(_config(), _graph(), configs, this_machine(_n_ranks()), _workload())
    plan = ExecutionPlan({call: CallPlan(Layout.parse(case.layout)) for call in CALLS})
    if case.call == STEP:
        planned = max(one.peak for one in job.simulator.simulate(plan).memory.values())
    else:
        planned = job.costs.memory(case.call, plan.calls[case.call]).in_call

    tiny = Ranks(_configs(LLAMA_TINY | {"vocab_size": sizes["vocab_size"]}), plan)
    batch = tiny.answered()
    tiny.train(1)
    del tiny
    before = start_counting(DEVICE)
    if case.call == STEP:
        ranks = Ranks(configs, plan)
        for step in (1, 2):
            ranks.train(step)
    else:
        [role] = {call.role for call in _graph().calls if call.name == case.call}
        ranks = Ranks(configs, plan, [role])
        ranks.compute(case.call, batch)
    return planned, peak(DEVICE) - before


class Ranks:
    """Models of roles with what computes them, on this rank and all others of a plan.

    Args:
        configs: the architecture of each role's model.
        plan: the plan.
        roles: the roles whose models are made; None: all.
    """

    def __init__(
        self, configs: Mapping[str, ReaLModelConfig], plan: ExecutionPlan, roles: Collection[str] | None = None
    ) -> None:
        graph = _graph()
        placement, algorithm, config = plan.placement(graph, _n_ranks()), reallm_algorithms()["ppo"], _config()
        meshes = {} if _n_ranks() == 1 else {placement.homes["actor"]: _mesh(placement.homes["actor"])}
        self._graph, self._roles = graph, dict[str, Role]()
        for seed, role in enumerate(configs if roles is None else roles):
            mesh = meshes.get(placement.homes[role])
            model = ReaLModel(configs[role], seed=seed, dtype=DTYPE, device=DEVICE, mesh=mesh, zero=1).eval()
            engine = TrainEngine(model, OPTIMIZER, 10**6, MAX_TOKENS) if role in graph.trained_roles else None
            self._roles[role] = Role(model, engine, engine, ModelArgs(path=role), DTYPE, None, meshes)
        self._interfaces = {role: algorithm.interface_class(role)(config) for role in graph.roles}
        self._executor = GraphExecutor(graph, self._roles, self._interfaces, placement)

    def train(self, step: int) -> None:
        """A whole step."""
        self._executor.train(_prompts(step), _context(step))

    def answered(self) -> NamedArray:
        """A batch with what all calls that do not train have written."""
        batch = _prompts(1)
        for call in self._graph.calls:
            if call.kind != "train_step":
                batch = self._executor.with_outputs(call, batch, _context(1))
        return batch

    def compute(self, name: str, batch: NamedArray) -> None:
        """A call, by its name, twice, given a batch with what it reads."""
        [call] = [call for call in self._graph.calls if call.name == name]
        role, interface, context = self._roles[call.role], self._interfaces[call.role], _context(1).for_call(name)
        for _ in range(2):
            if call.kind == "train_step":
                interface.train_step(role.engine, batch, context)
            elif call.kind == "generate":
                interface.generate(role.model, batch, context)
            else:
                interface.inference(role.model, batch, context)


@cache
def _mesh(layout: Layout) -> Mesh:
    """A mesh whose process groups are there before models are measured."""
    return Mesh.of(layout)


def _n_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _config() -> Any:
    """Settings of PPO with a reward model."""
    dataset = PromptOnlyDatasetConfig(train_path="prompts.jsonl", train_bs_n_seqs=len(PROMPTS))
    made = reallm_algorithms()["ppo"].config_class()(
        actor=ModelArgs(path="actor"), reward=RewardArgs(path="reward"), dataset=dataset
    )
    return dataclasses.replace(
        made,
        ppo=dataclasses.replace(made.ppo, gen=SamplingArgs(max_new_tokens=MAX_NEW_TOKENS), ppo_n_minibatches=2),
        optimizer=OPTIMIZER,
        max_tokens_per_microbatch=MAX_TOKENS,
        keep_rollouts=0,
    )


def _graph() -> Graph:
    return Graph.of(reallm_algorithms()["ppo"], _config())


def _configs(sizes: dict[str, Any]) -> dict[str, ReaLModelConfig]:
    """The architecture of each role's model, all of one size."""
    config = ReaLModel.config_from_llama(hf_config(sizes))
    return {role: config.replace(is_critic=role in ("critic", "reward")) for role in _graph().roles}


def _workload() -> Workload:
    return Workload(len(PROMPTS), Lengths.of(PROMPTS), 1, Lengths.constant(MAX_NEW_TOKENS), n_minibatches=2)


def _context(step: int) -> CallContext:
    return CallContext(None, 5, step, 100, MAX_TOKENS, True, {"actor": 0, "critic": 0})  # type: ignore[arg-type]


def _prompts(step: int) -> NamedArray:
    draw, samples = torch.Generator().manual_seed(step), []
    for n in PROMPTS:
        tokens = torch.randint(LLAMA_TINY["vocab_size"], (n,), generator=draw)
        samples.append(NamedArray(prompt_ids=tokens).with_metadata(seqlens={"prompt_ids": [[n]]}, ids=[f"{step}-{n}"]))
    return gather(samples)
