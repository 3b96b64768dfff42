"""Refusals of a base in 4 bits before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.config.args import CallArgs, ModelArgs, ReferenceArgs
from reallm.config.lora import LoRAArgs
from reallm.config.parallel import ParallelArgs
from reallm.errors import ConfigError
from reallm.experiments.preflight.quantized_base import check_quantized_base, check_quantized_calls
from reallm.model.lora_config import LoRAConfig
from reallm.planning.job import PlannedJob
from reallm.specs import ModelFunctionCall
from tests.algorithms.three_roles import Config
from tests.helpers.tiny_config import TINY

QUANTIZED = ModelArgs(path="actor", device="cpu", lora=LoRAArgs(rank=4, quantize_base="nf4"))
GRAPH = Graph.from_calls(
    [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompts",), ("tokens",)),
        ModelFunctionCall("ref_inf", "ref", "inference", ("tokens",), ("ref_logprobs",)),
        ModelFunctionCall("reward", "judge", "reward", ("tokens",), ("rewards",)),
        ModelFunctionCall("actor_train", "actor", "train_step", ("tokens", "ref_logprobs", "rewards")),
    ]
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actor_gen": CallArgs("dp2")},
            r"^actor.lora.quantize_base: a base model in 4 bits is held whole by one process, and actor_gen.layout is",
        ),
        (
            {"parallel": ParallelArgs(tp=2)},
            r"^actor.lora.quantize_base: .* and parallel.\* is tp2; leave one of the two",
        ),
        (
            {"actor_train": CallArgs(offload=True)},
            r"^actor_train.offload=true does not work with actor.lora.quantize_base; leave one of the two out$",
        ),
    ],
)
def test_calls_that_move_or_split_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_quantized_calls(Config(actor=QUANTIZED, **changes), GRAPH)


def test_other_roles_may_be_split_and_offloaded() -> None:
    check_quantized_calls(Config(actor=QUANTIZED, ref_inf=CallArgs("dp2", offload=True)), GRAPH)
    check_quantized_calls(Config(parallel=ParallelArgs(tp=2)), GRAPH)


def test_the_device_is_named_by_the_key_of_the_role() -> None:
    check_quantized_base("ref", ModelArgs(path="ref"))
    with pytest.raises(ConfigError, match=r"^actor.lora.quantize_base=nf4 needs a CUDA GPU, and the device is cpu"):
        check_quantized_base("actor", QUANTIZED)


def test_nothing_is_planned_for_it() -> None:
    model = TINY.replace(lora=LoRAConfig(4, 8.0, ("attn.q",), quantize_base="nf4"))
    with pytest.raises(
        ConfigError, match=r"^actor.lora.quantize_base: .* so that there is nothing to plan; leave it out"
    ):
        PlannedJob.of(Config(), GRAPH, {"actor": model}, None, None)  # type: ignore[arg-type]


def test_the_reference_of_a_policy_that_starts_from_an_adapter_has_its_base_too() -> None:
    trained = ModelArgs(path="base", lora=LoRAArgs(path="adapter", quantize_base="nf4"))
    assert ReferenceArgs().following(trained).lora == trained.lora
