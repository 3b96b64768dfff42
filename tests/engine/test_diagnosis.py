"""What is wrong with a model that gives nothing finite: named by generation and training, alike in every layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.namedarray import NamedArray
from reallm.engine.diagnosis import model_fault
from reallm.engine.real_model import ReaLModel
from reallm.errors import NonFiniteError
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(n_layers=4, max_positions=16, init_std=0.3)
LAYOUTS = ("dp2", "tp2", "pp2", "fsdp2", "tp2pp2", "dp2pp2")
PROMPTS = [[3, 1, 4], [2], [9, 9]]


def spoilt(mesh: Mesh | None, name: str, value: float) -> ReaLModel:
    """A model with one value of a parameter changed, on the rank that holds it."""
    model = ReaLModel(CONFIG, mesh=mesh, seed=3).eval()
    box, tensor = model.boxes.get(name), model.local_tensors().get(name)
    if box is not None and tensor is not None and not any(box.starts):
        tensor.view(-1)[0] = value
    return model


def batch() -> NamedArray:
    tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    seqlens = {key: [[5], [3]] for key in ("input_ids", "loss_mask")}
    rows = NamedArray(input_ids=tokens, loss_mask=torch.ones(8, dtype=torch.bool))
    return rows.with_metadata(seqlens=seqlens, ids=["row-0", "row-1"])


def said(model: ReaLModel) -> dict[str, str]:
    found = {"fault": str(model_fault(model.network, model.mesh))}
    with pytest.raises(NonFiniteError) as error:
        model.generate(PROMPTS, max_new_tokens=3, stop_token_ids=())
    found["generate"] = str(error.value)
    for on_nonfinite in ("stop", "skip"):
        engine = TrainEngine(model, OptimizerConfig(on_nonfinite=on_nonfinite), 10, 100)
        with pytest.raises(NonFiniteError) as error:
            engine.train_batch(batch(), SFTInterface())
        found[on_nonfinite] = str(error.value)
    return found


def said_on_rank(rank: int, layout: str, name: str, value: float) -> dict[str, str]:
    return said(spoilt(Mesh.of(layout), name, value))


WEIGHT = "the parameter 'layers.2.mlp.up.weight' has values that are NaN or infinite"
BLOCK = "the weights are finite, but in float32 the output of block 2 of 4 is not"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [("layers.2.mlp.up.weight", math.nan, WEIGHT), ("layers.2.mlp_norm.weight", 3e38, BLOCK)],
)
def test_one_process(name: str, value: float, fault: str) -> None:
    messages = said(spoilt(None, name, value))
    assert messages["fault"] == fault
    assert messages["generate"] == (
        f"prompt 0: the logits of new token 1 (and those of 2 more prompts) are not finite; {fault}"
    )
    for key in ("stop", "skip"):
        assert messages[key].startswith("step 1: the loss is not finite (nan), but not because of the data")
        assert fault in messages[key]
        assert "row" not in messages[key]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_say_what_one_process_says(layout: str) -> None:
    n = max(Layout.parse(layout).ranks) + 1
    for name, value in (("layers.2.mlp.up.weight", math.nan), ("layers.2.mlp_norm.weight", 3e38)):
        alone = said(spoilt(None, name, value))
        for messages in on_ranks(n, said_on_rank, layout, name, value):
            assert messages == alone


def test_a_finite_model_has_no_fault() -> None:
    assert model_fault(ReaLModel(CONFIG, seed=3).network) is None
    assert model_fault(ReaLModel(CONFIG.replace(is_critic=True), seed=3).network) is None
    assert model_fault(ReaLModel(CONFIG.replace(learned_positions=True, max_positions=3), seed=3).network) is None


def test_a_row_of_the_embedding_that_only_some_prompts_read() -> None:
    model = ReaLModel(CONFIG, seed=3).eval()
    with torch.no_grad():
        model.get_parameter("layers.0.tokens.weight")[40] = math.inf
    with pytest.raises(
        NonFiniteError, match=r"prompt 1: the logits of new token 1 are not finite; the parameter 'layers\.0"
    ):
        model.generate([[3], [40]], max_new_tokens=1, stop_token_ids=())


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_however_it_is_sampled(settings: dict[str, Any]) -> None:
    model = spoilt(None, "layers.5.norm.weight", math.nan)
    with pytest.raises(NonFiniteError, match="the parameter 'layers.5.norm.weight' has values"):
        model.generate(PROMPTS, max_new_tokens=3, stop_token_ids=(), **settings)
