"""`reallm plugins new family`: what the tables of a new family state, and what they leave to its author."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from reallm.cli.main import run
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.family import HFFamily
from reallm.hookspecs import HOOK_API
from reallm.plugins import registry
from reallm_devkit import FAMILY_CHECKS, FamilyKit, check_family
from reallm_devkit.cli.new import state_of_draft
from reallm_devkit.scaffold.architecture import Architecture, architecture_of
from reallm_devkit.scaffold.family import Draft, draft_tables
from reallm_devkit.scaffold.project import plan_project
from reallm_devkit.scaffold.weights import match_modules
from reallm_devkit.scaffold.writing import render

UP_TO_GRADIENTS = [check.name for check in FAMILY_CHECKS[:12]]


def plugin(model_type: str) -> tuple[Draft, str]:
    """The draft of a model type, and the source of its module."""
    architecture = architecture_of(model_type)
    draft = draft_tables(architecture)
    project = plan_project("family", "my-model", core="0.1", hook_api="{}.{}".format(*HOOK_API))
    project = dataclasses.replace(project, architecture=architecture, draft=draft)
    return draft, render(project)["src/reallm_hf_my_model/plugin.py"]


def family_of(source: str) -> HFFamily:
    made: dict[str, object] = {}
    exec(source, made)
    family = made["MY_MODEL"]
    assert isinstance(family, HFFamily)
    return family


@pytest.mark.parametrize("model_type", ["olmo2", "cohere", "starcoder2", "gemma2", "mixtral"])
def test_where_every_key_that_is_on_has_a_row_the_tables_are_right(model_type):
    """Norms after branches, shared and sandwiched, layer norms, biases, interleaved RoPE, windows, experts."""
    draft, source = plugin(model_type)
    assert not [key for key in draft.missing_keys if not key.endswith(" = None")]
    assert draft.missing_tensors == ()
    report = check_family(family_of(source))
    assert report.passed, str(report)
    assert report.counts["passed"] > 30


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("gpt_neox", {"hidden_dropout = 0.0"}),
        ("stablelm", {"hidden_dropout = 0.0", "qk_layernorm = False"}),
        ("phi", {"qk_layernorm = False"}),
        ("apertus", {'hidden_act = "xielu"', "rope_parameters = "}),
        ("opt", {"do_layer_norm_before = True", "word_embed_proj_dim = None", "dropout = 0.1", "layerdrop = 0.0"}),
        ("falcon", {"multi_query = True", "alibi = False", "parallel_attn = True"}),
    ],
)
def test_a_key_that_is_not_understood_is_a_comment_and_the_table_is_read_all_the_same(model_type, keys):
    draft, source = plugin(model_type)
    for key in keys:
        assert any(one.startswith(key) for one in draft.missing_keys)
        assert f"            # no row yet: {key}" in source
    family = family_of(source)
    assert (family.model_type, family.names) == (model_type, ("my_model",))
    stated = {key for row in family.config.rows for key in row.keys}
    assert not stated & {key.partition(" = ")[0] for key in draft.missing_keys} - {"rope_parameters"}


@pytest.mark.parametrize("model_type", ["olmoe", "granitemoe"])
def test_experts_of_other_names_are_found(model_type):
    """Heads whose size no key changes, the class's coefficient of the router loss, fused experts."""
    draft, source = plugin(model_type)
    assert not [key for key in draft.missing_keys if not key.endswith(" = None")]
    assert draft.missing_tensors == ()
    kit = FamilyKit.of(family=family_of(source))
    kit.skip = {check.name: "shortens the test" for check in FAMILY_CHECKS if check.name not in UP_TO_GRADIENTS}
    report = kit.run()
    assert report.passed, str(report)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "lfm2", "qwen3_next"])
def test_an_architecture_that_the_core_lacks_is_checked_without_an_error(model_type):
    """Each failure is one line about a check, whatever transformers and the drafted tables raise."""
    _, source = plugin(model_type)
    skip = {check.name: "shortens the test" for check in FAMILY_CHECKS[5:]}
    report = check_family(family_of(source), skip=skip)
    assert report.failed
    assert all(len(result.detail.splitlines()) == 1 for result in report.failed)


def test_a_tensor_that_is_not_understood_is_a_comment():
    draft, source = plugin("apertus")
    assert set(draft.missing_tensors) == {
        f"model.layers.{{}}.mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps")
    }
    for tensor in draft.missing_tensors:
        assert f"    # no entry yet: {tensor}\n" in source


@pytest.mark.parametrize("model_type", ["mamba", "gpt_oss", "bloom", "gptj", "rwkv", "deepseek_v3", "xglm"])
def test_whatever_the_model_is_there_is_a_table_to_begin_with(model_type):
    draft, source = plugin(model_type)
    assert draft.missing_keys or draft.missing_tensors
    assert family_of(source).model_type == model_type


def test_a_configuration_is_read_once_the_rest_is_declared():
    """GPT-2: other names for everything, learned positions, weights that are transposed and fused."""
    draft, source = plugin("gpt2")
    family = family_of(source)
    irrelevant = frozenset(key.partition(" = ")[0] for key in draft.missing_keys)
    table = dataclasses.replace(family.config, irrelevant=irrelevant)
    raw = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 3, "n_head": 4}
    config = config_from_hf(dataclasses.replace(family, config=table), raw)
    assert (config.hidden_size, config.intermediate_size, config.n_layers, config.head_dim) == (64, 256, 3, 16)
    assert (config.rope, config.learned_positions, config.norm, config.mlp) == (None, True, "layer", "plain")
    assert all((config.q_bias, config.o_bias, config.up_bias, config.norm_bias, config.tied_embeddings))


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen3", ['"qk_norm": "head"', "GATED_DECODER.updated(block=QK_NORMS)", "head_dim=128"]),
        ("olmo2", ['"qk_norm": "whole"', '"norm_placement": "branch"', '"attn_norm": None']),
        ("cohere", ["interleaved=True", '"shared_norm": True', 'spellings={True: "per_head", False: None}']),
        ("gpt_neox", ["partial=0.25", 'theta_key="rotary_emb_base"', 'groups="n_kv_heads"', "head_dim_key=None"]),
        ("stablelm", ['("parallel_residual", "shared_norm")', "QKV_BIAS"]),
        ("opt", ['"position_offset": 2', '(*ATTENTION_BIAS, "up_bias", "down_bias")', '("norm_weight", "norm_bias")']),
        ("olmo", ['"norm_weight": False', '"norm": "layer"', "# no row yet: norm_eps, which no key states"]),
        ("gemma3_text", ["LayerRopes(full_theta=1000000.0", '"norm_offset": 1.0', "sliding_except_every(6)"]),
        ("qwen3_moe", ['"mlp.router": "model.layers.{}.mlp.gate"', "AUX_LOSS", "always_sliding"]),
        ("granite", ["conversion=RECIPROCAL", '"attn_scale"', "MLP_BIAS"]),
        ("phi3", ["fused(", 'original_key="original_max_position_embeddings"', "partial=1.0"]),
        ("qwen2", ["def last_layers_slide(", 'older_keys=("max_window_layers",)', '"q_bias": True']),
        ("bloom", ['Derived("intermediate_size", lambda known: 4 * known["hidden_size"])']),
    ],
)
def test_what_the_tables_say_of_a_model_type(model_type, expected):
    _, source = plugin(model_type)
    for text in expected:
        assert text in source


def test_a_key_that_is_off_by_default_is_not_taken_for_granted():
    """Gemma 3 has the key of Gemma 2 and does nothing with it."""
    draft, _ = plugin("gemma3_text")
    assert "attn_logit_softcapping = None" in draft.missing_keys


def test_nothing_is_said_of_tensors_where_no_small_model_can_be_made():
    architecture = Architecture(
        "llama", "LlamaForCausalLM", "", {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_parameters": None, "odd": 1}
    )
    draft = draft_tables(architecture)
    assert (draft.inspected, draft.weights, draft.missing_keys) == (False, "GATED_DECODER", ("odd = 1",))
    said = state_of_draft(draft, "llama")
    assert "transformers could make no small model of it" in said
    assert "1 key of config.json" in said


def test_what_is_printed_says_how_much_is_left():
    draft, _ = plugin("apertus")
    assert "Left to you: 2 keys of config.json without a row and 4 tensors without an entry" in state_of_draft(
        draft, "apertus"
    )
    complete = SimpleNamespace(inspected=True, missing_keys=(), missing_tensors=())
    assert state_of_draft(complete, "llama") == (  # type: ignore[arg-type]
        "Every key and tensor of llama has a place; the checks say whether it is the right one."
    )


def test_the_command_writes_the_draft_and_says_where_to_read_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "declared", lambda kind: [])
    assert run(["plugins", "new", "family", "my-model", "--model-type", "gpt_neox"]) == 0
    out = capsys.readouterr().out
    assert "1 key of config.json without a row" in out
    assert "docs/write-a-family.md" in out
    _, source = plugin("gpt_neox")
    assert Path("reallm-hf-my-model/src/reallm_hf_my_model/plugin.py").read_text(encoding="utf-8") == source


def test_names_within_other_modules_are_not_mistaken():
    found = match_modules(
        [
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.experts.0.up_proj.weight",
            "model.layers.0.mlp.experts.1.up_proj.weight",
            "model.layers.0.mlp.shared_expert.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.0.norm_of_another_kind.weight",
        ]
    )
    assert found.block == {
        ("mlp.router",): "model.layers.{}.mlp.gate",
        ("mlp.up",): "model.layers.{}.mlp.up_proj",
        ("mlp.experts.up",): "model.layers.{}.mlp.experts.{each}.up_proj",
    }
    assert found.unmatched == (
        "model.layers.{}.mlp.shared_expert.up_proj.weight",
        "model.layers.{}.norm_of_another_kind.weight",
    )


def test_norms_are_placed_only_if_all_of_them_are_known():
    known = match_modules(f"model.layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm"))
    assert (known.norms, known.unmatched) == ("pre", ())
    three = match_modules(
        f"h.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm", "another_norm")
    )
    assert (three.norms, len(three.unmatched)) == ("", 3)
