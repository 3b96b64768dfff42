"""A model called as a newcomer calls it: lists and names are taken, mistakes are one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import ReallmError
from reallm.model.config import ReaLModelConfig

CONFIG = ReaLModelConfig(
    n_layers=2, hidden_size=16, n_q_heads=2, n_kv_heads=1, head_dim=8, intermediate_size=24, vocab_size=50,
    max_positions=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ReaLModel:
    return ReaLModel(CONFIG, seed=3).eval()


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(ReallmError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lists_and_arrays_are_as_good_as_tensors(model: ReaLModel) -> None:
    expected = model(torch.tensor([5, 3, 8]), torch.tensor([0, 2, 3], dtype=torch.int32))
    assert torch.equal(model([5, 3, 8], [0, 2, 3]), expected)  # type: ignore[arg-type]
    assert torch.equal(model(np.array([5, 3, 8]), np.array([0, 2, 3])), expected)  # type: ignore[arg-type]
    logprobs = model.token_logprobs([5, 3, 8], [0, 2, 3])  # type: ignore[arg-type]
    assert torch.equal(logprobs, model.token_logprobs(torch.tensor([5, 3, 8]), torch.tensor([0, 2, 3])))
    asked: Any = [torch.tensor([5, 3])]
    assert model.generate(asked, max_new_tokens=2)[0] == model.generate([[5, 3]], max_new_tokens=2)[0]


def test_a_dtype_is_given_by_its_name() -> None:
    assert ReaLModel(CONFIG, dtype="bfloat16").dtype is torch.bfloat16
    assert ReaLModel(CONFIG).to("bfloat16").dtype is torch.bfloat16
    assert ReaLModel(CONFIG).to(dtype="float64").dtype is torch.float64


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: model([1, 50], [0, 2]), "tokens[1] is 50, but the model has tokens 0 to 49"),
        (lambda model: model.hidden([-1], [0, 1]), "tokens[0] is -1, but the model has tokens 0 to 49"),
        (lambda model: model.token_logprobs([50], [0, 1]), "tokens[0] is 50, but the model has tokens 0 to 49"),
        (lambda model: model([], [0]), "there are no tokens"),
        (lambda model: model([1, 2], None), "cu_seqlens must be integers [S+1]"),
        (lambda model: model("text", [0, 1]), "tokens must be integers [T], not text"),
        (lambda model: model.token_logprobs([1], [0, 1], max_tokens="x"), "max_tokens='x' must be a whole number"),
        (lambda model: model.generate([1, 2]), "prompts must be a list of prompts"),
        (lambda model: model.generate([[1]], max_length=3), "no argument 'max_length'; did you mean 'max_new_"),
        (lambda model: model.generate([[1]], temperature="hot"), "temperature='hot' must be a number or None"),
        (lambda model: model.generate([[1]], max_new_tokens=2.5), "max_new_tokens=2.5 must be a whole number"),
        (lambda model: model.generate([[1]], stop_token_ids=3), "stop_token_ids=3 must be a list of whole numbers"),
        (lambda model: model.generate([[1]], stop=[3]), "stop must be a list of strings; 3 is not one"),
        (lambda model: model.generate(["a"], tokenizer="gpt2"), "tokenizer must be a tokenizer, not a path (gpt2)"),
        (lambda model: model.save_pretrained(None), "path must be a path as text or pathlib.Path, not None"),
        (lambda model: model.save_pretrained("x", save_dtype=1), "save_pretrained has no argument 'save_dtype'"),
        (lambda model: model.reallocate(None), "a layout must be a Layout or text such as tp2pp1dp2"),
        (lambda _: ReaLModel.from_pretrained(None), "path must be a path as text or pathlib.Path, not None"),
        (lambda _: ReaLModel.from_pretrained("x", torch_dtype="auto"), "'torch_dtype'; did you mean 'dtype'?"),
        (lambda _: ReaLModel("path"), "config must be a ReaLModelConfig, not text; ReaLModel.from_pretrained"),
        (lambda _: ReaLModel(CONFIG, dtype="bf16"), "dtype='bf16' is not one of float32, bfloat16, float16, float64"),
        (lambda _: ReaLModel(CONFIG, device="gpu"), "device='gpu' is not a device; write 'cpu', 'cuda' or 'cuda:0'"),
        (lambda _: ReaLModel(CONFIG, mesh="tp2"), 'mesh must be a Mesh, not text; write Mesh.of("tp2")'),
    ],
)  # fmt: skip
def test_a_mistake_is_named(model: ReaLModel, call: Callable[[Any], Any], said: str) -> None:
    assert said in message(lambda: call(model))
