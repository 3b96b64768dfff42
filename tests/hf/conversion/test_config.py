"""`config.json` becomes our configuration and comes back; nothing in it is silently ignored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.errors import CheckpointError, ConfigError
from reallm.hf.checkpoint_folder import read_hf_config, resolve_path
from reallm.hf.conversion.config import config_from_hf, config_to_hf, hf_config_dict
from reallm.hf.conversion.families import family_for, get_family
from reallm.hf.standard import ACTIVATIONS
from reallm.hf.tables import ConfigTable, Key
from reallm.model.activations import ACTIVATION_FUNCTIONS
from reallm.model.config import ACTIVATIONS as OURS
from reallm.model.config import ReaLModelConfig, RopeConfig
from reallm_hf_llama.plugin import LLAMA
from reallm_hf_mistral.plugin import MISTRAL
from tests.helpers.hf_grid import GRID, raw_config, read_by_transformers

FAMILIES = {"llama": LLAMA, "mistral": MISTRAL}


def family_of(raw):
    return get_family(raw["model_type"])


@pytest.mark.parametrize("name", GRID)
def test_reading_and_writing_back_changes_nothing(name):
    raw = raw_config(name)
    config = config_from_hf(family_of(raw), raw)
    assert config_to_hf(family_of(raw), config, raw) == raw


@pytest.mark.parametrize("name", GRID)
def test_what_transformers_makes_of_a_file_reads_as_the_file_itself(name):
    """Old spellings, absent keys and their defaults mean to us what they mean to transformers."""
    raw = raw_config(name)
    theirs = read_by_transformers(raw).to_dict()
    assert config_from_hf(family_of(raw), hf_config_dict(theirs)) == config_from_hf(family_of(raw), raw)


@pytest.mark.parametrize("name", GRID)
def test_a_config_written_from_scratch_reads_as_the_original_in_transformers(name):
    raw = raw_config(name)
    config = config_from_hf(family_of(raw), raw)
    fresh = config_to_hf(family_of(raw), config)
    assert config_from_hf(family_of(raw), fresh) == config
    theirs, original = read_by_transformers(fresh).to_dict(), read_by_transformers(raw).to_dict()
    assert config_from_hf(family_of(raw), theirs) == config
    if raw["model_type"] not in FAMILIES:
        return  # others have several spellings for the same, which have one value in our configuration
    rope, rope_original = theirs.pop("rope_parameters"), original.pop("rope_parameters")
    if theirs["hidden_act"] != original["hidden_act"]:
        assert ACTIVATIONS[theirs.pop("hidden_act")] == ACTIVATIONS[original.pop("hidden_act")]
    assert theirs == original
    # A factor that followed from other numbers is written out.
    assert rope == rope | {key: value for key, value in rope_original.items() if key in rope and value is not None}


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "phi3", "qwen3-moe"])
def test_a_config_written_from_scratch_names_no_token_that_the_vocabulary_lacks(name):
    raw = raw_config(name)
    fresh = config_to_hf(family_of(raw), config_from_hf(family_of(raw), raw))
    theirs = read_by_transformers(fresh)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (None, None, None)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_absent_keys_have_the_defaults_of_transformers(family):
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    defaults = read_by_transformers({"model_type": family.model_type}).to_dict()
    sparse = {"model_type": family.model_type, **{key: defaults[key] for key in required}}
    assert config_from_hf(family, sparse) == config_from_hf(family, defaults)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_missing_size_is_named(key):
    raw = raw_config("gqa")
    del raw[key]
    with pytest.raises(CheckpointError, match=f"some/config.json: '{key}' is missing"):
        config_from_hf(LLAMA, raw, source="some/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "unsupported quantization_config=.*dequantize"),
        ({"pretraining_tp": 2}, "unsupported pretraining_tp=2; set it to 1"),
        ({"hidden_act": "xielu"}, "hidden_act='xielu' is not supported; supported are silu"),
        ({"hidden_size": "32"}, "hidden_size='32' must be of type int"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6' must be of type float"),
        ({"attention_bias": 1}, "attention_bias=1 must be of type bool"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ({"partial_rotary_factor": 0.5}, "unsupported partial_rotary_factor=0.5"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_scaling has type='mrope'; supported are default"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"_parameters.factor is required for \w+.rope_type='linear'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "rope_parameters.factor='2' must be a number"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "rope_parameters.factor=2.0 has no mean"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is required for rope_scaling.type='linear'"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' must be an object, such as"),
        ({"rope_theta": -1}, "json: rope_theta=-1 must be greater than 0"),
        ({"hidden_size": 0}, "json: hidden_size=0 must be a whole number of at least 1"),
        ({"head_dim": 5}, "json: head_dim=5 must be even"),
        ({"num_hidden_layers": -1}, "json: num_hidden_layers=-1 must be a whole number of at least 1"),
        ({"initializer_range": 0.0}, "json: initializer_range=0.0 must be greater than 0"),
        ({"attention_dropout": 1.0}, "json: attention_dropout=1.0 must be at least 0 and less than 1"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "unsupported parameter full_attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        config_from_hf(LLAMA, raw_config("gqa") | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"my_new_field": None, "quantization_config": None, "layer_types": None},
        {
            "pretraining_tp": 1,
            "use_cache": False,
            "torch_dtype": "bfloat16",
            "_model_name_or_path": "x",
            "pad_token_id": 7,
        },
        {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {"dtype": "q4"}},
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "finetuned": True}},
    ],
)
def test_keys_without_effect_are_accepted_and_carried_over(changes):
    raw = raw_config("gqa") | changes
    assert config_to_hf(LLAMA, config_from_hf(LLAMA, raw), raw) == raw


def test_only_what_changed_is_rewritten():
    raw = raw_config("rope-linear-oldest") | {"hidden_act": "swish", "extra": None}
    config = config_from_hf(LLAMA, raw)
    longer = config.replace(rope=RopeConfig("dynamic", 500.0, factor=3.0), max_positions=128)
    assert config_to_hf(LLAMA, longer, raw) == raw | {
        "max_position_embeddings": 128,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    }


def test_a_default_that_follows_from_a_changed_size_is_written_out():
    raw = raw_config("gqa")
    wider = config_from_hf(LLAMA, raw).replace(hidden_size=64)
    written = config_to_hf(LLAMA, wider, raw)
    assert (written["hidden_size"], written["head_dim"]) == (64, 8)
    assert config_from_hf(LLAMA, written) == wider


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (MISTRAL, {"q_bias": True}, "family 'mistral': q_bias=True cannot be expressed"),
        (
            LLAMA,
            {"q_bias": True},
            "family 'llama': q_bias=True, .*o_bias=False differ, but 'attention_bias'",
        ),
        (LLAMA, {"sliding_window": 8}, "family 'llama': sliding_window=8 cannot be expressed"),
        (LLAMA, {"qk_norm": "head"}, "family 'llama': qk_norm='head' cannot be expressed"),
        (LLAMA, {"norm": "layer"}, "family 'llama': norm='layer' cannot be expressed in config.json; it must be 'rms'"),
        (MISTRAL, {"logit_softcap": 30.0}, "family 'mistral': logit_softcap=30.0 cannot be expressed"),
    ],
)
def test_what_a_family_cannot_state_is_refused_by_name(family, changes, message):
    config = config_from_hf(LLAMA, raw_config("gqa")).replace(**changes)
    with pytest.raises(ConfigError, match=message):
        config_to_hf(family, config)


def test_architectures_are_added_where_a_file_states_none():
    raw = raw_config("gqa") | {"architectures": None}
    written = config_to_hf(LLAMA, config_from_hf(LLAMA, raw), raw)
    assert written == raw | {"architectures": ["LlamaForCausalLM"]}


def test_dtype_is_written_in_the_spelling_of_the_file():
    raw = raw_config("gqa")
    config = config_from_hf(LLAMA, raw)
    assert config_to_hf(LLAMA, config, raw | {"torch_dtype": "float16"}, "bfloat16")["torch_dtype"] == "bfloat16"
    assert config_to_hf(LLAMA, config, raw | {"dtype": "float16"})["dtype"] == "float16"
    assert "dtype" not in config_to_hf(LLAMA, config, raw, "bfloat16")
    assert config_to_hf(LLAMA, config, dtype="bfloat16")["dtype"] == "bfloat16"


class TestCritic:
    raw = raw_config("tied") | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}

    def test_follows_the_architecture(self):
        assert config_from_hf(LLAMA, self.raw).is_critic
        assert not config_from_hf(LLAMA, raw_config("tied")).is_critic

    def test_can_be_asked_for_and_is_written_so_that_transformers_has_one_label(self):
        raw = raw_config("tied")
        critic = config_from_hf(LLAMA, raw, is_critic=True)
        for base in (raw, None):
            written = config_to_hf(LLAMA, critic, base)
            assert written["architectures"] == ["LlamaForSequenceClassification"]
            assert read_by_transformers(written).num_labels == 1
            assert config_from_hf(LLAMA, written) == critic

    @pytest.mark.parametrize(("pad", "ends", "written"), [(2, 2, None), (3, [2, 3], None), (0, 2, 0), (0, None, 0)])
    def test_does_not_pad_with_the_token_that_ends_texts(self, pad, ends, written):
        raw = raw_config("tied") | {"pad_token_id": pad, "eos_token_id": ends}
        assert config_to_hf(LLAMA, config_from_hf(LLAMA, raw, is_critic=True), raw)["pad_token_id"] == written
        assert config_to_hf(LLAMA, config_from_hf(LLAMA, raw), raw)["pad_token_id"] == pad

    def test_round_trip(self):
        assert config_to_hf(LLAMA, config_from_hf(LLAMA, self.raw), self.raw) == self.raw

    def test_is_no_language_model(self):
        with pytest.raises(CheckpointError, match="scalar head; load it with is_critic=True"):
            config_from_hf(LLAMA, self.raw, is_critic=False)

    @pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {"0": "a", "1": "b"}}, {"num_labels": None}])
    def test_with_several_labels_is_refused(self, labels):
        with pytest.raises(CheckpointError, match=r"gives \d numbers per token \(num_labels\); a critic's gives one"):
            config_from_hf(LLAMA, self.raw | {"num_labels": None} | labels)


class TestActivationNames:
    def test_every_activation_has_a_name(self):
        assert set(ACTIVATIONS.values()) == set(OURS)

    def test_names_exist_in_transformers(self):
        from transformers.activations import ACT2FN

        assert ACTIVATIONS.keys() <= ACT2FN.keys()
        x = torch.linspace(-20, 20, 1001, dtype=torch.float64)
        for theirs, ours in ACTIVATIONS.items():
            # `gelu_python_tanh` and the like are one formula written in several ways
            torch.testing.assert_close(ACTIVATION_FUNCTIONS[ours](x), ACT2FN[theirs](x), rtol=1e-6, atol=1e-6)


SMALL = st.integers(1, 8)
RAW = st.fixed_dictionaries(
    {
        "architectures": st.just(["LlamaForCausalLM"]),
        "vocab_size": st.integers(1, 1000),
        "hidden_size": SMALL.map(lambda n: 8 * n),
        "intermediate_size": SMALL,
        "num_hidden_layers": SMALL,
        "num_attention_heads": st.just(4),
        "head_dim": SMALL.map(lambda n: 2 * n),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "hidden_act": st.sampled_from(list(ACTIVATIONS)),
        "rms_norm_eps": st.floats(1e-8, 1e-2),
    },
    optional={
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "attention_dropout": st.sampled_from([0, 0.0, 0.1]),
        "max_position_embeddings": st.integers(16, 4096),
        "rope_theta": st.sampled_from([10000, 5e5]),
        "torch_dtype": st.sampled_from(["float32", "bfloat16"]),
        "eos_token_id": st.one_of(st.none(), st.integers(0, 9), st.lists(st.integers(0, 9))),
    },
)


def test_a_field_of_the_transformers_class_that_the_table_does_not_know_is_refused():
    table = replace(LLAMA.config, rows=tuple(row for row in LLAMA.config.rows if "mlp_bias" not in row.keys))
    family = replace(LLAMA, config=table)
    with pytest.raises(CheckpointError, match="unsupported field mlp_bias=True; the tables of family 'llama'"):
        config_from_hf(family, raw_config("gqa") | {"mlp_bias": True})
    rows = tuple(row for row in LLAMA.config.rows if not {"mlp_bias", "attention_bias"} & set(row.keys))
    family = replace(LLAMA, config=replace(LLAMA.config, rows=rows))
    both = {"mlp_bias": True, "attention_bias": False}
    with pytest.raises(CheckpointError, match="unsupported fields mlp_bias=True, attention_bias=False; .* they do"):
        config_from_hf(family, raw_config("gqa") | both)


def test_an_older_key_that_transformers_takes_without_declaring_it_is_refused_too():
    from reallm.hf.conversion.transformers_io import transformers_keys

    assert {"rotary_pct", "rotary_emb_base"} <= transformers_keys("gpt_neox")
    older = {"rotary_pct": 0.5}
    other = replace(LLAMA, model_type="gpt_neox")
    with pytest.raises(CheckpointError, match="unsupported field rotary_pct=0.5"):
        config_from_hf(other, raw_config("gqa") | older)
    assert config_from_hf(LLAMA, raw_config("gqa") | older)  # there it is nobody's


def test_keys_that_nobody_knows_are_told_once(caplog):
    raw = {**raw_config("gqa"), "attention_dropuot": 0.1, "neftune_alpha": 5, "_note": 1, "torch_dtype": "float32"}
    for _ in range(2):
        config_from_hf(LLAMA, raw, source="folder/config.json")
    assert caplog.messages == [
        "note: folder/config.json: neither reallm nor transformers knows 'attention_dropuot', 'neftune_alpha'; "
        "they have no effect"
    ]


def test_notes_of_other_tools_are_carried_over():
    raw = raw_config("gqa") | {"unsloth_version": "2024.9", "neftune_noise_alpha": 5}
    config = config_from_hf(LLAMA, raw)
    assert config == config_from_hf(LLAMA, raw_config("gqa"))
    assert config_to_hf(LLAMA, config, raw)["unsloth_version"] == "2024.9"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"n_head": 0}, "json: n_head=0 must be"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok=9 must be at most num_local_experts=4"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping=-1.0 must be greater than 0"),
    ],
)
def test_errors_name_the_keys_of_each_family(name, changes, message):
    raw = raw_config(name) | changes
    with pytest.raises(CheckpointError, match=message):
        config_from_hf(family_for(raw), raw)


@settings(deadline=None)
@given(RAW, RAW)
def test_any_config_is_stated_on_top_of_any_file(raw, base):
    config = config_from_hf(LLAMA, raw)
    assert config_to_hf(LLAMA, config, raw) == raw
    assert config_from_hf(LLAMA, config_to_hf(LLAMA, config)) == config
    assert config_from_hf(LLAMA, config_to_hf(LLAMA, config, base)) == config


class TestConfigTableIsChecked:
    rows = LLAMA.config.rows

    def test_a_field_that_does_not_exist(self):
        with pytest.raises(ConfigError, match="no field 'n_heads'"):
            ConfigTable(rows=(*self.rows, Key("x", int, "n_heads")))

    def test_a_field_stated_twice(self):
        with pytest.raises(ConfigError, match="field 'vocab_size' is stated twice"):
            ConfigTable(rows=self.rows, constants={"vocab_size": 3})

    def test_a_size_without_a_row(self):
        with pytest.raises(ConfigError, match="field 'vocab_size' has no default and no row"):
            ConfigTable(rows=self.rows[1:])


class TestFolder:
    def test_config_that_is_missing_or_broken(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"holds no config.json: it is not a checkpoint's folder"):
            read_hf_config(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="cannot be read as JSON"):
            read_hf_config(tmp_path)
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(CheckpointError, match="must hold a JSON object, not list"):
            read_hf_config(tmp_path)

    def test_a_path_that_is_no_folder(self, tmp_path):
        assert resolve_path(str(tmp_path)) == tmp_path
        with pytest.raises(CheckpointError, match="does not exist; give a checkpoint's folder or a hub id"):
            resolve_path(tmp_path / "missing")
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match="is a file; give the folder"):
            resolve_path(tmp_path / "file")

    def test_a_hub_id_without_a_connection(self, monkeypatch):
        import huggingface_hub

        def offline(*_, **__):
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
        with pytest.raises(
            CheckpointError, match=r"'org/name' is not a folder here and cannot be downloaded .*no route\)"
        ):
            resolve_path("org/name")

    def test_a_hub_id_is_downloaded_without_pickles(self, monkeypatch, tmp_path):
        import huggingface_hub

        asked = {}

        def download(model_id, allow_patterns):
            asked[model_id] = allow_patterns
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert resolve_path("org/name") == tmp_path
        assert not [pattern for pattern in asked["org/name"] if pattern.endswith((".bin", ".pth", "*"))]
        assert "model*.safetensors" in asked["org/name"]
        resolve_path("org/name", weights=False)
        assert not [pattern for pattern in asked["org/name"] if "safetensors" in pattern]
        assert {"config.json", "tokenizer.json"} <= set(asked["org/name"])


def test_only_configurations_are_taken_as_raw():
    config = ReaLModelConfig(1, 8, 2, 2, 4, 8, 10, 16)
    with pytest.raises(ConfigError, match="expected a HuggingFace configuration or its dict, not a ReaLModelConfig"):
        hf_config_dict(config)
