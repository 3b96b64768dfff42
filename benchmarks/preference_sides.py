"""The sides of the benchmark of preference learning but TRL: reallm, and transformers with packed sequences."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from preference_work import PreferenceJob
from reallm import NamedArray, ReaLModel, run
from reallm.algorithms.context import CallContext
from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.interface import DPOInterface, ReferenceInterface
from reallm.algorithms.rw.config import RWConfig
from reallm.algorithms.rw.interface import RWInterface
from reallm.config.args import CriticArgs, ModelArgs
from reallm.data.batching import gather
from reallm.data.namedarray import merge
from reallm.training.engine import TrainEngine
from reallm_datasets.config import PairedComparisonDatasetConfig
from sides import BETAS, LEARNING_RATE, MAX_GRAD_NORM, MICROBATCH_TOKENS, OPTIMIZER
from workers import Turns

BETA = 0.1
"""Of DPO: the default on both sides."""
RUN_STEPS, RUN_PAIRS = 6, 2
"""Steps of the run whose runner is measured, the first ones of which are left out, and pairs in each."""


# ---------------------------------------------------------------------- reallm


def batch_of(job: PreferenceJob) -> NamedArray:
    """The pairs as `rw_pair` gives them."""
    samples = []
    for pair in job.pairs:
        both = pair.sequences
        array = NamedArray(
            input_ids=torch.tensor(both[0] + both[1]),
            prompt_lens=torch.tensor([len(pair.prompt)] * 2),
            margins=torch.zeros(1),
        )
        lengths = tuple(len(sequence) for sequence in both)
        samples.append(
            array.with_metadata(seqlens={"input_ids": (lengths,), "prompt_lens": ((1, 1),), "margins": ((1,),)})
        )
    return gather(samples)


def reallm_dpo(live: bool, job: PreferenceJob, turns: Turns) -> None:
    """Steps of DPO; the reference scores each batch anew if it is `live`, else only once."""
    turns.before_model()
    config = DPOConfig(actor=ModelArgs(path=str(job.folder)), dataset=_dataset("rows.jsonl"), beta=BETA)
    policy, reference = (ReaLModel.from_pretrained(job.folder, dtype=torch.float32) for _ in range(2))
    engine = TrainEngine(policy, OPTIMIZER, total_steps=1000, max_tokens_per_microbatch=MICROBATCH_TOKENS)
    interface, scorer, batch = DPOInterface(config), ReferenceInterface(config), batch_of(job)
    score = partial(scorer.inference, reference, context=_context(2))
    scores = score(batch)
    while turns.wait():
        scores = score(batch) if live else scores
        turns.done(interface.train_step(engine, merge([batch, scores]), _context(2))["loss"])


def reallm_rw(job: PreferenceJob, turns: Turns) -> None:
    """Steps of reward modelling."""
    turns.before_model()
    model = ReaLModel.from_pretrained(job.reward_folder, is_critic=True, dtype=torch.float32)
    engine = TrainEngine(model, OPTIMIZER, total_steps=1000, max_tokens_per_microbatch=MICROBATCH_TOKENS)
    interface = RWInterface(RWConfig(model=CriticArgs(path=str(job.reward_folder)), dataset=_dataset("rows.jsonl")))
    batch = batch_of(job)
    while turns.wait():
        turns.done(interface.train_step(engine, batch, _context(2))["loss"])


reallm_dpo_cached, reallm_dpo_live = partial(reallm_dpo, False), partial(reallm_dpo, True)


def _dataset(rows: str, **settings: Any) -> PairedComparisonDatasetConfig:
    return PairedComparisonDatasetConfig(train_path=rows, **settings)


def _context(step: int) -> CallContext:
    return CallContext(tokenizer=None, seed=1, step=step, total_steps=1000, max_tokens_per_microbatch=MICROBATCH_TOKENS)


# ---------------------------------------------------------------------- transformers


def _packed(job: PreferenceJob) -> tuple[dict[str, Tensor], list[tuple[int, int, int]]]:
    """All sequences as one row, and for each its begin, the begin of its answer, and its end."""
    sequences = [(sequence, len(pair.prompt)) for pair in job.pairs for sequence in pair.sequences]
    bounds, at = [], 0
    for sequence, n_prompt in sequences:
        bounds.append((at, at + n_prompt, at + len(sequence)))
        at += len(sequence)
    inputs = {
        "input_ids": torch.tensor([[token for sequence, _ in sequences for token in sequence]]),
        "position_ids": torch.cat([torch.arange(len(sequence)) for sequence, _ in sequences])[None],
    }
    return inputs, bounds


def _steps(model: Any, loss_of: Callable[[], Tensor], turns: Turns) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    while turns.wait():
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.done(loss.item())


def padding_free_dpo(job: PreferenceJob, turns: Turns) -> None:
    """DPO with one packed row and the reference's scores kept."""
    turns.before_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32).train()
    inputs, bounds = _packed(job)

    def scores() -> Tensor:
        logits = model(**inputs, use_cache=False).logits[0]
        logprobs = logits[:-1].log_softmax(-1).gather(1, inputs["input_ids"][0, 1:, None])[:, 0]
        return torch.stack([logprobs[start - 1 : end - 1].sum() for _, start, end in bounds])

    with torch.no_grad():
        reference = scores()

    def loss() -> Tensor:
        ratios = scores() - reference
        return -logsigmoid(BETA * (ratios[::2] - ratios[1::2])).mean()

    _steps(model, loss, turns)


def padding_free_rw(job: PreferenceJob, turns: Turns) -> None:
    """Reward modelling with one packed row."""
    turns.before_model()
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(job.reward_folder, dtype=torch.float32)
    model = whole.train()
    inputs, bounds = _packed(job)
    last = torch.tensor([end - 1 for _, _, end in bounds])

    def loss() -> Tensor:
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        values = model.score(hidden[last])[:, 0]
        return -logsigmoid(values[::2] - values[1::2]).mean()

    _steps(model, loss, turns)


# ---------------------------------------------------------------------- the runner


def runner_share(job: PreferenceJob, turns: Turns) -> None:
    """Whole runs of DPO; the loss that is reported is the share of a step that is not spent in `train_batch`."""
    turns.before_model()
    spans: list[tuple[float, float]] = []
    train_batch = TrainEngine.train_batch

    def timed(engine: TrainEngine, *args: Any) -> dict[str, float]:
        start = time.perf_counter()
        metrics = train_batch(engine, *args)
        spans.append((start, time.perf_counter()))
        return metrics

    TrainEngine.train_batch = timed  # type: ignore[method-assign]  # this process does nothing else
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.folder)
    rows = job.scratch / "pairs.jsonl"
    pairs = job.pairs[:RUN_PAIRS]
    with rows.open("w", encoding="utf-8") as file:
        for pair in pairs:
            texts = {name: tokenizer.decode(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")}
            file.write(json.dumps(texts) + "\n")
    while turns.wait():
        spans.clear()
        config = DPOConfig(
            actor=ModelArgs(path=str(job.folder), dtype="float32"),
            dataset=_dataset(str(rows), train_bs_n_seqs=len(pairs), max_seqlen=4096, cache_dir=None),
            optimizer=OPTIMIZER,
            epochs=RUN_STEPS,
            output_dir=str(job.scratch),
        )
        run(config, "dpo")
        periods = [(after[0] - before[0], before[1] - before[0]) for before, after in pairwise(spans)]
        turns.done(statistics.median(1 - inside / period for period, inside in periods[1:]))
