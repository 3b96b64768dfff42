"""The memory of all roles together: what stays, and the largest call."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.config.args import CallArgs, CriticArgs, ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError
from reallm.experiments.preflight import memory
from reallm.experiments.preflight.memory import memory_lines
from reallm.experiments.preflight.models import planned_model
from reallm.launch.job import Job
from reallm.model.config import ReaLModelConfig
from reallm.model.lora_config import LoRAConfig
from reallm.specs import ModelFunctionCall
from tests.helpers.tiny_config import TINY

MODEL = TINY.replace(n_layers=4, hidden_size=256, n_q_heads=4, n_kv_heads=4, head_dim=64, intermediate_size=512)
LARGEST = (300, 212)


@dataclass(frozen=True)
class PPOLikeConfig(TrainingConfig):
    actor: ModelArgs = field(default_factory=ModelArgs)
    critic: CriticArgs = field(default_factory=CriticArgs)
    ref: ModelArgs = field(default_factory=ModelArgs)
    actor_gen: CallArgs = field(default_factory=CallArgs)
    ref_inf: CallArgs = field(default_factory=CallArgs)
    dataset: Any = None

    def __post_init__(self) -> None:
        """No dataset is installed beside the core."""


class Interface:
    pass


class Generating:
    def planned_kv_tokens(self, batch_size: int) -> int:
        return 1000 * batch_size


def calls(*, precompute: bool = False) -> list[ModelFunctionCall]:
    inputs = ("prompt_ids" if precompute else "ids",)
    return [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), ("ids",)),
        ModelFunctionCall("ref_inf", "ref", "inference", inputs, ("ref",), precompute),
        ModelFunctionCall("actor_train", "actor", "train_step", ("ids", "ref")),
        ModelFunctionCall("critic_train", "critic", "train_step", ("ids",)),
    ]


def lines(
    graph: Graph | None = None, job: Job | None = None, models: dict[str, ReaLModelConfig] | None = None, **changes: Any
) -> list[str]:
    graph, job = graph or Graph.from_calls(calls()), job or Job()
    args = {role: ModelArgs(path="x", device="cpu") for role in ("actor", "ref")}
    config = PPOLikeConfig(**{**args, "critic": CriticArgs(path="x", device="cpu"), **changes})
    models = models or {"actor": MODEL, "ref": MODEL, "critic": MODEL.replace(is_critic=True)}
    interfaces = {"actor": Generating(), "ref": Interface(), "critic": Interface()}
    placement = Placement.of(config, graph, job.size)
    return memory_lines(config, graph, placement, interfaces, models, dict.fromkeys(graph.roles, LARGEST), 4, job)


def mib(line: str) -> float:
    """The first size in a line."""
    words = line.partition("about ")[2].split()
    return float(words[0].replace(",", "")) * {"MiB": 1, "GiB": 1024}[words[1].rstrip(":,")]


def test_each_role_has_a_line_and_their_sum_counts_one_call_at_a_time() -> None:
    actor, ref, critic, total, free = lines()
    assert actor.startswith("memory of actor: about ")
    assert "gradients" in actor
    assert "keys and values of 4,000 tokens" in actor
    assert ref.startswith("memory of ref: about ")
    assert "gradients" not in ref
    assert "optimizer" not in ref
    assert critic.startswith("memory of critic: about ")
    assert total.startswith("memory of all roles: about ")
    assert total.endswith(" at the peak, when actor is called")
    assert mib(actor) < mib(total) < sum(map(mib, (actor, ref, critic)))
    assert free.endswith("is free on cpu")


def test_an_offloaded_role_counts_during_its_calls_and_a_precomputed_one_before_training() -> None:
    whole = mib(lines()[3])
    offloaded = lines(ref_inf=CallArgs(offload=True))
    assert offloaded[1].startswith("memory of ref, offloaded: about ")
    before = lines(Graph.from_calls(calls(precompute=True)))
    assert any(line.startswith("memory of ref, before training unless cached: about ") for line in before)
    [total_before] = [mib(line) for line in before if "all roles" in line]
    parameters = 4 * sum(p.numel() for p in _network().parameters()) / 2**20
    for total in (mib(offloaded[3]), total_before):
        assert whole - total == pytest.approx(parameters, abs=1.1)


def _network() -> Any:
    from reallm.model.parameters import meta_model

    return meta_model(MODEL)


def test_the_base_of_a_policy_with_adapters_counts_once_unless_the_reference_is_loaded_before() -> None:
    lora = MODEL.replace(lora=LoRAConfig(2, 4.0, ("attn.q",)))
    models = {"actor": lora, "ref": MODEL, "critic": MODEL.replace(is_critic=True)}
    actor = ModelArgs(path="x", device="cpu", lora=LoRAArgs(rank=2, targets="q_proj"))
    together, apart = (lines(models=models, actor=actor, ref=ModelArgs(path=path, device="cpu")) for path in ("x", "y"))
    parameters = 4 * sum(p.numel() for p in _network().parameters()) / 2**20
    assert mib(apart[3]) - mib(together[3]) == pytest.approx(parameters, abs=1.1)
    before = Graph.from_calls(calls(precompute=True))
    loaded, other = (
        lines(before, models=models, actor=actor, ref=ModelArgs(path=path, device="cpu")) for path in ("x", "y")
    )
    assert loaded[:-1] == other[:-1]  # all but the free memory


def test_a_copy_in_another_layout_counts() -> None:
    job = Job(0, 2, 0, 2)
    here = lines(job=job)
    assert here[0].startswith("memory of actor of each process: about ")
    assert "copies in other layouts" not in here[0]
    copied = lines(job=job, actor_gen=CallArgs(layout="tp2"))
    assert "copies in other layouts" in copied[0]
    assert mib(copied[3]) > mib(here[3])


def test_what_cannot_fit_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 10 * 2**20)
    with pytest.raises(ConfigError, match=r"optimizers alone do not fit: offload a role between its calls"):
        lines()
    total = mib(lines_of_total())
    monkeypatch.setattr(memory, "available_memory", lambda device: int(0.8 * total * 2**20))
    wide = MODEL.replace(vocab_size=50)
    with pytest.raises(ConfigError, match=r"^training takes about .* is free on cpu: "):
        lines(models={"actor": wide, "ref": wide, "critic": wide.replace(is_critic=True)})


def lines_of_total() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_memory", lambda device: None)
        return next(line for line in lines() if "all roles" in line)


def test_a_critic_is_planned_with_its_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def load(path: str, *, is_critic: bool, implementation: str) -> ReaLModelConfig:
        asked.append(is_critic)
        return TINY.replace(is_critic=is_critic)

    monkeypatch.setattr("reallm.experiments.preflight.models.load_model_config", load)
    assert planned_model(CriticArgs(path="x"), None).is_critic
    assert planned_model(ModelArgs(path="x"), 60).vocab_size == 60
    assert asked == [True, False]
