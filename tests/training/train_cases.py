"""Training of tiny models in one process and by all ranks of a layout, for comparison."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.sharding import Box
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import local_boxes
from reallm.training.engine import TrainEngine
from reallm.training.objective import Objective
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY
from tests.training.loss_terms import GROUPS, OBJECTIVES

LLAMA = TINY.replace(n_layers=4, vocab_size=51)
EXPERTS = ("mlp.router", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down")
LINEAR = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
BIASES: dict[str, Any] = dict.fromkeys(("router_bias", "gate_bias", "up_bias", "down_bias"), True)
CONFIGS = {
    "llama": LLAMA,
    "tied": LLAMA.replace(tied_embeddings=True, q_bias=True, qk_norm="head"),
    "norm-of-all-heads": LLAMA.replace(qk_norm="whole", n_kv_heads=1),
    "layer-norm-of-all-heads": LLAMA.replace(
        qk_norm="whole",
        norm="layer",
        norm_bias=True,
        qk_norm_bias=True,
        o_bias=True,
        down_bias=True,
        head_bias=True,
    ),
    "mixtral": LLAMA.replace(n_layers=3, init_std=0.3, moe=MoEConfig(4, 2, 24, aux_loss_coef=0.5, layers=(0, 2))),
    "shared-experts": LLAMA.replace(
        n_layers=3, init_std=0.3, down_bias=True, moe=MoEConfig(4, 2, 24, n_shared_experts=2, layers=(1,), **BIASES)
    ),
    "gates": LLAMA.replace(
        q_bias=True,
        attn_output_gate=True,
        init_std=0.3,
        moe=MoEConfig(4, 2, 24, n_shared_experts=1, shared_intermediate_size=32, shared_gate=True),
    ),
    "lora": LLAMA.replace(tied_embeddings=True, q_bias=True, o_bias=True, lora=LoRAConfig(3, 6.0, LINEAR)),
    "lora-experts": LLAMA.replace(
        n_layers=3,
        init_std=0.3,
        moe=MoEConfig(4, 2, 24, n_shared_experts=2, aux_loss_coef=0.5, layers=(0, 2)),
        lora=LoRAConfig(3, 6.0, (*LINEAR, *EXPERTS, "mlp.shared.down")),
    ),
    "dora": LLAMA.replace(o_bias=True, lora=LoRAConfig(4, 8.0, LINEAR, rslora=True, dora=True)),
}
# with a large eps, what AdamW does is smooth in the gradients, also where these are rounding noise
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.1)


@dataclass(frozen=True)
class Case:
    """One training; `layout` None is one process."""

    layout: str | None
    config: str = "llama"
    zero: int = 3
    max_tokens: int = 30
    dtype: torch.dtype = torch.float32
    checkpointing: str = "none"
    dropout: float = 0.0
    sequence_parallel: bool = False
    n_layers: int | None = None
    """Other than those of the configuration."""
    objective: str = "sft"
    """Name of the objective: `sft`, or one of `loss_terms.OBJECTIVES`."""

    def __str__(self) -> str:
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        shown = {name: value for name, value in changed.items() if value != getattr(Case, name, None)}
        return "-".join(name if value is True else str(value) for name, value in shown.items())

    def model_config(self) -> ReaLModelConfig:
        config = CONFIGS[self.config]
        is_critic = True if self.objective == "scores" else None
        changes = {"residual_dropout": self.dropout or None, "n_layers": self.n_layers, "is_critic": is_critic}
        return config.replace(**{name: value for name, value in changes.items() if value is not None})

    def model(self) -> ReaLModel:
        mesh = None if self.layout is None else Mesh.of(self.layout)
        model = ReaLModel(
            self.model_config(),
            dtype=self.dtype,
            seed=3,
            mesh=mesh,
            zero=self.zero,
            sequence_parallel=self.sequence_parallel,
        )
        model.gradient_checkpointing = self.checkpointing  # type: ignore[assignment]
        return model

    def engine(self, optimizer: OptimizerConfig = OPTIMIZER, **kwargs: Any) -> TrainEngine:
        return TrainEngine(self.model(), optimizer, 10, self.max_tokens, **kwargs)


@dataclass(frozen=True)
class Run:
    """What a training gave."""

    metrics: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    parameters: dict[str, Tensor]
    """The parts that are here."""


def sample(row: int, n_tokens: int, n_prompt: int) -> NamedArray:
    generator = torch.Generator().manual_seed(row)
    mask = torch.arange(n_tokens) >= n_prompt
    ids = torch.randint(0, LLAMA.vocab_size, (n_tokens,), generator=generator)
    return NamedArray(input_ids=ids, loss_mask=mask).with_metadata(
        seqlens={"input_ids": [[n_tokens]], "loss_mask": [[n_tokens]]}, ids=[f"row-{row}"]
    )


def batch_of(*lengths: tuple[int, int]) -> NamedArray:
    """Samples of (tokens, prompt tokens)."""
    return gather([sample(row, n_tokens, n_prompt) for row, (n_tokens, n_prompt) in enumerate(lengths)])


# micro-batches of uneven size, samples without loss, fewer samples than ranks
BATCHES = [
    batch_of((5, 2), (30, 29), (17, 0), (8, 8), (2, 1), (40, 3)),
    batch_of((12, 3), (9, 1), (25, 10), (25, 20), (6, 6)),
    batch_of((11, 4)),
]


def trained(case: Case) -> Run:
    """Three steps, and an evaluation before the last."""
    engine = case.engine()
    objective: Objective = SFTInterface() if case.objective == "sft" else OBJECTIVES[case.objective]()
    batches = BATCHES if case.objective == "sft" else GROUPS
    *first, last = batches
    metrics = [engine.train_batch(batch, objective) for batch in first]
    evaluations = [objective.metrics(engine.evaluate(batches, objective))]
    metrics.append(engine.train_batch(last, objective))
    tensors = engine.model.local_tensors()
    return Run(metrics, evaluations, {name: tensor.clone() for name, tensor in tensors.items()})


def trained_here(rank: int, cases: list[Case]) -> list[Run | None]:
    """The trainings whose layout has this rank."""
    return [trained(case) if Layout.parse(str(case.layout)).coordinate(rank) else None for case in cases]


def all_on_ranks(n: int, cases: list[Case]) -> dict[Case, list[Run | None]]:
    """What each rank has of each training; one in three, done again in the same job, is the same, bit for bit."""
    torch.set_num_threads(1)
    again = cases[::3]
    by_rank = on_ranks(n, trained_here, [*cases, *again])
    found = {case: [of_rank[place] for of_rank in by_rank] for place, case in enumerate(cases)}
    for place, case in enumerate(again, len(cases)):
        for one, of_rank in zip(found[case], by_rank, strict=True):
            other = of_rank[place]
            if one is not None and other is not None:
                assert (one.metrics, one.evaluations) == (other.metrics, other.evaluations)
                assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in one.parameters.items())
    return found


def assert_as_one_process(case: Case, by_rank: list[Run | None]) -> None:
    """Up to rounding: float32 sums of a few hundred terms in another order."""
    whole = trained(replace(case, layout=None))
    layout = Layout.parse(str(case.layout))
    present = [run for run in by_rank if run is not None]
    assert len(present) == layout.size
    for run in present:
        assert run.metrics == present[0].metrics
        assert run.evaluations == present[0].evaluations
        for ours, theirs in ((run.metrics, whole.metrics), (run.evaluations, whole.evaluations)):
            for one, other in zip(ours, theirs, strict=True):
                assert one.keys() == other.keys()
                for name in one.keys() - {"tokens"}:  # those of micro-batches without loss are left out
                    assert one[name] == pytest.approx(other[name], rel=1e-5), name
    copies: dict[tuple[str, Box], Tensor] = {}
    for rank, run in enumerate(by_rank):
        boxes = local_boxes(case.model_config(), layout, rank)
        assert (run is None) == (not boxes)
        if run is not None:
            assert run.parameters.keys() == boxes.keys()
            for name, box in boxes.items():
                expected = whole.parameters[name][box.slices]
                torch.testing.assert_close(run.parameters[name], expected, rtol=1e-5, atol=2e-6, msg=name)
                # whoever has the same part has the same numbers: copies do not drift apart
                assert torch.equal(run.parameters[name], copies.setdefault((name, box), run.parameters[name])), name
