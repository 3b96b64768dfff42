"""All that a plugin could offer under hook API 1.0, in the words of then. Not to be changed before 2.0."""

from reallm import DatasetSpec, HFFamily, LoggerSpec, hookimpl
from reallm.hf.standard import GATED_DECODER, decoder_rows, same_as
from reallm.hf.tables import ConfigTable, Key

REALLM_HOOK_API = "1.0"


@hookimpl
def reallm_datasets():
    return {
        "old-numbers": DatasetSpec("reallm_made_for_1_0.dataset:Numbers", "reallm_made_for_1_0.dataset:NumbersConfig")
    }


@hookimpl
def reallm_loggers():
    return {"old-lines": LoggerSpec("reallm_made_for_1_0.logger:Lines", "a line for each step")}


@hookimpl
def reallm_hf_families():
    return [
        HFFamily(
            names=("llama",),
            model_type="llama",
            architectures=("LlamaForCausalLM",),
            critic_architectures=("LlamaForSequenceClassification",),
            config=ConfigTable(
                rows=(
                    *decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=2048),
                    Key("attention_bias", bool, ("qkv_bias", "o_bias"), default=False),
                    Key("mlp_bias", bool, "mlp_bias", default=False),
                ),
                constants={"norm": "rms", "mlp": "gated"},
            ),
            weights=GATED_DECODER,
        )
    ]
