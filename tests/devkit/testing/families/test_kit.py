"""The kit for model families: what it is given, what it makes of that, and that it finds no fault with a good one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from reallm.cli.main import run
from reallm.errors import ConfigError, UnknownNameError
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.file_names import CONFIG_NAME, WEIGHTS_NAME
from reallm.hf.standard import decoder_rows
from reallm.hf.tables import ConfigTable, RopeRow
from reallm.model.config import RopeConfig
from reallm.plugins.checked import is_split_checked
from reallm_devkit import FAMILY_CHECKS, FamilyKit, Report, check_family
from reallm_devkit.testing.families import tiny
from reallm_devkit.testing.families.lines import TableLines, module_of
from reallm_hf_gemma.plugin import GEMMA2, GEMMA3
from reallm_hf_gpt2.plugin import GPT2
from reallm_hf_llama.plugin import LLAMA
from reallm_hf_mistral.plugin import MIXTRAL
from tests.helpers.hf_grid import raw_config, save_hf

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
ELSEWHERE = {"config-fields": "of the suites of families"}


class TestLlama(FamilyKit):
    family = "llama"


def by_name(report: Report) -> dict[str, tuple[str, str]]:
    return {result.label: (result.status, result.detail) for result in report.results}


# ------------------------------------------------------------------ small configurations


def test_small_configurations_follow_from_what_transformers_assumes() -> None:
    kit = FamilyKit.of(family="gemma3")
    assert kit.cases() == ["tied", "untied"]
    config = kit.subject("tied").config
    assert (config.n_layers, config.hidden_size, config.head_dim, config.vocab_size) == (2, 32, 16, 97)
    assert config.windows == (5, None)  # one block of each kind
    assert config.qk_norm == "head"
    assert config.embedding_multiplier == 32**0.5
    mixtral = FamilyKit.of(family=MIXTRAL).subject("untied").config
    assert mixtral.moe is not None
    assert (mixtral.moe.n_experts, mixtral.moe.top_k, mixtral.intermediate_size) == (4, 2, 48)


def test_what_a_family_computes_from_its_sizes_is_kept() -> None:
    config = FamilyKit.of(family=GPT2).subject("tied").config
    assert config.head_dim * config.n_q_heads == config.hidden_size


def test_the_other_head_is_a_case_where_the_family_can_have_it() -> None:
    kit = FamilyKit.of(family="llama", configs={"small": SIZES})
    assert kit.cases() == ["small", "small-tied"]
    assert kit.subject("small-tied").config == kit.subject("small").config.replace(tied_embeddings=True)
    never_tied = {**SIZES, "tie_word_embeddings": True}
    assert FamilyKit.of(family="llama", configs={"a": SIZES, "b": never_tied}).cases() == [
        "a", "a-tied", "b", "b-untied",
    ]  # fmt: skip


def test_configurations_of_the_author_are_checked_in_every_way(tmp_path: Path) -> None:
    """RoPE whose frequencies change with the length is decoded and saved as in the older files it comes in."""
    dynamic = {**SIZES, "rope_theta": 500.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    report = check_family("llama", configs={"dynamic": dynamic}, skip=ELSEWHERE)
    assert report.passed, str(report)
    assert by_name(report)["decode[dynamic]"][0] == "passed"


def test_too_few_heads_to_split_are_a_reason_and_no_failure() -> None:
    three_heads = {**SIZES, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3}
    report = check_family("llama", configs={"three": three_heads}, skip=ELSEWHERE)
    assert report.passed, str(report)
    status, detail = by_name(report)["shards[three]"]
    assert status == "skipped"
    assert "its 3 heads of 8 cannot be spread over 2 ranks evenly" in detail


def test_a_configuration_that_transformers_refuses_is_said_to_be_one() -> None:
    (failed, _) = check_family("llama", configs={"odd": {**SIZES, "hidden_size": 33, "head_dim": 8}}).failed
    assert failed.failure is not None
    assert failed.check == "default-config"
    assert failed.failure.expected == "a configuration 'odd' with which LlamaForCausalLM runs"
    assert "not a multiple of the number of attention heads" in failed.failure.seen


def only(*names: str) -> dict[str, str]:
    """What to skip to run these checks and those that they need."""
    needed = {name: {need.name for need in check.needs} for check in FAMILY_CHECKS for name in [check.name]}
    wanted, left = set[str](), set(names)
    while left:
        wanted |= left
        left = {need for name in left for need in needed[name]} - wanted
    return dict.fromkeys(needed.keys() - wanted, "shortens the test")


def test_a_family_states_its_own_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    family = dataclasses.replace(LLAMA, check_configs={"mine": SIZES})
    kit = FamilyKit.of(family=family)
    assert kit.cases() == ["mine", "mine-tied"]
    assert kit.subject("mine").config.n_layers == 3
    assert FamilyKit.of(family=family, configs={"others": SIZES}).cases() == ["others", "others-tied"]
    with pytest.raises(ConfigError, match=r"check_configs\['mine'\] of family 'llama' is an int, not a mapping"):
        dataclasses.replace(LLAMA, check_configs={"mine": 3})


def test_sizes_that_no_model_has_are_not_derived() -> None:
    """Heads of 8 of which a quarter is rotated would be two dims, which `dynamic` RoPE cannot be computed for."""
    rope = RopeRow(partial=0.25)
    rows = decoder_rows(n_kv_heads=32, max_positions=4096, norm_eps_key="layer_norm_eps", head_dim_key=None, rope=rope)
    others = {"use_qkv_bias", "qk_layernorm", "use_parallel_residual", "hidden_dropout"}
    family = dataclasses.replace(
        LLAMA,
        model_type="stablelm",
        architectures=("StableLmForCausalLM",),
        config=ConfigTable(rows=rows, constants={"norm": "layer", "norm_bias": True}, irrelevant=frozenset(others)),
    )
    kit = FamilyKit.of(family=family, skip=only("logits"))
    config = kit.subject("untied").config
    assert (config.hidden_size, config.head_dim, config.rope) == (64, 16, RopeConfig(rotary_dim=4))
    report = kit.run()
    assert report.passed, str(report)


def test_an_error_in_deriving_is_a_check_that_fails() -> None:
    broken = {**LLAMA.config.constants, "embedding_multiplier": lambda known: None + known["hidden_size"]}
    family = dataclasses.replace(LLAMA, config=dataclasses.replace(LLAMA.config, constants=broken))
    kit = FamilyKit.of(family=family, skip=only("default-config"))
    assert kit.cases() == ["default"]
    (failed,) = kit.run().failed
    assert (failed.check, len(failed.detail.splitlines())) == ("default-config", 1)
    assert failed.detail.startswith("raised TypeError: unsupported operand")
    assert failed.failure is not None
    assert "test_kit.py" in failed.failure.look_at


def test_what_passes_is_recorded_for_layers_of_the_family() -> None:
    from reallm_hf_apertus.plugin import APERTUS, XIELU

    assert not is_split_checked(XIELU)
    report = FamilyKit.of(family=APERTUS, skip=only("shards")).run()
    assert report.passed, str(report)
    assert is_split_checked(XIELU)


# ------------------------------------------------------------------ where the tables stand


def test_rows_and_entries_are_found_in_the_source() -> None:
    lines = TableLines(GEMMA2, module_of(GEMMA2))
    source = Path(lines.family_line().rpartition(":")[0]).read_text(encoding="utf-8").splitlines()

    def line_of(text: str) -> str:
        return source[int(text.partition(" (by")[0].rpartition(":")[2]) - 1]

    assert lines.module == "reallm_hf_gemma.plugin"
    assert "GEMMA2 = HFFamily(" in line_of(lines.family_line())
    assert '"final_logit_softcapping"' in line_of(lines.field("logit_softcap"))
    assert lines.field("norm_eps").endswith(" (by decoder_rows)")
    assert lines.field("norm_offset").startswith('config.constants["norm_offset"]')
    assert lines.field("qk_norm") == ""
    assert lines.key("hidden_act").startswith('"hidden_act" in config.irrelevant')
    assert lines.key("nonsense").startswith('config.rows, which have none for "nonsense"')
    assert '"mlp_post_norm"' in line_of(lines.entry("mlp_post_norm"))
    assert lines.entry("nonsense") == ""
    fused = TableLines(GPT2, module_of(GPT2)).entry("attn.k.weight")
    assert fused.startswith('weights.block["attn.q", "attn.k", "attn.v"], ')
    moe = TableLines(MIXTRAL, module_of(MIXTRAL)).key("num_experts_per_tok")
    assert moe.startswith('Key("num_experts_per_tok")')


def test_a_family_of_no_module_is_checked_all_the_same() -> None:
    family = dataclasses.replace(LLAMA, description="")
    assert module_of(family) == ""
    report = check_family(family, skip={**ELSEWHERE, "logits": "shortens the test"})
    assert [result.check for result in report.failed] == ["description", "description"]


# ------------------------------------------------------------------ a real checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_hf(raw_config("rope-llama3-old"), tmp_path / "model")
    return tmp_path / "model"


def checkpoint_result(saved: Path) -> tuple[str, str]:
    kit = FamilyKit.of(family="llama", checkpoint=saved)
    kit.checks = tuple(check for check in FAMILY_CHECKS if check.name == "checkpoint")  # type: ignore[misc]
    result = kit.run().results[0]
    return result.status, result.detail


def test_a_real_checkpoint_is_loaded_compared_and_saved_again(saved: Path) -> None:
    status, detail = checkpoint_result(saved)
    assert (status, detail[:24]) == ("passed", "model: 21 tensors, logit"), detail


def test_a_checkpoint_that_does_not_fit_fails(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_NAME)
    save_file({**tensors, "model.extra.weight": tensors["model.norm.weight"].clone()}, saved / WEIGHTS_NAME)
    status, detail = checkpoint_result(saved)
    assert status == "failed"
    assert "has the unexpected tensor 'model.extra.weight'" in detail


def test_a_checkpoint_of_another_family_fails(saved: Path) -> None:
    raw = json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))
    mistral = {**raw, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (saved / CONFIG_NAME).write_text(json.dumps(mistral), encoding="utf-8")
    status, detail = checkpoint_result(saved)
    assert status == "failed"
    assert "is not a checkpoint of 'llama' but of 'mistral'" in detail


# ------------------------------------------------------------------ how it is called


def test_the_command_needs_a_name_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "gpt2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["name"], found["passed"]) == ("family", "gpt2", True)
    labels = [(result["case"], result["check"]) for result in found["results"]]
    assert labels == [(case, check.name) for case in ("tied", "untied") for check in FAMILY_CHECKS]
    tried, twin = (result for result in found["results"] if result["check"] == "config-fields")
    assert tried["status"] == "passed"
    assert (twin["status"], twin["detail"]) == ("skipped", "tried with 'tied', from which it differs in the head alone")
    light = next(result for result in found["results"] if result["check"] == "light-import")
    assert light["status"] == "passed"


def test_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "llama", "n_layers=3"]) == 2
    assert "a family takes no n_layers=...; it may have --checkpoint PATH" in capsys.readouterr().err


def test_a_family_must_be_named() -> None:
    with pytest.raises(ConfigError, match="say which family is to be checked: family = 'my-model'"):
        FamilyKit().run()
    with pytest.raises(UnknownNameError, match="lama"):
        check_family("lama")


def test_the_transformers_default_is_read_once() -> None:
    raw = tiny.tiny_config(TableLines(GEMMA3, module_of(GEMMA3)))
    assert raw["layer_types"] == ["sliding_attention", "full_attention"]
    assert config_from_hf(GEMMA3, raw).windows == (5, None)
