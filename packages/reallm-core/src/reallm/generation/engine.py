"""`GenerationEngine`: continues prompts with a network, all that are there at once, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch

from reallm.arguments import check_count
from reallm.errors import DataError, counted
from reallm.generation.balance import Load
from reallm.generation.memory import default_kv_cache_tokens
from reallm.generation.model_runner import ModelRunner
from reallm.generation.partial_completion import PartialCompletion
from reallm.generation.prepacking import FEW_STEPS, prepacked_for_decoding
from reallm.generation.random import hash_key
from reallm.generation.replica import PendingTokens, make_replica, minimum
from reallm.generation.request import Completion, Event, FinishedEvent, FinishReason, Request
from reallm.generation.request_checks import check_exact_request, check_request
from reallm.generation.row_manager import RowManager
from reallm.generation.row_store import RowStore
from reallm.generation.scheduler import Scheduler
from reallm.generation.step import Step
from reallm.generation.text import TokenDecoder
from reallm.model.config import ReaLModelConfig
from reallm.model.exact import ExactMode
from reallm.model.rope import keys_are_stale, longest_with_fixed_frequencies
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh


class GenerationEngine:
    """Continues prompts: requests come at any time, each step computes for all of them, finished ones leave at once.

        engine = model.generation_engine()
        engine.add(Request((1, 2, 3), GenerationConfig(max_new_tokens=64, n=4)))
        while engine.has_work:
            for event in engine.step():
                ...

    The tokens of a request depend on its prompt, its configuration and its key, not on the other requests, on when it
    came, or on the limits below, up to numerics: sums in another order differ in their last bits.

    Args:
        network: the network; it is in evaluation mode during a step.
        decoder: decodes tokens; without one completions have no text, and stop strings are refused.
        default_stop_token_ids: tokens that end sequences of requests that name none.
        max_batch_tokens: most tokens that a step computes. A long prompt is computed in parts of at most this size.
        max_batch_sequences: most sequences that are computed at the same time.
        kv_cache_tokens: number of tokens for whose keys and values there is room. When it is used up, the newest
            sequences wait, and are computed again later. None: as many as half of the free memory holds.
        prefix_sharing: whether prompts that begin with the same tokens are computed only once, in blocks of 256.
        mesh: the layout over which the network is parallelized: all its ranks make the same calls and get the same
            events. None: this process holds the whole network.
        exact: whether log-probabilities are those of `token_logprobs(exact=True)`, bit for bit; see `model.exact`.

    Raises:
        ConfigError: `exact` is not possible; says why.
    """

    def __init__(
        self,
        network: Transformer,
        *,
        decoder: TokenDecoder | None = None,
        default_stop_token_ids: Sequence[int] = (),
        max_batch_tokens: int = 2048,
        max_batch_sequences: int = 256,
        kv_cache_tokens: int | None = None,
        prefix_sharing: bool = True,
        mesh: Mesh | None = None,
        exact: bool = False,
    ) -> None:
        self._network, self._decoder = network, decoder
        self._exact_mode = ExactMode(network) if exact else None
        self._default_stop_token_ids = tuple(default_stop_token_ids)
        self._store = RowStore.of(network)
        self._replica = make_replica(network, mesh)
        self._runner = ModelRunner(network, self._store, self._replica)
        config = network.config
        depends_on_length = any(rope.depends_on_length for rope in config.distinct_ropes)
        n_tokens, per_token = minimum(
            mesh,
            default_kv_cache_tokens(network) if kv_cache_tokens is None else kv_cache_tokens,
            self._store.can_share_prefixes,
        )
        self._manager = RowManager(
            n_tokens,
            prefix_sharing=prefix_sharing,
            per_token=bool(per_token),
            longest_shareable=longest_with_fixed_frequencies(config),
        )
        self._scheduler = Scheduler(
            self._manager,
            max_batch_tokens=check_count("max_batch_tokens", max_batch_tokens),
            max_batch_sequences=check_count("max_batch_sequences", max_batch_sequences),
            keys_are_stale=partial(_keys_are_stale, config) if depends_on_length else None,
            n_steps=self._replica.n_stages,
        )
        self._n_requests = self._n_sequences = 0
        self._samples: dict[int, PartialCompletion] = {}  # number of a sequence -> the sample, until it has ended
        self._of_request: dict[int, list[int]] = {}  # number of a request -> its sequences that have not ended
        self._unforked: dict[int, list[int]] = {}  # first sequence of a prompt -> the others, until it is computed
        self._in_flight: deque[_StepInFlight] = deque()
        self._events: list[Event] = []  # of samples that have ended between two steps
        self._most_new_tokens = 0  # of all requests so far
        self._prepacking: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do or to tell."""
        return self._scheduler.has_work or bool(self._events)

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a prompt and its completion that the cache has room for."""
        return self._manager.longest_sequence

    @property
    def load(self) -> Load:
        """What there is to do, and the room that is left."""
        running = set(self._scheduler.running_ids)
        waiting = [each for sequence_id, each in self._samples.items() if sequence_id not in running]
        return Load(
            len(self._samples),
            len(waiting),
            self._scheduler.max_sequences - len(self._samples),
            self._manager.n_free_tokens - sum(each.n_tokens for each in waiting),
        )

    def add(self, request: Request, *, name: str = "the prompt") -> int:
        """Let a request wait for the next steps.

        Args:
            request: the request.
            name: what errors call its prompt: `prompt 3`.

        Returns:
            Its number, counted up from 0.

        Raises:
            DataError: the prompt is empty, has a token outside of the vocabulary, or may outgrow learned positions or
                the cache.
            ConfigError: stop strings without a decoder.
        """
        self.check(request, name)
        self._replica.note(request)
        config, request_id = request.config, self._n_requests
        stop_token_ids = self._default_stop_token_ids if config.stop_token_ids is None else config.stop_token_ids
        key = hash_key(request.key)
        first, *others = range(self._n_sequences, self._n_sequences + config.n)
        for sample_index, sequence_id in enumerate((first, *others)):
            self._samples[sequence_id] = PartialCompletion(
                request_id,
                request,
                sample_index,
                key=key,
                stop_token_ids=tuple(stop_token_ids),
                decoder=self._decoder,
            )
        self._of_request[request_id] = [first, *others]
        self._most_new_tokens = max(self._most_new_tokens, config.max_new_tokens)
        self._n_requests += 1
        self._n_sequences += config.n
        if config.max_new_tokens == 0:
            for sequence_id in (first, *others):
                self._events.append(self._end(sequence_id))
        else:
            self._scheduler.add(first, request.prompt_ids)
            self._unforked[first] = others
        return request_id

    def check(self, request: Request, name: str = "the prompt") -> None:
        """Raise what `add` would raise."""
        check_request(self._network.config, request, name, has_decoder=self._decoder is not None)
        if self._exact_mode is not None:
            check_exact_request(self._network.config, request, name)
        self._check_room(request, name)

    def cancel(self, request_id: int) -> None:
        """End the samples of a request that have not ended; the next step has their events."""
        self._replica.note(request_id)
        self._cancel(request_id)

    def step(self) -> list[Event]:
        """Compute one forward pass, and sample the next tokens; returns what has happened since the step before.

        In a pipeline, as many steps are in flight as there are stages: the tokens are those of an earlier step.
        A sample whose logits are not finite ends, and its completion says so: `is_finite`.
        """
        self._replica.compare_calls()
        events, self._events = self._events, []
        try:
            step = self._scheduler.schedule()
            if step.sequences:
                with self._exact_mode or nullcontext():
                    self._start(step)
            if self._in_flight and (not step.sequences or len(self._in_flight) == self._replica.n_stages):
                events += self._finish(self._in_flight.popleft())
        except BaseException:  # an interrupt too: nobody knows what was computed
            self._in_flight.clear()
            self._scheduler.forget_cache()
            raise
        return events

    def run(self) -> list[Completion]:
        """Step until nothing is left to do; returns the completions by request, then by sample."""
        finished = []
        while self.has_work:
            finished += [event for event in self.step() if isinstance(event, FinishedEvent)]
        return [event.completion for event in sorted(finished, key=lambda event: (event.request_id, event.sample))]

    def close(self) -> None:
        """End all samples that have not ended, without events, and free the memory of the cache."""
        while self._in_flight:
            self._finish(self._in_flight.popleft())
        for request_id in [*self._of_request]:
            self._cancel(request_id)
        self._events.clear()
        self._scheduler.forget_cache()
        self._store.close()
        if self._prepacking is not None:
            self._prepacking.close()
            self._prepacking = None

    # ------------------------------------------------------------------ private helpers

    def _cancel(self, request_id: int) -> None:
        for sequence_id in [*self._of_request.get(request_id, ())]:
            self._events.append(self._end(sequence_id, "cancelled"))

    def _check_room(self, request: Request, name: str) -> None:
        n_tokens = len(request.prompt_ids) + request.config.max_new_tokens - 1  # the last new token is never read
        if n_tokens > self._manager.longest_sequence:
            raise DataError(
                f"{name} has {counted(len(request.prompt_ids), 'token')}, and with "
                f"max_new_tokens={request.config.max_new_tokens} it may need a cache of {n_tokens:,} tokens, but "
                f"kv_cache_tokens={self._manager.n_tokens} has room for at most {self._manager.longest_sequence:,} of "
                "one sequence; raise kv_cache_tokens, or lower max_new_tokens"
            )

    def _prepack(self) -> None:
        """Prepack weights, once there is a request for which it is worth the time."""
        if self._prepacking is None and self._most_new_tokens >= FEW_STEPS:
            self._prepacking = ExitStack()
            self._prepacking.enter_context(prepacked_for_decoding(self._network, self._most_new_tokens))

    def _start(self, step: Step) -> None:
        """Compute a step, and sample; all samples of a prompt draw their first token from its logits."""
        was_training = self._network.training
        if was_training:
            self._network.eval()
        try:
            self._prepack()
            logits = self._runner.run(step, [self._scheduler.new_tokens(scheduled) for scheduled in step.sequences])
        finally:
            if was_training:
                self._network.train()
        self._scheduler.computed(step)
        sequence_ids = [scheduled.sequence_id for scheduled in step.sequences if scheduled.samples]
        drawn = [
            (row, each) for row, first in enumerate(sequence_ids) for each in (first, *self._unforked.get(first, ()))
        ]
        if logits is not None and len(drawn) > len(sequence_ids):
            logits = logits[torch.tensor([row for row, _ in drawn], device=logits.device)]
        if drawn:
            samples = [self._samples[sequence_id] for _, sequence_id in drawn]
            self._in_flight.append(_StepInFlight(sequence_ids, samples, self._replica.sample(logits, samples)))

    def _finish(self, step: _StepInFlight) -> list[Event]:
        """Append the tokens that a step has sampled."""
        tokens = step.tokens()
        if not self._in_flight:
            self._replica.finish()
        events: list[Event] = [
            each.append(token)
            for each, token in zip(step.samples, tokens, strict=True)
            if not each.has_ended  # cancelled meanwhile
        ]
        sequence_ids = [sequence_id for sequence_id in step.sequence_ids if sequence_id in self._samples]
        for sequence_id in sequence_ids:
            if not self._samples[sequence_id].completion.is_finite:
                placement = self._scheduler.placement(sequence_id)
                self._scheduler.remove(sequence_id, discard=True)
                if placement is not None:
                    self._store.erase(placement)
        return events + self._go_on(sequence_ids)

    def _go_on(self, sequence_ids: Sequence[int]) -> list[Event]:
        """Schedule the next tokens of sequences that have not ended; returns the events of those that have."""
        ended = []
        for first in sequence_ids:
            for sequence_id in (first, *self._unforked.pop(first, ())):
                done = self._samples[sequence_id]
                if done.has_ended:
                    ended.append(sequence_id)
                elif sequence_id == first:
                    self._scheduler.append(first, done.completion.token_ids[-1])
                else:
                    prompt_ids = done.completion.prompt_ids
                    tokens = [*prompt_ids, *done.completion.token_ids]
                    self._scheduler.add(sequence_id, tokens, parent_id=first, n_shared=len(prompt_ids))
        return [self._end(sequence_id) for sequence_id in ended]

    def _end(self, sequence_id: int, reason: FinishReason | None = None) -> FinishedEvent:
        """End a sample."""
        sample = self._samples.pop(sequence_id)
        self._unforked.pop(sequence_id, None)
        self._scheduler.remove(sequence_id)
        sequence_ids = self._of_request[sample.request_id]
        sequence_ids.remove(sequence_id)
        if not sequence_ids:
            del self._of_request[sample.request_id]
        return sample.finish(reason)


@dataclass(frozen=True)
class _StepInFlight:
    """A step that was computed, or is being computed by later stages of a pipeline."""

    sequence_ids: list[int]
    """The sequences that it samples."""
    samples: list[PartialCompletion]
    """The samples that get a token; several of a sequence whose first token this is."""
    tokens: PendingTokens


def _keys_are_stale(config: ReaLModelConfig, n_cached: int, n_tokens: int) -> bool:
    return keys_are_stale(config, [n_cached], [n_tokens])
