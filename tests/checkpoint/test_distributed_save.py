"""Checkpoints that several ranks write together: those of one process, whole or not at all."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from reallm import Mesh, ReaLModel
from reallm.checkpoint import distributed_save as saving
from reallm.checkpoint.distributed_save import TensorToWrite, write_tensors_distributed
from reallm.errors import DataError, PeerError
from reallm.model.sharding import Box
from reallm.parallel.mesh import Group
from reallm.parallel.object_collectives import all_gather_json, fail_together
from tests.helpers.hf_grid import raw_config, save_hf
from tests.helpers.ranks import on_ranks
from tests.helpers.waiting import wait_until

LAYOUTS = ["dp2", "pp2", "tp2", "fsdp2", "tp2pp2", "fsdp4", "fsdp2tp2", "pp2@3,1"]
FAMILIES = ["gqa", "qwen3-moe-dense-layer", "gpt2", "phi3"]
"""Plain renaming; experts, which are stacked; matrices that are turned round; several of ours in one of theirs."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in FAMILIES:
        save_hf(raw_config(name), folder / name)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    return found


def logits_of_transformers(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.arange(12)[None]).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def save_in_each_layout(rank: int, checkpoints: Path, out: Path) -> list[tuple[str, int, int]]:
    """Layout, bytes that this rank has read, and bytes of what it has, of each model."""
    torch.set_num_threads(1)
    read = []
    for layout in LAYOUTS:
        mesh = Mesh.of(layout)
        for name in FAMILIES:
            model = ReaLModel.from_pretrained(checkpoints / name, mesh=mesh)
            model.save_pretrained(out / layout / name, max_shard_size="20KB")
            share = sum(tensor.nbytes for tensor in model.local_tensors().values())
            read.append((f"{name} {layout}", model.bytes_read, share))
    model = ReaLModel.from_pretrained(checkpoints / "gqa", mesh=Mesh.of("dp4"))
    model.save_pretrained(out / "half", dtype=torch.bfloat16)
    return read


def test_they_are_those_of_one_process(checkpoints, tmp_path):
    for read_by_rank in on_ranks(4, save_in_each_layout, checkpoints, tmp_path):
        for where, read, share in read_by_rank:
            assert abs(read - share) <= 0.01 * share, where
    for name in FAMILIES:
        expected = tensors_of(checkpoints / name)
        for layout in LAYOUTS:
            folder = tmp_path / layout / name
            found = tensors_of(folder)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected), (layout, name)
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
            assert index["weight_map"].keys() == expected.keys()
            files = set(index["weight_map"].values())
            assert {path.name for path in folder.glob("*.safetensors")} == files
            assert len(files) >= 2
        assert torch.equal(
            logits_of_transformers(tmp_path / "tp2pp2" / name), logits_of_transformers(checkpoints / name)
        )
    half = tensors_of(tmp_path / "half")
    assert all(torch.equal(half[key], value.bfloat16()) for key, value in tensors_of(checkpoints / "gqa").items())


def fail_on_one(rank: int, checkpoints: Path, out: Path) -> str:
    torch.set_num_threads(1)
    model = ReaLModel.from_pretrained(checkpoints / "gqa", mesh=Mesh.of("tp2pp2"))
    model.save_pretrained(out / "model")
    write = saving.write_file

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    saving.write_file = full if rank == 2 else write
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    try:
        with pytest.raises(DataError) as caught:
            model.save_pretrained(out / "model")
    finally:
        saving.write_file = write
    return str(caught.value)


def test_a_full_disk_on_one_rank_is_everybodys_and_the_old_checkpoint_stays(checkpoints, tmp_path):
    (said,) = set(on_ranks(4, fail_on_one, checkpoints, tmp_path))
    assert re.fullmatch(
        rf"rank 2: cannot write {tmp_path}/\S+/model-0000\d-of-00004.safetensors: No space left .*", said
    )
    expected, found = tensors_of(checkpoints / "gqa"), tensors_of(tmp_path / "model")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def say(rank: int) -> list[object]:
    group: Group = Mesh.of("dp3@0-2").all if rank < 3 else Mesh.of("dp1@3").all
    value = {"rank": rank, "text": "é" * rank, "number": 0.1 + rank, "none": None, "infinite": float("inf")}
    heard = all_gather_json(value, group)
    assert heard[rank] == value
    return list(heard)


def test_words_of_any_length_arrive_as_they_are():
    assert on_ranks(4, say) == [[0, 1, 2]] * 3 + [[3]]


def break_a_promise(rank: int) -> str:
    try:
        with fail_together(Mesh.of("dp2")):
            if rank == 1:
                raise ZeroDivisionError("by zero")
    except (ZeroDivisionError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_an_error_of_the_program_keeps_its_traceback_where_it_is():
    assert on_ranks(2, break_a_promise) == [
        "PeerError: rank 1 failed: ZeroDivisionError: by zero",
        "ZeroDivisionError: by zero",
    ]


def save_beside_others(rank: int, checkpoints: Path, out: Path) -> None:
    torch.set_num_threads(1)
    if rank < 2:
        for layout in ("tp2@0-1", "pp2@0-1"):
            model = ReaLModel.from_pretrained(checkpoints / "gqa", mesh=Mesh.of(layout))
            model.save_pretrained(out / layout, max_shard_size="20KB")
        return
    whole = ReaLModel.from_pretrained(checkpoints / "gqa")
    model = ReaLModel.from_pretrained(checkpoints / "gqa", mesh=Mesh.of("tp2@2-3"))
    for layout in ("pp2@2-3", "dp2@2-3", "tp2@2-3"):
        model = model.reallocate(layout)
    expected = whole.local_tensors()
    assert all(torch.equal(tensor, expected[name][model.boxes[name].slices])
               for name, tensor in model.local_tensors().items())  # fmt: skip


def test_some_ranks_save_while_others_move_a_model(checkpoints, tmp_path):
    on_ranks(4, save_beside_others, checkpoints, tmp_path)
    expected = tensors_of(checkpoints / "gqa")
    for layout in ("tp2@0-1", "pp2@0-1"):
        found = tensors_of(tmp_path / layout)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def save_without_rank_1(rank: int, out: Path) -> str:
    """Each of two ranks has half of the rows of a matrix."""
    mesh = Mesh.of("fsdp2", timeout=timedelta(seconds=4))
    boxes = {0: {"m": Box((0, 0), (2, 3))}, 1: {"m": Box((2, 0), (4, 3))}}
    whole = torch.arange(12.0).view(4, 3)
    matrix = TensorToWrite(
        "w", (4, 3), torch.bfloat16, torch.float32, (("m", Box.whole((4, 3))),), lambda boxes: boxes[0]
    )
    local = {"m": whole[boxes[rank]["m"].slices]}
    write_tensors_distributed(out, mesh, [matrix], boxes, local)
    failed = out / "failed"
    if rank == 1:
        wait_until(failed.exists)
        return ""
    with pytest.raises(PeerError) as caught:
        write_tensors_distributed(out, mesh, [matrix], boxes, local)
    failed.touch()
    return str(caught.value)


def test_a_rank_that_is_missing_while_files_are_gathered_is_named(tmp_path):
    error, _ = on_ranks(2, save_without_rank_1, tmp_path)
    assert re.match(
        r"rank 0 waited \d+\.\d s for rank 1 to send 'm for w': that rank is missing, stuck, or waits", error
    )
    (tensor,) = tensors_of(tmp_path).values()
    assert torch.equal(tensor, torch.arange(12.0).view(4, 3).bfloat16())
