"""`GenerativeModel`: a sharded model that continues prompts."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reallm.arguments import check_names
from reallm.engine.diagnosis import nonfinite_explained
from reallm.engine.sharded_model import ShardedModel
from reallm.errors import ConfigError, DataError
from reallm.generation.config import GenerationConfig, as_generation_config
from reallm.generation.data_parallel import make_engine
from reallm.generation.engine import GenerationEngine
from reallm.generation.generate import add_prompts, continue_prompts
from reallm.generation.nonfinite import refuse_nonfinite
from reallm.generation.request import Completion, Event, FinishedEvent
from reallm.generation.text import TokenDecoder
from reallm.hf.conversion.transformers_io import end_of_sequence_ids, load_tokenizer
from reallm.model.inputs import as_prompts
from reallm.parallel.fsdp import unsharded
from reallm.parallel.object_collectives import fail_together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GenerativeModel(ShardedModel):
    """A `ShardedModel` that continues prompts, with the tokenizer and the end-of-sequence tokens of its checkpoint."""

    source: Path | None = None
    """The folder of the checkpoint that the model came from."""
    tokenizer_source: Path | None = None
    """The folder with its tokenizer: `source`, or that of an adapter."""
    _raw_hf_config: Mapping[str, Any] | None = None
    _kept_engine: GenerationEngine | None = None

    def generate(
        self,
        prompts: Sequence[str | Sequence[int] | Tensor],
        config: GenerationConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        exact: bool = False,
        keep_cache: bool = False,
        keys: Sequence[int | str] | None = None,
        **fields: Any,
    ) -> list[Completion]:
        """Continue prompts, given as text or as token ids, all of them at once.

            model.generate(["Once upon a time"], max_new_tokens=64, temperature=0.7, n=4)

        With a mesh, all ranks of its layout make the same call and get the same result.

        Args:
            prompts: texts, or token ids as lists, tensors or arrays.
            config: settings for sampling tokens and for ending a sequence. `stop_token_ids=None` takes the
                end-of-sequence tokens of the checkpoint, and of `tokenizer`.
            tokenizer: encodes texts and decodes tokens; None takes the one in the checkpoint's folder.
            keys: name of each prompt's random stream; None: its index.
            exact: whether log-probabilities are those of `token_logprobs(exact=True)`, bit for bit.
            keep_cache: keep the memory of the cache, and what was computed of the prompts, for the next call, which
                gives it back unless it keeps it too. False: it is given back now.
            fields: fields of `GenerationConfig`, instead of `config` or in place of its own.

        Returns:
            The completions in the order of the prompts, `n` of each.

        Raises:
            NonFiniteError: logits are NaN or infinite; names the prompt, the step, and what is wrong with the model.
            DataError: a prompt is empty, has a token outside of the vocabulary, or may outgrow learned positions or
                the cache.
            ConfigError: a value is not allowed, `exact` is not possible, or this is a critic.
        """
        config = as_generation_config("generate", config, fields)
        ids, tokenizer = self._encode(prompts, config, tokenizer)
        with self._ready_to_generate(), self._engine_in_use(tokenizer, exact=exact, keep=keep_cache) as engine:
            return continue_prompts(engine, ids, config, keys)

    def stream(
        self,
        prompts: Sequence[str | Sequence[int] | Tensor],
        config: GenerationConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        exact: bool = False,
        **fields: Any,
    ) -> Iterator[Event]:
        """Continue prompts, and iterate over the events: each token as it is generated, each completion as it ends.

        Arguments and errors as in `generate`; `request_id` of an event is the index of its prompt. With a mesh, all
        ranks of its layout make the same call, and go on with the iteration together.
        """
        config = as_generation_config("stream", config, fields)
        ids, tokenizer = self._encode(prompts, config, tokenizer)
        events = self._events(ids, config, tokenizer, exact=exact)
        _close_at_exit(events)
        return events

    def generation_engine(self, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> GenerationEngine:
        """An engine for requests that come at any time; see `GenerationEngine` for the options.

        With a mesh, all ranks of its layout make this call and the same calls of the engine, and get the same events.

        Args:
            tokenizer: decodes tokens; None: completions have no text, and there are no stop strings.
            options: arguments of `GenerationEngine`.

        Raises:
            ConfigError: this is a critic, or an option is wrong.
        """
        check_names(
            "generation_engine",
            options,
            [
                "tokenizer",
                *(name for name in inspect.signature(GenerationEngine).parameters if name not in ("network", "mesh")),
            ],
        )
        self._refuse_critic()
        _check_tokenizer(tokenizer)
        return make_engine(
            self.network,
            mesh=self.mesh,
            **{
                "decoder": None if tokenizer is None else TokenDecoder(tokenizer),
                "default_stop_token_ids": self._default_stop_token_ids(tokenizer),
                **options,
            },
        )

    # ------------------------------------------------------------------ private helpers

    @contextmanager
    def _engine_in_use(
        self, tokenizer: PreTrainedTokenizerBase | None, *, exact: bool, keep: bool
    ) -> Iterator[GenerationEngine]:
        """Context with the engine that an earlier call has kept, or a new one, which is then closed or kept."""
        kept, self._kept_engine = self._kept_engine, None
        if kept is not None and kept.is_exact != exact:
            kept.close()
            kept = None
        with ExitStack() as stack:
            engine = stack.enter_context(kept or self.generation_engine(tokenizer, exact=exact))
            if kept is not None:
                engine.decoder = None if tokenizer is None else TokenDecoder(tokenizer)
                engine.default_stop_token_ids = tuple(self._default_stop_token_ids(tokenizer))
            yield engine
            if keep:
                stack.pop_all()
                self._kept_engine = engine

    def _events(
        self,
        ids: Sequence[Sequence[int]],
        config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        exact: bool,
    ) -> Generator[Event, None, None]:
        with self._ready_to_generate(), self.generation_engine(tokenizer, exact=exact) as engine:
            add_prompts(engine, ids, config)
            while engine.has_work:
                for event in engine.step():
                    if isinstance(event, FinishedEvent):
                        refuse_nonfinite([(f"prompt {event.request_id}", event.completion)])
                    yield event

    def _encode(
        self,
        prompts: Sequence[str | Sequence[int] | Tensor],
        config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> tuple[list[list[int]], PreTrainedTokenizerBase | None]:
        """Token ids of prompts, and the tokenizer, if there is one or one is needed."""
        checked = as_prompts(prompts)
        self._refuse_critic()
        _check_tokenizer(tokenizer)
        if tokenizer is None and (config.stop or any(isinstance(prompt, str) for prompt in checked)):
            tokenizer = self._tokenizer()
        return [tokenizer.encode(each) if isinstance(each, str) and tokenizer else each for each in checked], tokenizer  # type: ignore[misc]

    @contextmanager
    def _ready_to_generate(self) -> Iterator[None]:
        """Context in evaluation mode with all parameters whole, which says what is wrong with non-finite logits."""
        was_training = self.training
        self.eval()
        try:
            with unsharded(self.network), nonfinite_explained(self.network, self.mesh):
                yield
        finally:
            self.train(was_training)

    def _refuse_critic(self) -> None:
        if self.config.is_critic:
            where = "" if self.source is None else f"{self.source}: "
            raise ConfigError(f"{where}a reward model or critic gives scores, not text; take a language model")

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.source is None:
            raise DataError(
                "text needs a tokenizer, and this model did not come from a checkpoint: pass generate(tokenizer=...)"
            )
        with fail_together(self.mesh):
            return load_tokenizer(self.tokenizer_source or self.source)

    def _default_stop_token_ids(self, tokenizer: PreTrainedTokenizerBase | None) -> Sequence[int]:
        ids = [] if self._raw_hf_config is None else end_of_sequence_ids(self._raw_hf_config, self.source)
        eos = getattr(tokenizer, "eos_token_id", None)
        return ids if eos is None or eos in ids else [*ids, eos]


def _close_at_exit(events: Generator[Event, None, None]) -> None:
    """Close a generator, if it still lives then, before an exit of the interpreter takes apart what closing needs."""
    reference = weakref.ref(events)

    def close() -> None:
        living = reference()
        if living is not None and inspect.getgeneratorstate(living) != inspect.GEN_RUNNING:
            living.close()

    weakref.finalize(events, close)


def _check_tokenizer(tokenizer: Any) -> None:
    if isinstance(tokenizer, str | Path):
        raise ConfigError(f"tokenizer must be a tokenizer, not a path ({tokenizer}); leave it out to take the model's")
