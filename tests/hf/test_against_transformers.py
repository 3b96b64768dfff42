"""The whole way against transformers in float32: same logits, same gradients, for every entry of the grid.

Packed batches of unequal lengths are compared with transformers on each sequence alone. Largest differences seen over
the grid: logits 3.1e-6 (where logits reach 4), gradients 5.4e-6 relative to the largest of each tensor.
"""

from __future__ import annotations

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.hf.conversion.state_dict import state_dict_to_hf
from reallm.hf.conversion.transformers_io import checkpoint_state
from tests.helpers.hf_grid import GRID, hf_model, raw_config, save_hf

MAX_LOGIT_DIFFERENCE = 2e-5
MAX_GRADIENT_DIFFERENCE = 2e-5
KIND = "SequenceClassification"
LENGTHS = (1, 7, 16, 33, 2, 40)  # around windows, and on both sides of the lengths where frequencies change


def sequences(vocab_size=97, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (length,), generator=generator) for length in LENGTHS]


def packed(samples):
    lengths = torch.tensor([0] + [len(sample) for sample in samples])
    return torch.cat(samples), lengths.cumsum(0).to(torch.int32)


def logits_one_by_one(model, samples):
    return torch.cat([model(sample[None]).logits[0] for sample in samples])


@pytest.mark.parametrize("name", GRID)
def test_logits_and_gradients(name, tmp_path):
    theirs = save_hf(raw_config(name), tmp_path)
    ours = ReaLModel.from_pretrained(tmp_path)
    samples = sequences()

    logits, expected = ours(*packed(samples)), logits_one_by_one(theirs, samples)
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= MAX_LOGIT_DIFFERENCE

    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    assert ours.family is not None
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    gradients = state_dict_to_hf(ours.family, gradients, ours.config)
    # Both as in a checkpoint: in memory transformers holds all experts of a layer as one tensor.
    wanted = checkpoint_state(theirs, {key: parameter.grad for key, parameter in theirs.named_parameters()})
    assert gradients.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert (gradients[key] - gradient).abs().max() <= MAX_GRADIENT_DIFFERENCE * gradient.abs().max(), key


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, "gqa") for name in GRID if name.startswith(("rope", "act-", "mistral")) and "heads" not in name]
    + [(name, "rope-yarn-new") for name in GRID if "yarn" in name]
    + [
        ("mixtral-window", "mixtral"),
        ("qwen2-window", "qwen2"),
        ("qwen3-moe-normalized", "qwen3-moe"),
        ("gemma2-no-caps", "gemma2"),
        ("gemma2-narrow-window", "gemma2"),
        ("gemma3-ropes", "gemma3"),
        ("phi3-partial", "phi3"),
        ("phi3-window", "phi3"),
        ("phi3-longrope", "phi3"),
        ("phi3-longrope-partial", "phi3-partial"),
    ],
)
def test_the_comparison_would_notice(name, other):
    """Entries of the grid with the same weights differ by far more than the tolerance, or mean the same."""
    same = {("act-swish", "gqa"), ("mistral-no-window", "gqa"), ("mistral-wide-window", "gqa"),
            ("rope-yarn-new", "rope-yarn-new"), ("rope-yarn-old", "rope-yarn-new"),
            ("rope-yarn-mscale-alone", "rope-yarn-new")}  # fmt: skip
    samples = sequences()
    with torch.no_grad():
        one, two = (logits_one_by_one(hf_model(raw_config(entry)), samples) for entry in (name, other))
    difference = (one - two).abs().max()
    assert difference == 0 if (name, other) in same else difference > 50 * MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize(
    "name", ["gqa", "tied", "mistral-window", "mixtral-window", "qwen2-window", "gemma2", "gpt2", "phi3-longrope"]
)
def test_scores_of_a_critic(name, tmp_path):
    raw = raw_config(name)
    language_model = raw["architectures"][0]
    raw["architectures"] = [language_model.replace("CausalLM", KIND).replace("LMHeadModel", f"For{KIND}")]
    theirs = save_hf(raw | {"id2label": {"0": "LABEL_0"}}, tmp_path)
    ours = ReaLModel.from_pretrained(tmp_path)
    samples = sequences()
    expected = torch.cat([theirs.score(theirs.base_model(sample[None])[0])[0, :, 0] for sample in samples])
    assert ours.config.is_critic
    assert (ours(*packed(samples)) - expected).abs().max() <= MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize(
    "name",
    [
        "gqa",
        "tied",
        "all-biases-tied",
        "rope-llama3-old",
        "mistral-window",
        "mixtral",
        "qwen3-moe-sparse-step",
        "gemma3-seven-layers",
        "gpt2-narrow-relu",
        "phi3-longrope-partial",
    ],
)
def test_transformers_computes_the_same_from_what_we_save(name, tmp_path):
    import transformers

    theirs = save_hf(raw_config(name), tmp_path / "theirs")
    ReaLModel.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    sample = sequences()[3][None]
    assert torch.equal(again(sample).logits, theirs(sample).logits)
