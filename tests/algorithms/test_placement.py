"""Where calls are computed, and what is sent between ranks; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement, Transfer
from reallm.config.args import CallArgs, ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.parallel import ParallelArgs
from reallm.errors import ConfigError
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall
from tests.algorithms import three_roles


@dataclass(frozen=True)
class Config(three_roles.Config):
    """With a call that the graph does not have."""

    other_inf: CallArgs = field(default_factory=CallArgs)


GRAPH = Graph.from_calls(
    [
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompts",), ("tokens",)),
        ModelFunctionCall("ref_inf", "ref", "inference", ("tokens",), ("ref_logprobs",)),
        ModelFunctionCall("reward", "judge", "reward", ("tokens",), ("rewards",)),
        ModelFunctionCall("actor_train", "actor", "train_step", ("tokens", "ref_logprobs", "rewards")),
    ]
)


def placement(n_ranks: int = 4, parallel: ParallelArgs | None = None, **layouts: str) -> Placement:
    calls = {name: CallArgs(layout) for name, layout in layouts.items()}
    return Placement.of(Config(parallel=parallel or ParallelArgs(), **calls), GRAPH, n_ranks)


def test_a_call_without_a_layout_has_that_of_the_job() -> None:
    found = placement(4, ParallelArgs(tp=2))
    assert found.layouts["ref_inf"] == Layout(dp=2, tp=2)
    assert found.layouts["actor_gen"] == found.layouts["actor_train"] == Layout(dp=2, tp=2, fsdp=True)
    assert found.copies("actor") == (Layout(dp=2, tp=2, fsdp=True),)
    assert [call.name for call in found.graph.calls if not found.is_whole(call.name)] == ["reward"]
    assert found.ranks("reward") == (0,), "what it computes may depend on time"
    assert found.transfers(GRAPH.calls) == tuple(
        Transfer("reward", "actor_train", ("rewards",), 0, rank) for rank in (1, 2, 3)
    )


def test_the_home_of_a_role_is_where_it_is_trained_or_first_called() -> None:
    found = placement(actor_gen="dp4", actor_train="tp2pp2", ref_inf="tp2@2-3")
    assert found.homes == {"actor": Layout(pp=2, tp=2), "ref": Layout(tp=2, ranks=(2, 3))}
    assert found.copies("actor") == (Layout(pp=2, tp=2), Layout(dp=4))
    assert found.copies("ref") == (Layout(tp=2, ranks=(2, 3)),)


def test_calls_that_differ_only_in_sharding_share_the_copy_that_is_trained() -> None:
    found = placement(actor_gen="dp4", actor_train="dp4")
    assert found.copies("actor") == (Layout(dp=4, fsdp=True),)
    assert placement(actor_gen="dp2@2-3", actor_train="dp2").copies("actor") == (
        Layout(dp=2, fsdp=True),
        Layout(dp=2, ranks=(2, 3)),
    )


ADAPTED = ModelArgs(path="a", device="cpu", lora=LoRAArgs(rank=2))
GOES_ON = ModelArgs(path="a", device="cpu", lora=LoRAArgs(path="adapter"))


@pytest.mark.parametrize(
    ("actor", "ref", "shares"),
    [
        (ADAPTED, ModelArgs(path="a", device="cpu"), True),
        (ADAPTED, ModelArgs(path="a"), True),  # auto is the CPU here
        (ADAPTED, ModelArgs(path="a", device="cuda"), False),
        (ADAPTED, ModelArgs(path="a", dtype="bfloat16"), False),
        (ADAPTED, ModelArgs(path="b"), False),
        (ADAPTED, GOES_ON, False),
        (GOES_ON, ModelArgs(path="a"), True),
        (GOES_ON, ModelArgs(path="a", lora=LoRAArgs(path="adapter")), True),
        (GOES_ON, ModelArgs(path="a", lora=LoRAArgs(path="another")), False),
        (ModelArgs(path="a"), ModelArgs(path="a"), False),
    ],
)
def test_a_role_shares_the_base_model_of_adapters(
    actor: ModelArgs, ref: ModelArgs, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = Config(actor=actor, ref=ref, ref_inf=CallArgs("dp2"), actor_train=CallArgs("dp2"))
    found = Placement.of(config, GRAPH, 2)
    assert found.shared == ({"ref": "actor"} if shares else {})
    assert found.holder("ref") == ("actor" if shares else "ref")
    assert found.homes["ref"] == Layout(dp=2, fsdp=shares)


def test_a_shared_model_is_not_offloaded_by_the_role_that_shares_it() -> None:
    for key in ("offload", "prefetch"):
        config = Config(actor=ADAPTED, ref=ModelArgs(path="a", device="cpu"), ref_inf=CallArgs(**{key: True}))
        message = rf"^ref_inf.{key}=true has no effect: 'ref' shares the base model of 'actor'; leave it out"
        with pytest.raises(ConfigError, match=message):
            Placement.of(config, GRAPH, 1)


def test_each_key_is_sent_once_to_each_rank_that_lacks_it() -> None:
    found = placement(actor_gen="dp2@2-3", ref_inf="dp1@1", reward="dp1@3", actor_train="dp2")
    assert found.transfers(GRAPH.calls) == (
        Transfer("actor_gen", "ref_inf", ("tokens",), 2, 1),
        Transfer("actor_gen", "actor_train", ("tokens",), 2, 0),
        Transfer("ref_inf", "actor_train", ("ref_logprobs",), 1, 0),
        Transfer("reward", "actor_train", ("rewards",), 3, 0),
        Transfer("reward", "actor_train", ("rewards",), 3, 1),
    )
    assert not found.is_whole("actor_train")


def test_keys_that_no_call_writes_are_everywhere() -> None:
    found = placement(actor_gen="dp2@2-3", ref_inf="dp1@1", actor_train="dp2")
    precomputed = [call for call in GRAPH.calls if call.name not in ("actor_gen", "reward")]
    assert found.transfers(precomputed) == (Transfer("ref_inf", "actor_train", ("ref_logprobs",), 1, 0),)


def test_as_many_processes_are_started_as_the_largest_layout_needs() -> None:
    assert Config().n_processes == 1
    assert Config(parallel=ParallelArgs(dp=3), actor_gen=CallArgs("tp2")).n_processes == 3
    assert Config(actor_gen=CallArgs("dp2"), actor_train=CallArgs("tp2@4-5")).n_processes == 6


@pytest.mark.parametrize(
    ("n_ranks", "layouts", "message"),
    [
        (2, {"actor_gen": "dp4"}, r"actor_gen\.layout=dp4 takes 4 processes, but 2 were started"),
        (1, {"actor_gen": "dp1@1"}, r"actor_gen\.layout=dp1@1 takes 2 processes, but 1 was started"),
        (4, {"reward": "tp2"}, r"reward\.layout=tp2: a reward has no model"),
        (4, {"other_inf": "dp4"}, r"other_inf\.layout=dp4: with these settings the algorithm has no call 'other_inf'"),
    ],
)
def test_layouts_that_are_not_possible_are_refused(n_ranks: int, layouts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placement(n_ranks, **layouts)


def test_the_sizes_of_the_job_matter_only_to_calls_without_a_layout() -> None:
    given = {"actor_gen": "dp4", "ref_inf": "dp4", "reward": "dp4", "actor_train": "dp4"}
    placement(4, ParallelArgs(dp=2), **given)
    del given["ref_inf"]
    with pytest.raises(ConfigError, match=r"parallel\.dp=2 takes 2 processes, but 4 were started.*or give each call a"):
        placement(4, ParallelArgs(dp=2), **given)


def test_a_copy_is_prefetched_if_a_call_to_it_offloads_it() -> None:
    both = Config(actor_gen=CallArgs("dp4", offload=True), actor_train=CallArgs("dp4", prefetch=True))
    assert Placement.of(both, GRAPH, 4).prefetched == {"actor_train"}
    other = Config(actor_gen=CallArgs("dp2", offload=True), actor_train=CallArgs("dp4", prefetch=True))
    with pytest.raises(
        ConfigError, match=r"actor_train\.prefetch=true: its model is never offloaded; add actor_train\.o"
    ):
        Placement.of(other, GRAPH, 4)
    with pytest.raises(ConfigError, match=r"reward\.prefetch=true: a reward has no model"):
        Placement.of(Config(reward=CallArgs(prefetch=True)), GRAPH, 4)


def test_a_call_of_micro_batches_may_have_a_limit_of_its_own() -> None:
    found = Placement.of(Config(actor_train=CallArgs(max_tokens_per_microbatch=4096)), GRAPH, 1)
    assert found.max_tokens == {"actor_train": 4096}
    limited = CallArgs(max_tokens_per_microbatch=10)
    for config, message in (
        (Config(reward=limited), r"reward\.max_tokens_per_microbatch=10: a reward has no model; leave it out"),
        (Config(actor_gen=limited), r"actor_gen\.max_tokens_per_microbatch=10 has no effect: what is generated"),
        (Config(other_inf=limited), r"other_inf\.max_tokens_per_microbatch=10: with these settings .* has no call"),
    ):
        with pytest.raises(ConfigError, match=message):
            Placement.of(config, GRAPH, 1)
    with pytest.raises(ConfigError, match=r"max_tokens_per_microbatch=0 must be at least 1"):
        CallArgs(max_tokens_per_microbatch=0)
