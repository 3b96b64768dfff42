"""Adapters of PEFT and ours: the same logits, losses and gradients, and each reads what the other has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from reallm.config.lora import LoRAArgs
from reallm.engine.real_model import ReaLModel
from tests.helpers.hf_grid import raw_config, save_hf

pytestmark = pytest.mark.filterwarnings(  # of PEFT's calls of transformers, and about its conversion of experts
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore:The following:RuntimeWarning"
)
TOKENS = torch.randint(0, 97, (13,), generator=torch.Generator().manual_seed(1))
CU_SEQLENS = torch.tensor([0, 13])
KINDS = {"lora_a": "lora_A", "lora_b": "lora_B", "lora_magnitude": "lora_magnitude_vector"}
OPTIONS: list[dict[str, Any]] = [{}, {"rslora": True}, {"dora": True}]
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}
"""In float64, but for norms, rotations and the loss of transformers, which are in float32 at most."""


@pytest.fixture
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    save_hf(raw_config(getattr(request, "param", "gqa")), tmp_path / "base")
    return tmp_path / "base"


def peft_model(base: Path, adapter: Path | peft.LoraConfig) -> peft.PeftModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    model.set_experts_implementation("eager")  # its grouped products have no float64
    if isinstance(adapter, peft.LoraConfig):
        return peft.get_peft_model(model, adapter, autocast_adapter_dtype=False)
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False)


def is_transposed(base: Path) -> bool:
    return "gpt2" in (base / "config.json").read_text()


def draw(parameters: list[nn.Parameter]) -> None:
    """Values as after some training, which float32 has too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.float())


def loss_of(model: ReaLModel) -> Tensor:
    hidden = model.train().hidden(TOKENS, CU_SEQLENS)
    return model.cross_entropy(hidden[:-1], TOKENS[1:]).loss_sum / 12


def assert_same_logits_here(base: Path, settings: peft.LoraConfig, folder: Path) -> None:
    """That an adapter which PEFT has made and saved in a folder is loaded here, and computes the same."""
    theirs = peft_model(base, settings)
    draw([each for each in theirs.parameters() if each.requires_grad])
    theirs.save_pretrained(folder)
    with torch.no_grad():
        expected = theirs.eval()(TOKENS[None]).logits[0]
        ours = ReaLModel.from_pretrained(base, dtype="float64", lora=LoRAArgs(path=str(folder)))
        torch.testing.assert_close(ours(TOKENS, CU_SEQLENS), expected, **TOLERANCE)


EXPERTS = ["mixtral", "qwen3-moe-dense-layer"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_and_gradients_are_equal(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    ours = ReaLModel.from_pretrained(base, dtype="float64", lora=LoRAArgs(rank=4, alpha=6, **options))
    draw([each for each in ours.parameters() if each.requires_grad])
    ours.save_pretrained(tmp_path / "adapter")
    theirs = peft_model(base, tmp_path / "adapter")
    expected = theirs(TOKENS[None], labels=TOKENS[None])
    loss = loss_of(ours)
    torch.testing.assert_close(loss, expected.loss.double(), **TOLERANCE)
    loss.backward()
    expected.loss.backward()
    gradients = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
    trained = {name: each for name, each in ours.named_parameters() if each.requires_grad}
    assert len(gradients) == len(trained)
    for name, parameter in trained.items():
        _, layer, _, module, kind = name.split(".")
        (other,) = (
            gradient
            for each, gradient in gradients.items()
            if f"layers.{int(layer) - 1}." in each and f".{module}_proj." in each and KINDS[kind] in each
        )
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, other, **TOLERANCE)


@pytest.mark.parametrize("base", ["gqa", "gpt2", "phi3", "gemma3", "qwen2"], indirect=True)
@pytest.mark.parametrize("options", [{"rslora": True}, {"dora": True}], ids=str)
def test_peft_loads_what_is_saved_here(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    ours = ReaLModel.from_pretrained(base, dtype="float64", lora=LoRAArgs(rank=4, alpha=6, **options))
    draw([each for each in ours.parameters() if each.requires_grad])
    ours.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = peft_model(base, tmp_path / "adapter").eval()(TOKENS[None]).logits[0]
        torch.testing.assert_close(ours(TOKENS, CU_SEQLENS), expected, **TOLERANCE)
        torch.testing.assert_close(ours.merged()(TOKENS, CU_SEQLENS), expected, **TOLERANCE)


@pytest.mark.parametrize("base", ["gqa", "gpt2", "phi3"], indirect=True)
@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}], ids=str)
def test_what_peft_has_saved_is_loaded_here(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    settings.fan_in_fan_out = is_transposed(base)
    assert_same_logits_here(base, settings, tmp_path / "adapter")


@pytest.mark.parametrize("base", EXPERTS, indirect=True)
@pytest.mark.parametrize("targets", ["all-linear", ["experts.gate_up_proj"], ["down_proj", "q_proj"]], ids=str)
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_adapters_of_experts(base: Path, tmp_path: Path, targets: Any, rslora: bool) -> None:
    if targets == ["down_proj", "q_proj"] and "mixtral" in (base / "config.json").read_text():
        targets = ["w2", "q_proj"]
    args = LoRAArgs(rank=4, alpha=6, targets=targets, rslora=rslora)
    ours = ReaLModel.from_pretrained(base, dtype="float64", lora=args)
    draw([each for each in ours.parameters() if each.requires_grad])
    ours.save_pretrained(tmp_path / "adapter")
    theirs = peft_model(base, tmp_path / "adapter")
    expected = theirs.eval()(TOKENS[None], labels=TOKENS[None])
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS, CU_SEQLENS), expected.logits[0], **TOLERANCE)
        torch.testing.assert_close(ours.merged()(TOKENS, CU_SEQLENS), expected.logits[0], **TOLERANCE)
    expected.loss.backward()
    loss_of(ours).backward()
    theirs.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(_norm_of_a(ours), _norm_of_a(theirs), **TOLERANCE)
    again = ReaLModel.from_pretrained(base, dtype="float64", lora=LoRAArgs(path=str(tmp_path / "again")))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, rtol=1e-6, atol=1e-7)


def _norm_of_a(model: nn.Module) -> Tensor:
    """The length of the gradients of all A; those of B differ, since PEFT's has zeros of gate and up that it trains."""
    gradients = [each.grad for name, each in model.named_parameters() if "lora_a" in name.lower()]
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()


@pytest.mark.parametrize("base", EXPERTS, indirect=True)
def test_adapters_of_experts_that_peft_has_made(base: Path, tmp_path: Path) -> None:
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    assert_same_logits_here(base, settings, tmp_path / "adapter")


@pytest.mark.parametrize("base", ["gqa", "gpt2", "phi3", "mixtral", "qwen3-moe"], indirect=True)
def test_all_linear_means_the_layers_that_peft_means(base: Path, tmp_path: Path) -> None:
    ReaLModel.from_pretrained(base, lora=LoRAArgs(rank=4)).save_pretrained(tmp_path / "ours")
    settings = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    settings.fan_in_fan_out = is_transposed(base)
    theirs = peft_model(base, settings)
    theirs.save_pretrained(tmp_path / "theirs")
    names = [set(peft.utils.load_peft_weights(str(tmp_path / each), device="cpu")) for each in ("ours", "theirs")]
    # the checkpoint's name of what transformers calls `mlp` in all architectures is one that PEFT reads
    assert {name.replace("block_sparse_moe", "mlp") for name in names[0]} == names[1]
