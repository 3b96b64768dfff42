"""An algorithm of three roles under a placement: an actor that generates and learns, a reference, a reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.interface import Example
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.config.args import CallArgs, ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.parallel import ParallelArgs
from reallm.config.training import TrainingConfig
from reallm.data.batching import cu_seqlens, gather, lengths
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.specs import Algorithm, ModelFunctionCall, WeightUpdate
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import answer_logprobs, answer_mask
from tests.helpers.tiny_config import TINY

STEPS = 3
N_NEW_TOKENS = 5
# with a large eps, what AdamW does is smooth in the gradients, also where these are rounding noise
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-3, schedule="constant", warmup_steps=0, max_grad_norm=1e6)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Layouts of the calls; no dataset is needed."""

    dataset: Any = None
    actor: ModelArgs = field(default_factory=lambda: ModelArgs(path="actor"))
    ref: ModelArgs = field(default_factory=lambda: ModelArgs(path="ref"))
    actor_gen: CallArgs = field(default_factory=CallArgs)
    ref_inf: CallArgs = field(default_factory=CallArgs)
    reward: CallArgs = field(default_factory=CallArgs)
    actor_train: CallArgs = field(default_factory=CallArgs)

    def __post_init__(self) -> None:
        """Nothing is checked."""


class ActorInterface:
    """Generates a few tokens after each prompt, and learns those that the reference finds unlikely, by their reward."""

    dropout = False
    breaks_at: int | None = None
    """The step whose loss is NaN."""

    def __init__(self, config: Any = None) -> None:
        self.n_trained = 0
        self._is_broken = False

    def state(self) -> Mapping[str, Any]:
        return {"n_trained": self.n_trained}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.n_trained = state["n_trained"]

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        prompts = [ids.tolist() for ids in batch["prompt_ids"].split(lengths(batch, "prompt_ids"))]
        config = GenerationConfig(max_new_tokens=N_NEW_TOKENS, n=2)
        found = context.generate(model, prompts, config, batch.metadata["ids"])
        pairs = [found[2 * i : 2 * i + 2] for i in range(len(prompts))]
        sequences = [
            [torch.tensor(prompt + one.token_ids) for one in pair] for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        return NamedArray(
            input_ids=torch.cat([one for pair in sequences for one in pair]),
            prompt_lens=torch.tensor([len(prompt) for prompt in prompts for _ in range(2)]),
        ).with_metadata(
            seqlens={
                "input_ids": [[len(one) for one in pair] for pair in sequences],
                "prompt_lens": [[1, 1]] * len(pairs),
            },
            ids=batch.metadata["ids"],
        )

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        self.n_trained += 1
        self._is_broken = context.step == self.breaks_at
        return engine.train_batch(batch, self)

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        return [2 * (n + N_NEW_TOKENS) for n in lengths(sample, "prompt_ids")]

    def example(self, sample: NamedArray) -> Example:
        return Example(sample["prompt_ids"].tolist())

    def n_tokens(self, batch: NamedArray) -> list[int]:
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> int:
        return int(answer_mask(batch).sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        answers = answer_logprobs(network, batch)
        loss = (answers.sums - batch["ref_logprobs"]) * (batch["rewards"] - 1)
        if self._is_broken:
            loss = loss * float("nan")
        return LossOutput(-loss.sum(), {"rewards": batch["rewards"].sum()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {"loss": totals.loss, "reward": totals.stats["rewards"]}

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> dict[str, list[float]]:
        return {"n_tokens": [float(n) for n in lengths(batch, "input_ids")]}


class RefInterface:
    """Log-probabilities of whole answers."""

    def __init__(self, config: Any = None) -> None:
        """It has no settings."""

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        found = model.token_logprobs(batch["input_ids"], cu_seqlens(batch, "input_ids"))
        found = found * answer_mask(batch)
        sums = torch.stack([part.sum() for part in found.split(sequence_lengths(batch))])
        return per_sequence(batch, ref_logprobs=sums)


class RewardInterface:
    """A reward for each answer from its last token."""

    def __init__(self, config: Any = None) -> None:
        """It has no settings."""

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        last = torch.stack([ids[-1] for ids in batch["input_ids"].split(sequence_lengths(batch))])
        return per_sequence(batch, rewards=(last % 7).double())

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> dict[str, list[float]]:
        return {"reward": batch["rewards"].tolist()}


def sequence_lengths(batch: NamedArray) -> list[int]:
    return [n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]


def per_sequence(batch: NamedArray, **fields: Tensor) -> NamedArray:
    counts = [[1] * len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
    return NamedArray(**fields).with_metadata(seqlens=dict.fromkeys(fields, counts), ids=batch.metadata["ids"])


ALGORITHM = Algorithm(
    config=Config,
    graph=(
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), ("input_ids", "prompt_lens")),
        ModelFunctionCall("ref_inf", "ref", "inference", ("input_ids", "prompt_lens"), ("ref_logprobs",)),
        ModelFunctionCall("reward", "judge", "reward", ("input_ids",), ("rewards",)),
        ModelFunctionCall(
            "actor_train", "actor", "train_step", ("input_ids", "prompt_lens", "ref_logprobs", "rewards")
        ),
    ),
    interfaces={"actor": ActorInterface, "ref": RefInterface, "judge": RewardInterface},
)


@dataclass(frozen=True)
class Case:
    """A placement: the layout of each call, and the calls after which the model is offloaded."""

    name: str
    parallel: ParallelArgs = field(default_factory=ParallelArgs)
    layouts: Mapping[str, str] = field(default_factory=dict)
    offload: tuple[str, ...] = ()
    updates: tuple[WeightUpdate, ...] = ()
    """Those that follow the training."""

    def config(self) -> Config:
        names = [call.name for call in ALGORITHM.calls(None)]
        calls = {name: CallArgs(self.layouts.get(name), name in self.offload) for name in names}
        return Config(parallel=self.parallel, **calls)

    def algorithm(self) -> Algorithm:
        *others, train = ALGORITHM.calls(None)
        return replace(ALGORITHM, graph=(*others, replace(train, updates=self.updates)))


@dataclass(frozen=True)
class Outcome:
    """What a rank has after the steps."""

    metrics: list[dict[str, float]]
    evaluation: dict[str, float]
    tokens: list[list[int]]
    """Tokens of each generate call that this rank had a part in."""
    weights: dict[str, Tensor]
    """The final weights of the actor, whole, on the ranks that train it."""
    versions: Mapping[str, int]
    state: Mapping[str, Any]


def make_roles(case: Case, placement: Placement) -> dict[str, Role]:
    """The roles of the algorithm in float64, drawn from seeds."""
    roles: dict[str, Role] = {}
    meshes: dict[Any, Mesh] = {}
    alone = not dist.is_initialized()
    for seed, name in enumerate(("actor", "ref")):
        own = {} if alone else {one: meshes.setdefault(one, Mesh.of(one)) for one in placement.copies(name)}
        mesh = None if alone else own[placement.homes[name]]
        model = ReaLModel(TINY, dtype=torch.float64, seed=seed, mesh=mesh, zero=case.parallel.zero).eval()
        is_here = mesh is None or mesh.is_member
        engine = TrainEngine(model, OPTIMIZER, 10, 40) if name == "actor" and is_here else None
        roles[name] = Role(model, engine, engine, ModelArgs(path=name), torch.float64, None, own)
    return roles


def batch_of(step: int) -> NamedArray:
    """Prompts of uneven length."""
    generator = torch.Generator().manual_seed(step)
    samples = [
        NamedArray(prompt_ids=torch.randint(0, TINY.vocab_size, (n,), generator=generator)).with_metadata(
            seqlens={"prompt_ids": [[n]]}, ids=[f"{step}-{n}"]
        )
        for n in (3, 7, 4, 5, 2)
    ]
    return gather(samples)


def context(step: int, versions: Mapping[str, int], *, training: bool = True) -> CallContext:
    return CallContext(None, 5, step, STEPS, 40, training, versions)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Setup:
    """What a rank needs for steps of the algorithm."""

    executor: GraphExecutor
    roles: Mapping[str, Role]
    interfaces: Mapping[str, Any]

    def step(self, step: int) -> dict[str, float]:
        return self.executor.train(batch_of(step), context(step, self.executor.weights_versions))


def set_up(case: Case) -> Setup:
    torch.set_num_threads(1)
    config = case.config()
    graph = Graph.of(case.algorithm(), config)
    placement = Placement.of(config, graph, dist.get_world_size() if dist.is_initialized() else 1)
    interfaces = {role: ALGORITHM.interface_class(role)(config) for role in ALGORITHM.interfaces}
    roles = make_roles(case, placement)
    return Setup(GraphExecutor(graph, roles, interfaces, placement), roles, interfaces)


def train(rank: int, case: Case) -> Outcome:
    """A few steps and an evaluation under a placement."""
    setup = set_up(case)
    tokens: list[list[int]] = []
    setup.interfaces["actor"].generate = recorded(setup.interfaces["actor"].generate, tokens)
    metrics = []
    for step in range(1, STEPS + 1):
        found = setup.step(step)
        metrics.append({name: value for name, value in found.items() if not name.endswith(("_s", "_gib"))})
    versions = setup.executor.weights_versions
    evaluation = setup.executor.evaluate([batch_of(9)], context(STEPS, versions, training=False))
    actor = setup.roles["actor"].model
    weights: dict[str, Tensor] = {}
    if setup.roles["actor"].is_here:
        whole = actor if actor.mesh is None else actor.reallocate(f"dp1@{actor.layout.ranks[0]}")
        weights = {name: tensor.clone() for name, tensor in whole.local_tensors().items()}
    return Outcome(metrics, evaluation, tokens, weights, versions, setup.interfaces["actor"].state())


def recorded(generate: Any, tokens: list[list[int]]) -> Any:
    """`generate` that also notes the tokens."""

    def record(*args: Any) -> NamedArray:
        found: NamedArray = generate(*args)
        tokens.append(found["input_ids"].tolist())
        return found

    return record


def train_all(rank: int, cases: list[Case]) -> list[Outcome]:
    return [train(rank, case) for case in cases]
