"""A vocabulary that grows when a checkpoint is loaded: new rows, in every layout, saved for transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from reallm.checkpoint.load import read_boxes, read_checkpoint
from reallm.checkpoint.new_rows import SPREAD, drawn_rows
from reallm.engine.real_model import ReaLModel
from reallm.hf.checkpoint_folder import read_hf_config
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.families import family_for
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import local_boxes
from tests.helpers.hf_grid import raw_config, save_hf

SIZES = {"gqa": torch.float32, "all-biases-tied": torch.float32, "gpt2": torch.float32, "phi3": torch.bfloat16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in SIZES}
    for name, folder in made.items():
        save_hf(raw_config(name), folder, dtype=SIZES[name])
    return made


def test_rows_have_the_mean_and_a_part_of_the_covariance_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.0, 0.0, 3.0]])
    present = torch.randn(5000, 3, generator=generator) @ mixing.T + torch.tensor([1.0, -2.0, 0.5])
    drawn = drawn_rows(present, range(5000, 9000), "layers.0.tokens.weight", seed=1)
    assert drawn.shape == (4000, 3)
    # the standard error of a mean over 4000 rows is 1.6 % of the deviation, that of a covariance about 2.2 %
    deviation = drawn.double() - present.double().mean(dim=0)
    scale = SPREAD**0.5 * present.std(dim=0)
    assert (deviation.mean(dim=0).abs() < 0.07 * scale).all()
    wanted = SPREAD * torch.cov(present.T.double())
    assert ((torch.cov(deviation.T) - wanted).abs() < 0.1 * scale[:, None] * scale[None]).all()


def test_a_row_depends_on_its_number_its_parameter_and_the_seed_alone() -> None:
    present = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows = drawn_rows(present, range(50, 60), "a", seed=1)
    assert torch.equal(drawn_rows(present, range(53, 55), "a", seed=1), rows[3:5])
    assert len(rows.unique(dim=0)) == 10
    assert not torch.equal(drawn_rows(present, range(50, 60), "b", seed=1), rows)
    assert not torch.equal(drawn_rows(present, range(50, 60), "a", seed=2), rows)


def test_biases_of_a_head_grow_too() -> None:
    present = torch.arange(8.0)
    drawn = drawn_rows(present, range(8, 11), "layers.3.out.bias", seed=1)
    assert drawn.shape == (3,)
    assert torch.allclose(drawn, torch.full((3,), 3.5), atol=0.05)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("layout", ["tp2", "tp4", "pp2", "fsdp3", "tp2pp2fsdp3"])
def test_every_rank_has_its_part_of_the_grown_parameters(folders: dict[str, Path], name: str, layout: str) -> None:
    raw = read_hf_config(folders[name])
    family = family_for(raw, folders[name])
    stored = config_from_hf(family, raw)
    grown = stored.replace(vocab_size=stored.vocab_size + 7)
    before = read_checkpoint(folders[name], family, stored)
    whole = read_boxes(folders[name], family, stored, local_boxes(grown, Layout(), 0), seed=3).tensors
    for key, tensor in whole.items():
        assert torch.equal(tensor[: len(before[key])], before[key])
    for rank in Layout.parse(layout).ranks:
        boxes = local_boxes(grown, Layout.parse(layout), rank)
        part = read_boxes(folders[name], family, stored, boxes, seed=3).tensors
        for key, box in boxes.items():
            assert torch.equal(part[key], whole[key][box.slices]), (rank, key)


@pytest.mark.parametrize("name", SIZES)
def test_transformers_loads_what_has_grown(
    folders: dict[str, Path], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ReaLModel.from_pretrained(folders[name], min_vocab_size=100, dtype=torch.float32)
    assert model.config.vocab_size == 100
    assert "grown from 97 to 100 tokens" in caplog.text
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 100
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.tensor([5, 99, 97, 3])
    with torch.no_grad():
        ours = model(tokens, torch.tensor([0, 4], dtype=torch.int32))
        assert torch.allclose(ours, theirs(tokens[None]).logits[0], atol=1e-4)


def test_a_new_token_is_about_as_likely_as_an_average_one(folders: dict[str, Path]) -> None:
    model = ReaLModel.from_pretrained(folders["gqa"], min_vocab_size=98)
    with torch.no_grad():
        logits = model(torch.tensor([5, 8, 3]), torch.tensor([0, 3], dtype=torch.int32))
    assert torch.allclose(logits[:, 97], logits[:, :97].mean(dim=-1), atol=0.05)


def test_a_vocabulary_that_is_large_enough_stays(folders: dict[str, Path]) -> None:
    model = ReaLModel.from_pretrained(folders["gqa"], min_vocab_size=50)
    assert model.config.vocab_size == 97


def test_a_critic_grows_in_its_embedding_alone(folders: dict[str, Path]) -> None:
    model = ReaLModel.from_pretrained(folders["gqa"], min_vocab_size=99, is_critic=True)
    assert {name: tuple(each.shape) for name, each in model.named_parameters() if len(each) in (1, 99)} == {
        "layers.0.tokens.weight": (99, 32),
        "layers.3.out.weight": (1, 32),
    }
