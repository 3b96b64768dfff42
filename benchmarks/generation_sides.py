"""The sides of the generation benchmark: reallm, transformers in its two ways, and the machine's limit."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from generation_work import Job, Requests
from matrix_products import Products, fastest
from reallm import ReaLModel, ReaLModelConfig
from reallm.generation import model_runner
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Request
from workers import Turns

NO_TOKEN = -1
"""As the end of a sequence: none."""
PAGE = 256
"""Tokens of a page of transformers' continuous batching, its default."""


# ---------------------------------------------------------------------- reallm


def reallm(job: Job, turns: Turns) -> None:
    """An engine that stays, as in a server, and in training between two updates of the weights.

    It does not share prompts with earlier requests: every round computes them.
    """
    turns.before_model()
    model = ReaLModel.from_pretrained(job.folder, dtype=job.dtype, device=job.device)
    with model.generation_engine(prefix_sharing=False) as engine:
        while name := turns.wait():
            requests = job.requests[name]
            for key, (prompt, config) in enumerate(zip(requests.prompts, _configs(requests), strict=True)):
                engine.add(Request(prompt, config, key))
            turns.done(tokens=[completion.token_ids for completion in engine.run()])


def reallm_eager(job: Job, turns: Turns) -> None:
    """`reallm` without CUDA graphs."""
    model_runner.can_be_captured = lambda *_: False
    reallm(job, turns)


def reallm_one_call(job: Job, turns: Turns) -> None:
    """`generate`, which prepares an engine for each call."""
    turns.before_model()
    model = ReaLModel.from_pretrained(job.folder, dtype=job.dtype, device=job.device)
    while name := turns.wait():
        requests = job.requests[name]
        assert requests.are_equal, "one configuration for all prompts"
        completions = model.generate(requests.prompts, _configs(requests)[0])
        turns.done(tokens=[completion.token_ids for completion in completions])


def _configs(requests: Requests) -> list[GenerationConfig]:
    temperature = 1.0 if requests.n > 1 else 0.0
    return [
        GenerationConfig(max_new_tokens=n_new, temperature=temperature, n=requests.n, stop_token_ids=())
        for n_new in requests.new_tokens
    ]


# ---------------------------------------------------------------------- transformers


def transformers_static(job: Job, turns: Turns) -> None:
    """`generate`: one batch, which runs until its longest sequence has ended."""
    turns.before_model()
    model = _transformers_model(job)
    while name := turns.wait():
        requests = job.requests[name]
        prompts, mask = (tensor.to(job.device) for tensor in _padded(requests))
        length = max(requests.new_tokens)
        sequences = model.generate(
            prompts,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=requests.n > 1,
            num_return_sequences=requests.n,
            top_k=0,
            eos_token_id=None,
            pad_token_id=0,
        )
        generated = sequences[:, prompts.shape[1] :].tolist()
        new_tokens = [n_new for n_new in requests.new_tokens for _ in range(requests.n)]
        turns.done(tokens=[ids[:n_new] for ids, n_new in zip(generated, new_tokens, strict=True)])


def _padded(requests: Requests) -> tuple[Tensor, Tensor]:
    """The prompts, padded on the left, and the mask of their tokens."""
    longest = max(map(len, requests.prompts))
    rows = [[0] * (longest - len(prompt)) + [*prompt] for prompt in requests.prompts]
    masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in requests.prompts]
    return torch.tensor(rows), torch.tensor(masks)


def transformers_continuous(job: Job, turns: Turns) -> None:
    """Its continuous batching, with room in the cache for all requests at once."""
    turns.before_model()
    model = _transformers_model(job)
    while name := turns.wait():
        turns.done(tokens=_continuous(model, job.requests[name]))


def _continuous(model: transformers.PreTrainedModel, requests: Requests) -> list[list[int]]:
    samples = requests.n > 1
    generation = transformers.GenerationConfig(
        max_new_tokens=max(requests.new_tokens),
        do_sample=samples,
        num_return_sequences=requests.n,
        eos_token_id=NO_TOKEN,
        pad_token_id=0,
        **({"top_k": 0} if samples else {}),
    )
    pages = sum(
        requests.n * -(-(len(prompt) + n_new) // PAGE)
        for prompt, n_new in zip(requests.prompts, requests.new_tokens, strict=True)
    )
    batching = ContinuousBatchingConfig(num_blocks=pages + 8, page_size=PAGE, max_batch_tokens=2048)
    if requests.are_equal:
        outputs = model.generate_batch(
            [list(prompt) for prompt in requests.prompts],
            generation_config=generation,
            continuous_batching_config=batching,
            warmup=False,
            progress_bar=False,
        )
        return [output.generated_tokens for output in sorted(outputs.values(), key=_number)]
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching, block=True, timeout=5, warmup=False
    ) as manager:
        for i, (prompt, n_new) in enumerate(zip(requests.prompts, requests.new_tokens, strict=True)):
            manager.add_request(list(prompt), request_id=f"r_{i}", max_new_tokens=n_new)
        finished: list = []
        while len(finished) < len(requests.prompts):
            output = manager.get_result(timeout=1)
            if output is not None and output.is_finished():
                finished.append(output)
            elif output is None and not manager.is_running():
                raise RuntimeError("transformers' continuous batching has stopped")
    return [output.generated_tokens for output in sorted(finished, key=_number)]


def _number(output: object) -> list[int]:
    """Numbers in the id of a request, such as `req_3` or `req_3_1`, which has the index of the prompt first."""
    return [int(part) for part in output.request_id.split("_") if part.isdigit()]  # type: ignore[attr-defined]


def _transformers_model(job: Job) -> transformers.PreTrainedModel:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = getattr(torch, job.dtype)
    return transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=dtype).to(job.device).eval()


# ---------------------------------------------------------------------- the machine's limit


def limit(job: Job, turns: Turns) -> None:
    """What a run cannot avoid: products of the prompts, then for each token the weights' read, or the products.

    With one sequence it reads memory as large as the weights; with more it computes their products, each by the library
    that is fastest at it.
    """
    config = ReaLModel.config_from_llama(job.folder)
    turns.before_model()
    prepared: dict[str, Callable[[], None]] = {}
    while name := turns.wait():
        if name not in prepared:  # in the warm-up
            prepared[name] = _limit(config, job, job.requests[name])
        prepared[name]()
        turns.done()


def _limit(config: ReaLModelConfig, job: Job, requests: Requests) -> Callable[[], None]:
    assert requests.are_equal, "the number of sequences of a step is taken to be constant"
    n_sequences, n_steps = requests.n * len(requests.prompts), requests.new_tokens[0] - 1
    of_layers = _layer_products(config)
    head = (1, config.vocab_size, config.hidden_size)
    n_prompt_tokens = sum(map(len, requests.prompts))
    prefill = _products(of_layers, n_prompt_tokens, job) + _products([head], len(requests.prompts), job)
    step: list[Callable[[], object]]
    if n_sequences == 1:
        weights = torch.empty(sum(repeats * n * k for repeats, n, k in [*of_layers, head])).normal_()
        step = [weights.sum]
    else:
        step = _products([*of_layers, head], n_sequences, job)

    def run() -> None:
        for product in prefill:
            product()
        for _ in range(n_steps):
            for product in step:
                product()

    return run


def _layer_products(config: ReaLModelConfig) -> list[tuple[int, int, int]]:
    """(how often, n, k) of the products with the weights [n, k] of all layers; the head is not among them."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.n_layers
    queries, keys = config.n_q_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return [
        (layers, queries, hidden),
        (2 * layers, keys, hidden),
        (layers, hidden, queries),
        (2 * layers, inner, hidden),
        (layers, hidden, inner),
    ]


def _products(shapes: list[tuple[int, int, int]], n_tokens: int, job: Job) -> list[Callable[[], object]]:
    """One call for each shape, which computes its products for all layers, each with a weight of its own."""
    dtype = getattr(torch, job.dtype)
    return [
        fastest(Products(n_tokens, k, n, n_weights=repeats, device=job.device, dtype=dtype).kinds["forward"])
        for repeats, n, k in shapes
    ]
