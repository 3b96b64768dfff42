"""Models as backends of the harness: ours and that of transformers, on the same checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console

from reallm.engine.real_model import ReaLModel
from reallm.experiments.evaluation.harness_model import HarnessModel
from reallm.hf.conversion.transformers_io import load_tokenizer
from tests.helpers.jobs import make_inputs
from tests.helpers.smollm2 import smollm2_folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama checkpoint with random weights, and a real one."""
    return {"tiny": make_inputs(tmp_path_factory.mktemp("inputs")) / "model", "smollm2": smollm2_folder()}


def ours(folder: Path, max_tokens: int = 100) -> HarnessModel:
    model = ReaLModel.from_pretrained(folder, dtype=torch.float32)
    return HarnessModel(model, load_tokenizer(folder), max_tokens, Console(file=io.StringIO()))


def theirs(folder: Path, **changes: Any) -> HFLM:
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3, **changes)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=of_one, idx=index)  # type: ignore[arg-type]
        for index, of_one in enumerate(arguments)
    ]
