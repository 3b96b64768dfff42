"""A real checkpoint, SmolLM2-135M-Instruct, held to transformers."""

from __future__ import annotations

import json
import pydoc_data.topics

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from reallm import GenerationConfig, ReaLModel
from reallm.generation.request import Request
from reallm.model.exact import why_not_exact
from tests.helpers.smollm2 import smollm2_folder

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
    "To make a good cup of tea, first",
    "1, 2, 3, 5, 8,",
    "The three laws of thermodynamics are",
    "Q: Why is the sky blue?\nA:",
    "import numpy as np\n\n",
]


@pytest.fixture(scope="module")
def folder():
    return smollm2_folder()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(folder):
    return ReaLModel.from_pretrained(folder).eval()


def test_its_family_is_found_by_its_config(model):
    assert model.family.names[0] == "llama"
    assert model.config.tied_embeddings
    assert (model.config.n_q_heads, model.config.n_kv_heads) == (9, 3)
    assert model.config.rope.theta == 100000


def test_greedy_text_is_that_of_transformers_token_by_token(model, reference, tokenizer):
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    ours = model.generate(prompts, max_new_tokens=64, temperature=0, stop_token_ids=())
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    # generate's own end is switched off, so that all 64 tokens are compared
    theirs = reference.generate(**batch, max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None)
    assert [completion.token_ids for completion in ours] == theirs[:, -64:].tolist()


@torch.no_grad()
def test_logits_agree_on_real_text(model, reference, tokenizer):
    texts = [text for text in pydoc_data.topics.topics.values() if len(text) > 200][:6]
    ids = [tokenizer(text, truncation=True, max_length=200 + 30 * place).input_ids for place, text in enumerate(texts)]
    packed = model(torch.tensor([token for one in ids for token in one]), torch.tensor([0, *map(len, ids)]).cumsum(0))
    alone = torch.cat([reference(torch.tensor([one])).logits[0] for one in ids])
    # logits reach 40; float32 keeps 7 digits and 30 blocks add up their rounding: about 1e-4 seen
    assert float((packed - alone).abs().max()) < 1e-3
    assert torch.equal(packed.argmax(-1), alone.argmax(-1))


def test_exact_log_probabilities_are_those_of_a_packed_pass_bit_for_bit(model, tokenizer):
    if reason := why_not_exact(model.network):
        pytest.skip(f"not exact on this machine: {reason}")
    shared = tokenizer.encode(pydoc_data.topics.topics["assert"])[:270]
    prompts = [*(tokenizer.encode(prompt) for prompt in PROMPTS[:4]), [*shared, 100], [*shared, 200, 300]]
    settings = GenerationConfig(max_new_tokens=24, n=2, temperature=1.0, stop_token_ids=())
    with model.generation_engine(exact=True, max_batch_tokens=200, max_batch_sequences=5) as engine:
        for key, prompt in enumerate(prompts):
            engine.add(Request(tuple(prompt), settings, key=key))
        completions = engine.run()
    sequences = [[*each.prompt_ids, *each.token_ids] for each in completions]
    bounds = torch.tensor([0, *map(len, sequences)]).cumsum(0)
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    packed = model.token_logprobs(tokens, bounds, exact=True)
    for each, end in zip(completions, bounds[1:].tolist(), strict=True):
        assert packed[end - len(each.token_ids) : end].tolist() == each.logprobs


def test_text_in_and_text_out_with_the_chat_template(model, tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    answer = model.generate([text], max_new_tokens=24, temperature=0)[0]
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"


def test_round_trip_changes_nothing(folder, model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    read = [AutoConfig.from_pretrained(path).to_dict() for path in (folder, tmp_path / "saved")]
    assert read[0] | {"_name_or_path": None} == read[1] | {"_name_or_path": None}
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_critic_from_a_language_model_keeps_its_body(folder, model):
    critic = ReaLModel.from_pretrained(folder, is_critic=True, seed=3)
    scores = critic(torch.tensor([1, 2, 3]), torch.tensor([0, 3]))
    assert scores.shape == (3,)
    name = "layers.7.attn.q.weight"
    assert torch.equal(critic.get_parameter(name), model.get_parameter(name))
