"""The sides of the training benchmark but TRL: reallm, transformers set up in three ways, and bare matrix products."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from matrix_products import Products, fastest
from reallm import OptimizerConfig, ReaLModel, ReaLModelConfig
from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.batching import gather
from reallm.training.engine import TrainEngine
from workers import Turns
from workloads import Job, Sample

LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
IGNORED = -100
MICROBATCH_TOKENS = 8192
"""The default of `reallm sft`."""

Inputs = dict[str, Tensor]
Batching = Callable[[Sequence[Sample]], list[Inputs]]


# ---------------------------------------------------------------------- reallm


OPTIMIZER = OptimizerConfig(
    lr=LEARNING_RATE,
    beta1=BETAS[0],
    beta2=BETAS[1],
    schedule="constant",
    warmup_steps=0,
    max_grad_norm=MAX_GRAD_NORM,
)


def reallm(job: Job, turns: Turns) -> None:
    turns.before_model()
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = ReaLModel.from_pretrained(job.folder, dtype=dtype, device=job.device)
    engine = TrainEngine(model, OPTIMIZER, total_steps=1000, max_tokens_per_microbatch=MICROBATCH_TOKENS)
    objective = SFTInterface()
    samples = [sample.for_reallm() for sample in job.samples]
    while turns.wait():
        turns.done(engine.train_batch(gather(samples), objective)["loss"])


# ---------------------------------------------------------------------- transformers


def _transformers(batching: Batching, job: Job, turns: Turns) -> None:
    """Steps of a transformers model, with the loss averaged over the whole batch as its Trainer does."""
    model_class = transformers.AutoModelForCausalLM
    turns.before_model()
    model = model_class.from_pretrained(job.folder, dtype=torch.float32).to(job.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    on_gpu = job.device == "cuda"
    autocast = functools.partial(torch.autocast, "cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext
    while turns.wait():
        total = 0.0
        for inputs in batching(job.samples):
            inputs = {name: tensor.to(job.device) for name, tensor in inputs.items()}
            with autocast():
                loss = model(**inputs, num_items_in_batch=job.n_targets, use_cache=False).loss
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.done(total)


def _padded(samples: Sequence[Sample]) -> list[Inputs]:
    """All sequences padded to the longest."""
    shape = (len(samples), max(len(sample.tokens) for sample in samples))
    inputs = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED),
    }
    for row, sample in enumerate(samples):
        n = len(sample.tokens)
        tokens = torch.from_numpy(sample.tokens)
        inputs["input_ids"][row, :n] = tokens
        inputs["attention_mask"][row, :n] = 1
        inputs["labels"][row, n - sample.n_answer : n] = tokens[-sample.n_answer :]
    return [inputs]


def _sorted_by_length(samples: Sequence[Sample]) -> list[Inputs]:
    """Sorted by length and padded in four groups."""
    ordered = sorted(samples, key=lambda sample: len(sample.tokens))
    size = -(-len(ordered) // 4)
    return [_padded(ordered[start : start + size])[0] for start in range(0, len(ordered), size)]


def _packed(samples: Sequence[Sample]) -> list[Inputs]:
    """One row with `position_ids` that start anew for each sequence."""
    rows = [_padded([sample])[0] for sample in samples]
    for row in rows:
        row["labels"][0, 0] = IGNORED  # nothing predicts the first token of a sequence
    return [
        {
            "input_ids": torch.cat([row["input_ids"] for row in rows], dim=1),
            "position_ids": torch.cat([torch.arange(len(sample.tokens)) for sample in samples])[None],
            "labels": torch.cat([row["labels"] for row in rows], dim=1),
        }
    ]


transformers_padded = functools.partial(_transformers, _padded)
transformers_sorted = functools.partial(_transformers, _sorted_by_length)
transformers_packed = functools.partial(_transformers, _packed)


# ---------------------------------------------------------------------- the machine's ceiling


def gemm(job: Job, turns: Turns) -> None:
    """All matrix products of a step, forward and both backward ones, each by the library that is fastest at it."""
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    config = _config(job.folder)
    turns.before_model()
    products = [
        (repeats, fastest(ways))
        for repeats, m, k, n in product_shapes(config, job)
        for ways in Products(m, k, n, device=job.device, dtype=dtype).kinds.values()
    ]
    while turns.wait():
        for repeats, product in products:
            for _ in range(repeats):
                product()
        turns.done()


def product_shapes(config: ReaLModelConfig, job: Job) -> list[tuple[int, int, int, int]]:
    """(how often, m, k, n) of the products `[m, k] @ [k, n]` of a forward pass, the head on trained tokens only."""
    n_tokens = sum(len(sample.tokens) for sample in job.samples)
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.n_q_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layers = config.n_layers
    return [
        (layers, n_tokens, hidden, queries),
        (2 * layers, n_tokens, hidden, keys),
        (layers, n_tokens, queries, hidden),
        (2 * layers, n_tokens, hidden, inner),
        (layers, n_tokens, inner, hidden),
        (1, job.n_targets, hidden, config.vocab_size),
    ]


def operations(job: Job) -> tuple[float, float]:
    """Operations of the matrix products of a step, and with those of attention over half of each square of scores."""
    config = _config(job.folder)
    products = sum(3 * 2.0 * repeats * m * k * n for repeats, m, k, n in product_shapes(config, job))
    squares = sum(len(sample.tokens) ** 2 for sample in job.samples)
    # forward: q @ k and p @ v, 2 operations each for half of L x L scores of every head; backward twice that
    attention = 3 * 2 * 2 * 0.5 * squares * config.n_q_heads * config.head_dim * config.n_layers
    return products, products + attention


def _config(folder: Path) -> ReaLModelConfig:
    return ReaLModel.config_from_llama(folder)
