"""Each rank of a layout reads its part of a checkpoint, and nothing else of the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from reallm.checkpoint.load import read_boxes, read_checkpoint
from reallm.checkpoint.save import Export, write_checkpoint
from reallm.errors import CheckpointError, ConfigError
from reallm.hf.checkpoint_folder import read_hf_config
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.families import family_for
from reallm.hf.conversion.slicing import contiguous_runs, read_slice
from reallm.hf.conversion.state_dict import state_dict_to_hf
from reallm.hf.family import HFFamily
from reallm.hf.standard import GATED_DECODER
from reallm.hf.tables.arrangements import Fused, Source
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box, Shape
from reallm.model.transformer import Transformer, initial_weight
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import local_boxes
from reallm_hf_llama.plugin import LLAMA
from tests.helpers.hf_grid import raw_config, save_hf

LAYOUTS = ("tp2", "tp4", "pp2", "fsdp2", "fsdp3", "fsdp5", "dp2", "tp2pp2", "tp2fsdp2", "tp2pp2fsdp3")
GRID = {
    "gqa": torch.float32,
    "mqa": torch.bfloat16,
    "all-biases-tied": torch.float32,
    "mixtral": torch.float32,  # a tensor of theirs holds one or all experts
    "qwen3-moe-dense-layer": torch.bfloat16,
    "gemma2": torch.float32,
    "gpt2": torch.float32,  # fused and transposed
    "gpt2-untied": torch.float16,
    "phi3": torch.bfloat16,  # fused
}
"""Entry of the grid -> type in the files; its vocabulary of 97 is not divisible."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, dtype in GRID.items():
        made[name] = tmp_path_factory.mktemp(name)
        save_hf(raw_config(name), made[name], dtype=dtype, max_shard_size="40KB")
    return made


def opened(folder: Path, *, is_critic: bool | None = None) -> tuple[HFFamily, ReaLModelConfig]:
    raw = read_hf_config(folder)
    family = family_for(raw, folder)
    return family, config_from_hf(family, raw, is_critic=is_critic)


def all_boxes(config: ReaLModelConfig) -> Iterator[tuple[str, Mapping[str, Box]]]:
    """The boxes of every rank of every layout that fits."""
    for text in LAYOUTS:
        layout = Layout.parse(text)
        try:
            yield from ((f"{text} rank {rank}", local_boxes(config, layout, rank)) for rank in layout.ranks)
        except ConfigError:
            assert config.n_layers < layout.pp or config.n_q_heads % layout.tp


def n_bytes(boxes: Mapping[str, Box], whole: Mapping[str, Tensor]) -> int:
    return sum(box.numel * whole[name].itemsize for name, box in boxes.items())


@pytest.mark.parametrize("name", GRID)
def test_every_part_in_every_layout_is_a_slice_of_the_whole_and_the_bytes_read_are_its_own(
    folders: dict[str, Path], name: str
) -> None:
    family, config = opened(folders[name])
    whole = read_checkpoint(folders[name], family, config)
    seen = 0
    for where, boxes in all_boxes(config):
        read = read_boxes(folders[name], family, config, boxes)
        assert read.tensors.keys() == boxes.keys(), where
        for key, box in boxes.items():
            assert read.tensors[key].dtype == GRID[name]
            assert read.tensors[key].is_contiguous()
            assert torch.equal(read.tensors[key], whole[key][box.slices]), (where, key)
        assert read.bytes_read == n_bytes(boxes, whole), where
        seen += 1
    assert seen > 20


def poisoned(source: Path, target: Path, family: HFFamily, config: ReaLModelConfig, boxes: Mapping[str, Box]) -> None:
    """A copy of a checkpoint in which all that is in no box is NaN."""
    whole = read_checkpoint(source, family, config)
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in whole.items()}
    for name, box in boxes.items():
        state[name][box.slices] = whole[name][box.slices]
    write_checkpoint(target, Export(read_hf_config(source), state_dict_to_hf(family, state, config)))


@pytest.mark.parametrize("name", ["gqa", "gpt2", "phi3", "mixtral"])
@pytest.mark.parametrize("layout", ["tp2pp2", "fsdp3"])
def test_what_other_ranks_have_is_not_needed(folders: dict[str, Path], name: str, layout: str, tmp_path: Path) -> None:
    family, config = opened(folders[name])
    boxes = local_boxes(config, Layout.parse(layout), 1)
    poisoned(folders[name], tmp_path / "copy", family, config, boxes)
    part = read_boxes(tmp_path / "copy", family, config, boxes).tensors
    assert part.keys() == boxes.keys()
    assert all(tensor.isfinite().all() for tensor in part.values())


class TestWhereTheNumbersLieTogether:
    def mapped(self, tensor: Tensor, folder: Path) -> bool:
        """Whether a tensor lies in a mapped file of the folder."""
        address = tensor.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, stop = (int(end, 16) for end in line.split()[0].split("-"))
            if start <= address < stop:
                return str(folder) in line
        return False

    def test_rows_are_views_of_the_file_and_columns_are_copies(self, folders: dict[str, Path]) -> None:
        family, config = opened(folders["gqa"])
        read = read_boxes(folders["gqa"], family, config, local_boxes(config, Layout.parse("tp2"), 1)).tensors
        assert self.mapped(read["layers.1.attn.q.weight"], folders["gqa"])
        assert self.mapped(read["layers.0.tokens.weight"], folders["gqa"])
        assert not self.mapped(read["layers.1.attn.o.weight"], folders["gqa"])

    def test_whole_parameters_of_a_fused_tensor_too(self, folders: dict[str, Path]) -> None:
        family, config = opened(folders["phi3"])
        read = read_checkpoint(folders["phi3"], family, config)
        assert all(self.mapped(tensor, folders["phi3"]) for tensor in read.values())


class TestOptions:
    def test_other_types(self, folders: dict[str, Path]) -> None:
        family, config = opened(folders["phi3"])
        boxes = local_boxes(config, Layout.parse("tp2"), 0)
        read = read_boxes(folders["phi3"], family, config, boxes, dtype=torch.float32)
        assert {tensor.dtype for tensor in read.tensors.values()} == {torch.float32}
        assert read.stored_dtypes == {torch.bfloat16}
        assert read.bytes_read == 2 * sum(box.numel for box in boxes.values())

    def test_onto_tensors_that_are_there(self, folders: dict[str, Path]) -> None:
        family, config = opened(folders["gqa"])
        boxes = local_boxes(config, Layout.parse("tp2fsdp2"), 3)
        there = {name: torch.empty(box.shape, dtype=torch.float64) for name, box in boxes.items()}
        read = read_boxes(folders["gqa"], family, config, boxes, out=there).tensors
        whole = read_checkpoint(folders["gqa"], family, config)
        assert all(read[name] is there[name] for name in boxes)
        assert all(torch.equal(read[name], whole[name][box.slices].double()) for name, box in boxes.items())

    @pytest.mark.parametrize("layout", ["tp2pp2", "fsdp2"])
    def test_a_new_critic_has_a_part_of_the_head_that_one_process_draws(
        self, folders: dict[str, Path], layout: str
    ) -> None:
        family, config = opened(folders["all-biases-tied"], is_critic=True)
        head = f"layers.{config.n_layers + 1}.out.weight"
        whole = initial_weight(head, torch.Size(parameter_shapes(config)[head]), config, 7)
        for rank in Layout.parse(layout).ranks:
            boxes = local_boxes(config, Layout.parse(layout), rank)
            read = read_boxes(folders["all-biases-tied"], family, config, boxes, seed=7).tensors
            assert read.keys() == boxes.keys()
            if head in boxes:
                assert torch.equal(read[head], whole[boxes[head].slices])
            left_out = read_boxes(folders["all-biases-tied"], family, config, boxes).tensors
            assert boxes.keys() - left_out.keys() == boxes.keys() & {head}


class TestErrors:
    def test_what_headers_tell_is_found_whatever_is_read(self, folders: dict[str, Path], tmp_path: Path) -> None:
        family, config = opened(folders["gqa"])
        for changes, said in (({"vocab_size": 96}, "has shape"), ({"q_bias": True}, "lacks 'model.layers.0")):
            other = config.replace(**changes)
            for boxes in ({}, local_boxes(other, Layout.parse("pp2"), 0), local_boxes(other, Layout.parse("pp2"), 1)):
                with pytest.raises(CheckpointError, match=said):
                    read_boxes(folders["gqa"], family, other, boxes)

    def test_a_head_that_is_not_that_of_the_embedding_is_found_in_the_rows_that_differ(self, tmp_path: Path) -> None:
        save_hf(raw_config("tied"), tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][90] += 1
        save_file(tensors, file, metadata={"format": "pt"})
        family, config = opened(tmp_path)
        layout = Layout.parse("tp2")
        assert read_boxes(tmp_path, family, config, local_boxes(config, layout, 0)).tensors
        with pytest.raises(CheckpointError, match="'lm_head.weight' differs from 'model.embed_tokens.weight'"):
            read_boxes(tmp_path, family, config, local_boxes(config, layout, 1))


class Flat(Fused):
    """A third party's arrangement, whose view has rows and columns in one dim."""

    def views(self, theirs: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> list[Tensor]:
        return [theirs.flatten()]


def test_a_view_whose_dims_are_not_those_of_ours_divided_is_read_whole(tmp_path: Path) -> None:
    family = replace(LLAMA, weights=GATED_DECODER.updated(block={"mlp.up": Source("h.{}.up", Flat())}))
    config = config_from_hf(LLAMA, raw_config("gqa"))
    model = Transformer(config)
    model.init_weights(0)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_checkpoint(tmp_path, Export(raw_config("gqa"), state_dict_to_hf(family, state, config)))
    boxes = local_boxes(config, Layout.parse("tp2"), 1)
    read = read_boxes(tmp_path, family, config, boxes)
    assert all(torch.equal(read.tensors[name], state[name][box.slices]) for name, box in boxes.items())
    beyond = sum(state[name].nbytes // 2 for name in state if "mlp.up" in name)
    assert read.bytes_read == n_bytes(boxes, state) + beyond


@st.composite
def boxes_of(draw: st.DrawFn, shape: Shape) -> Box:
    ends = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return Box(tuple(start for start, _ in ends), tuple(stop for _, stop in ends))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_part_of_a_view_with_finer_dims(data: st.DataObject) -> None:
    finer = [
        data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)) for _ in range(data.draw(st.integers(1, 3)))
    ]
    shape = tuple(int(torch.Size(dims).numel()) for dims in finer)
    sizes = [size for dims in finer for size in dims] + [1] * data.draw(st.integers(0, 1))
    order = data.draw(st.permutations(range(len(sizes))))
    back = sorted(range(len(sizes)), key=order.__getitem__)
    theirs = torch.arange(int(torch.Size(sizes).numel())).reshape([sizes[dim] for dim in order])
    view = theirs.permute(back)
    box = data.draw(boxes_of(shape))
    taken = read_slice(view, shape, box)
    assert torch.equal(taken.tensor, view.reshape(shape)[box.slices])
    assert taken.bytes_read == 8 * box.numel


@settings(deadline=None)
@given(dims=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_runs_have_each_element_once_and_in_order(dims: list[int], data: st.DataObject) -> None:
    n = int(torch.Size(dims).numel())
    start, stop = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    numbers = torch.arange(n).reshape(dims)
    found = [(run.target, numbers[run.source].flatten().tolist()) for run in contiguous_runs(dims, start, stop)]
    assert [number for _, block in found for number in block] == list(range(start, stop))
    assert [number for place, _ in found for number in range(place.start, place.stop)] == list(range(stop - start))
