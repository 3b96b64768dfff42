"""Memory that an engine holds after random requests: what it held before."""

from __future__ import annotations

import gc

import torch
from torch._subclasses.fake_tensor import FakeTensor

from reallm.demo.tokenizer import byte_tokenizer
from reallm.generation.engine import GenerationEngine
from reallm.generation.text import TokenDecoder
from tests.helpers.generation_traffic import Traffic
from tests.helpers.variants import BASE, build

LONGEST_PROMPT = 300
"""More than one block of 256 tokens, in which prefixes are shared."""


def bytes_of_all_tensors() -> int:
    gc.collect()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        # isinstance would ask objects that warn when they are asked; fake tensors, left by compiling, have no memory
        if issubclass(type(each), torch.Tensor) and not issubclass(type(each), FakeTensor)
    }
    return sum(storages.values())


def test_memory_after_random_requests_is_that_before_them():
    model, tokenizer = build(BASE.replace(vocab_size=257, max_positions=4096)), byte_tokenizer()
    held, ended = [], set[str]()
    for seed in range(3):
        with GenerationEngine(
            model, decoder=TokenDecoder(tokenizer), kv_cache_tokens=4096, max_batch_tokens=128
        ) as engine:
            traffic = Traffic(engine, 257, longest_prompt=LONGEST_PROMPT, most_new=32, seed=seed)
            for _ in range(40):
                traffic.step(cancellations=0.4)
            traffic.finish()
            ended |= traffic.ended.keys()
        del engine, traffic
        held.append(bytes_of_all_tensors())
    assert ended == {"stop", "length", "cancelled"}
    assert held == held[:1] * 3
