"""`model.reallocate`: from any layout to any other, with the numbers of the whole model and no byte too many."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, PeerError
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.reallocation import transfer
from reallm.reallocation.plan import plan
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY
from tests.helpers.waiting import wait_until

CONFIG = TINY.replace(n_layers=4, vocab_size=51, tied_embeddings=True, q_bias=True)
EXPERTS = CONFIG.replace(tied_embeddings=False, moe=MoEConfig(4, 2, 24, layers=(1, 3), up_bias=True, down_bias=True))
CRITIC = CONFIG.replace(is_critic=True, tied_embeddings=False)
LAYOUTS = ["tp2pp2", "dp4", "fsdp4", "tp4", "dp1", "tp2@2-3", "pp2@3,1", "fsdp2tp2", "fsdp3@0-2", "fsdp2pp2"]
PACK = torch.arange(23) % 51, torch.tensor([0, 9, 10, 23])


def differing(model: ReaLModel, whole: ReaLModel) -> list[str]:
    """Parameters of a model that are not the parts of the whole that its layout says."""
    found = model.local_tensors()
    expected = {name: whole.get_parameter(name).detach()[box.slices] for name, box in model.boxes.items()}
    assert found.keys() == expected.keys()
    return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


def copies(model: ReaLModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.local_tensors().items()}


def are_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def sent_by_pair(rank: int, config: ReaLModelConfig, pairs: list[tuple[str, str]]) -> list[int]:
    """Bytes that this rank sends in each move."""
    torch.set_num_threads(1)
    whole, first, sent = (
        ReaLModel(config, seed=3),
        ReaLModel(config, seed=3, mesh=Mesh.of("tp2pp2")),
        [],
    )
    models: dict[str, ReaLModel] = {}
    for source, target in pairs:
        if source not in models:
            models[source] = first.reallocate(source)
        moved = models[source].reallocate(target)
        assert (source, target, differing(moved, whole)) == (source, target, [])
        assert moved.moved is not None
        sent.append(moved.moved.bytes_sent)
    assert not any(differing(model, whole) for model in models.values())
    return sent


ALL_PAIRS = [(source, target) for source in LAYOUTS for target in LAYOUTS]


@pytest.mark.parametrize(
    ("config", "pairs"),
    [(CONFIG, ALL_PAIRS[::3]), (EXPERTS, ALL_PAIRS[::7]), (CRITIC, ALL_PAIRS[3::9])],
    ids=["tied", "experts", "critic"],
)
def test_each_rank_gets_its_parts_and_not_a_byte_is_sent_twice(config, pairs):
    by_rank = on_ranks(4, sent_by_pair, config, pairs)
    for number, (source, target) in enumerate(pairs):
        needed = plan(config, Layout.parse(source), Layout.parse(target)).lower_bound * 4
        assert (source, target, sum(sent[number] for sent in by_rank)) == (source, target, needed)


def outputs(rank: int) -> list[Tensor]:
    """Logits of a model that came from a pipeline of split layers, where it is whole and where it is split."""
    torch.set_num_threads(1)
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("tp2pp2")).eval()
    with torch.no_grad():
        return [model.reallocate(layout)(*PACK) for layout in ("dp4", "tp4")]


def test_a_model_computes_in_its_new_layout():
    with torch.no_grad():
        expected = ReaLModel(CONFIG, seed=3).eval()(*PACK)
    for whole, split in on_ranks(4, outputs):
        torch.testing.assert_close(whole, expected, rtol=0, atol=0)
        torch.testing.assert_close(split, expected, rtol=1e-5, atol=1e-5)


def in_other_types(rank: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    whole, model = ReaLModel(CONFIG, seed=3), ReaLModel(CONFIG, seed=3, mesh=Mesh.of("tp2@0-1"))
    before = copies(model)
    half = model.reallocate("dp2@2-3", dtype=torch.bfloat16)
    again = half.reallocate("pp2@0-1", dtype=torch.float32)
    assert (half.dtype, again.dtype) == (torch.bfloat16, torch.float32)
    assert are_equal(copies(model), before)
    rounded = {name: value.detach().bfloat16() for name, value in whole.named_parameters()}
    for moved, dtype in ((half, torch.bfloat16), (again, torch.float32)):
        expected = {name: rounded[name][box.slices].to(dtype) for name, box in moved.boxes.items()}
        assert are_equal(moved.local_tensors(), expected)
    full = model.reallocate("dp2@2-3")
    return {"half": half.moved.bytes_sent, "again": again.moved.bytes_sent, "full": full.moved.bytes_sent}


def test_the_narrower_type_travels():
    sent = [sum(numbers) for numbers in zip(*(each.values() for each in on_ranks(4, in_other_types)), strict=True)]
    half, again, full = sent
    assert 2 * half == full
    assert again < half  # each part goes to one stage only


def converted_first(rank: int) -> None:
    torch.set_num_threads(1)
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("dp1@0")).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16, "on rank 1, which has no parameters, too"
    moved = model.reallocate("dp1@1")
    expected = ReaLModel(CONFIG, seed=3, dtype=torch.bfloat16)
    assert differing(moved, expected) == []
    assert moved.dtype == torch.bfloat16
    assert moved.moved.bytes_sent == (0 if rank else sum(each.nbytes for each in expected.parameters()))


def test_a_rank_without_parameters_follows_their_conversion():
    on_ranks(2, converted_first)


def versions(model: ReaLModel) -> list[int]:
    return [parameter._version for parameter in model.parameters()]


def received(rank: int) -> None:
    torch.set_num_threads(1)
    source, target = (ReaLModel(CONFIG, seed=seed, mesh=Mesh.of(f"dp1@{seed}")) for seed in (0, 1))
    before = versions(target)
    source.reallocate("dp1@1", into=target)
    assert all(now > then for now, then in zip(versions(target), before, strict=True))
    assert len(before) == (0 if rank == 0 else len(list(ReaLModel(CONFIG, device="meta").parameters())))


def test_received_parameters_count_as_changed():
    on_ranks(2, received)


def mixed(rank: int) -> None:
    torch.set_num_threads(1)
    actor, reference = (ReaLModel(CONFIG, seed=seed, mesh=Mesh.of("tp2pp2")) for seed in (3, 4))
    target = reference.reallocate("fsdp2@1-2")
    before, actors = copies(target), copies(actor)
    assert actor.reallocate("fsdp2@1-2", into=target, eta=0.25) is target
    assert are_equal(copies(actor), actors)
    whole = ReaLModel(CONFIG, seed=3)
    for name, box in target.boxes.items():
        expected = whole.get_parameter(name).detach()[box.slices] * 0.25 + before[name] * 0.75
        assert torch.equal(target.local_tensors()[name], expected), name
    actor.reallocate("fsdp2@1-2", into=target)
    assert differing(target, whole) == []
    assert target(*PACK).shape == (23, 51) if rank in (1, 2) else True


def test_a_reference_follows_by_a_moving_average():
    on_ranks(4, mixed)


def with_shared_memory(rank: int) -> None:
    torch.set_num_threads(1)
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("dp4"))
    apart, sharing = model.reallocate("dp2"), model.reallocate("dp2", share=True)
    for name, tensor in model.local_tensors().items():
        if rank < 2:
            assert sharing.local_tensors()[name].data_ptr() == tensor.data_ptr()
            assert apart.local_tensors()[name].data_ptr() != tensor.data_ptr()
    assert rank < 2 or not sharing.local_tensors()


def test_memory_is_shared_where_that_is_asked_for():
    on_ranks(4, with_shared_memory)


def with_wrong_arguments(rank: int) -> None:
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("dp2"))
    other = model.reallocate("pp2")
    for arguments, said in (
        ({"to": "tp3"}, "needs rank 2, but the job has 2 ranks"),
        ({"to": "pp2", "eta": 0.5}, "eta=0.5 averages into an existing model; pass that as into="),
        ({"to": "tp2", "into": other}, "into= has the layout tp1pp2dp1, not tp2pp1dp1"),
        ({"to": "pp2", "into": other, "dtype": torch.bfloat16}, "into= has torch.float32, not torch.bfloat16"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.reallocate(**arguments)
    plan.cache_clear()
    for _ in range(3):
        model.reallocate("tp2")
    assert (plan.cache_info().misses, plan.cache_info().hits) == (1, 2)


def test_wrong_arguments_say_what_to_do_and_plans_are_kept():
    on_ranks(2, with_wrong_arguments)


def without_rank_1(rank: int, folder: Path) -> str:
    """The others' error; rank 1 does not come."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=4)
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("tp2pp2", timeout=timeout))
    target = ReaLModel(CONFIG, seed=4, mesh=Mesh.of("dp4", timeout=timeout))
    model.meshes.get(target.mesh)
    before = copies(model)
    if rank == 1:
        wait_until(lambda: len(list(folder.glob("failed*"))) == 3)
        return ""
    with pytest.raises(PeerError) as caught:
        model.reallocate("dp4", into=target)
    (folder / f"failed{rank}").touch()
    assert are_equal(copies(model), before)
    for use in (target.local_tensors, lambda: target(*PACK)):
        with pytest.raises(PeerError, match=f"rank {rank}: an earlier move into this model has failed"):
            use()
    return str(caught.value)


def test_a_missing_rank_is_named_and_nothing_is_half_moved(tmp_path):
    said = on_ranks(4, without_rank_1, tmp_path)
    named = [text for text in said if "for rank 1 to" in text or "lost rank 1" in text]
    assert named
    assert all("'layers." in text for text in named)
    assert all(text.startswith(f"rank {rank} ") for rank, text in enumerate(said) if text)


def with_an_altered_element(rank: int) -> str:
    torch.set_num_threads(1)
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("tp2@0-1"))
    target = ReaLModel(CONFIG, seed=4, mesh=Mesh.of("dp2@2-3"))
    kept, post = [], transfer.post

    def altering(endpoints, buffers, group, deadline):
        sent = [buffer.clone() if one.is_send else buffer for one, buffer in zip(endpoints, buffers, strict=True)]
        if rank == 1 and not kept:
            next(buffer for buffer in sent if buffer.is_floating_point())[5] += 1.0
        kept.append(sent)  # until they have left
        return post(endpoints, sent, group, deadline)

    transfer.post = altering
    try:
        with pytest.raises(PeerError) as caught:
            model.reallocate("dp2@2-3", into=target, checksum=True)
    finally:
        transfer.post = post
    with pytest.raises(PeerError, match="an earlier move into this model has failed"):
        target.local_tensors()
    model.reallocate("dp2@2-3", into=target, checksum=True)
    assert differing(target, ReaLModel(CONFIG, seed=3)) == []
    return str(caught.value)


def test_checksums_find_one_altered_element():
    said = on_ranks(4, with_an_altered_element)
    finders = [rank for rank, text in enumerate(said) if "its checksum differs" in text]
    assert finders
    assert all("from rank 1 is not what that rank has sent" in said[rank] for rank in finders)
    assert all(
        f"rank {finders[0]} did not receive its parameters" in said[rank] for rank in range(4) if rank not in finders
    )
