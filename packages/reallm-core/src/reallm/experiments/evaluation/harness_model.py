"""`HarnessModel`: a model as a backend of the LM Evaluation Harness (the package `lm-eval`).

Requests are packed into batches by a token budget instead of padded. In a run of many processes all ranks make the same
calls and get the same results; the harness sees one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.console import Console

from reallm.data.tokenization.progress import RowProgress
from reallm.engine.diagnosis import model_fault
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, NonFiniteError
from reallm.generation.logprobs import score_tokens

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_NEW_TOKENS = 256
"""Tokens that are generated for a request that does not say how many; as in the harness's own models."""
MAX_NEW_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that tasks use for it; the first one that is given counts."""

T = TypeVar("T")

Pair = tuple[list[int], list[int]]
"""The tokens of a context, and of the continuation that is scored."""


class HarnessModel(TemplateLM):
    """A model for tasks of the harness.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        max_tokens: limit on the tokens of a batch; a longer request is a batch of its own.
        console: console on which progress is shown.
    """

    def __init__(self, model: ReaLModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int, console: Console) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._max_tokens, self._console = max_tokens, console

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found: int = self.tokenizer.eos_token_id
        return found

    @property
    def prefix_token_id(self) -> int:
        """The token before the first one of a text without a context."""
        begin: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence; longer contexts are cut on the left."""
        return self.model.config.max_positions

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's folder, by which the harness names cached requests."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, with the special tokens that the tokenizer adds unless it begins with them already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode([self.prefix_token_id])))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, in the form of the chat template."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation of a context, and whether greedy decoding gives it."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows of `max_length` tokens; each token is scored once."""
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        scores = iter(self._score([pair for of_text in windows for pair in of_text]))
        totals = [sum(next(scores)[0] for _ in of_text) for of_text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a stop text, the end of the text, or the limit of tokens.

        Raises:
            ConfigError: a task wants more tokens than the model has positions.
        """
        texts: dict[int, str] = {}
        with RowProgress("generating", lambda: len(requests), console=self._console) as progress:
            for indices, prompts, options in self._generation_batches(requests):
                completions = self.model.generate(prompts, tokenizer=self.tokenizer, **options)
                for index, completion in zip(indices, completions, strict=True):
                    assert completion.text is not None
                    texts[index] = _before_first(completion.text, options["stop"])
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                progress.advance(len(indices))
        return [texts[index] for index in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = self._score([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Summed log-probability of each continuation, and whether greedy decoding gives it.

        Raises:
            NonFiniteError: a log-probability is NaN or infinite.
        """
        layout = self.model.layout
        budget = self._max_tokens * layout.dp * layout.pp  # gives each rank a full micro-batch
        sizes = [len(context) + len(continuation) for context, continuation in pairs]
        scores: list[tuple[float, bool]] = []
        with RowProgress("scoring", lambda: len(pairs), console=self._console) as progress:
            for batch in _by_budget(pairs, sizes, budget):
                scores += self._score_batch(batch)
                progress.advance(len(batch))
        return scores

    def _score_batch(self, batch: Sequence[Pair]) -> list[tuple[float, bool]]:
        # the last token of a sequence is never an input: a sequence may have one token more than there are positions
        sequences = [(context + continuation)[-self.max_length - 1 :] for context, continuation in batch]
        n_scored = [
            min(len(continuation), len(sequence) - 1)
            for (_, continuation), sequence in zip(batch, sequences, strict=True)
        ]
        lengths = torch.tensor([0, *map(len, sequences)])
        scored = torch.cat(
            [torch.arange(len(sequence)) >= len(sequence) - n for sequence, n in zip(sequences, n_scored, strict=True)]
        )
        found = score_tokens(
            self.model.network,
            torch.tensor([token for sequence in sequences for token in sequence]),
            lengths.cumsum(0),
            scored,
            mesh=self.model.mesh,
            max_tokens=self._max_tokens,
        )
        if not found.logprobs.isfinite().all():
            fault = model_fault(self.model.network, self.model.mesh)
            cause = "" if fault is None else f"; {fault}"
            raise NonFiniteError(f"the log-probabilities of the model are NaN or infinite{cause}")
        logprobs = found.logprobs[scored.to(found.logprobs.device)].double().cpu().split(n_scored)
        is_greedy = found.is_greedy[scored.to(found.is_greedy.device)].cpu().split(n_scored)
        return [(float(one.sum()), bool(greedy.all())) for one, greedy in zip(logprobs, is_greedy, strict=True)]

    def _generation_batches(
        self, requests: Sequence[Instance]
    ) -> Iterator[tuple[list[int], list[list[int]], dict[str, Any]]]:
        """Indices, prompts as tokens, and options of `generate`, for requests with the same options."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        for group in groups.values():
            options = _generate_options(requests[group[0]].args[1])
            room = self.max_length - options["max_new_tokens"]
            if room < 1:
                raise ConfigError(
                    f"a task wants {options['max_new_tokens']:,} new tokens, but the model has {self.max_length:,} "
                    "positions; choose another task"
                )
            prompts = [self.tok_encode(requests[index].args[0])[-room:] or [self.prefix_token_id] for index in group]
            pairs = list(zip(group, prompts, strict=True))
            sizes = [len(prompt) + options["max_new_tokens"] for prompt in prompts]
            for batch in _by_budget(pairs, sizes, self._max_tokens):
                yield [index for index, _ in batch], [prompt for _, prompt in batch], options


def _by_budget(items: Sequence[T], sizes: Sequence[int], budget: int) -> Iterator[list[T]]:
    """The items in their order, in batches whose sizes add up to at most `budget`; a larger item is a batch of its own.

    The size of an item is the number of tokens of its sequence when it is complete.
    """
    batch: list[T] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and total + size > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _generate_options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of `ReaLModel.generate` for those of a task; without `do_sample`, decoding is greedy."""
    until = given.get("until") or []
    n_new = next((given[key] for key in MAX_NEW_TOKENS_KEYS if given.get(key) is not None), DEFAULT_MAX_NEW_TOKENS)
    options: dict[str, Any] = {"max_new_tokens": int(n_new), "temperature": 0.0}
    options["stop"] = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    if given.get("do_sample", float(given.get("temperature") or 0.0) > 0):
        options["temperature"] = float(given.get("temperature") or 1.0)
        options |= {key: given[key] for key in ("top_k", "top_p") if given.get(key)}
    return options


def _before_first(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops in it."""
    return text[: min([len(text), *(at for stop in stops if (at := text.find(stop)) >= 0)])]
