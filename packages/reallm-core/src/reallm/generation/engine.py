"""`GenerationEngine`: continues prompts with a network, all that are there at once, step by step."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch

from reallm.arguments import check_count, check_instance, check_items
from reallm.errors import ConfigError, DataError, counted
from reallm.generation.balance import Load
from reallm.generation.cache_manager import CacheManager
from reallm.generation.memory import default_kv_cache_tokens
from reallm.generation.model_runner import ModelRunner
from reallm.generation.page_manager import PageManager
from reallm.generation.partial_completion import PartialCompletion
from reallm.generation.prepacking import FEW_STEPS, prepacked_for_decoding
from reallm.generation.random import hash_key
from reallm.generation.replica import PendingTokens, make_replica, minimum
from reallm.generation.request import Completion, Event, FinishedEvent, FinishReason, Request
from reallm.generation.request_checks import check_exact_request, check_request
from reallm.generation.row_manager import RowManager
from reallm.generation.scheduler import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, Scheduler
from reallm.generation.step import Step
from reallm.generation.stores import make_store
from reallm.generation.text import TokenDecoder
from reallm.generation.weights_version import WeightsVersion
from reallm.model.exact import ExactMode
from reallm.model.products.prepacked import PrepackedWeight, settled_weights
from reallm.model.rope import keys_are_stale
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh


class GenerationEngine:
    """Continues prompts: requests come at any time, each step computes for all of them, finished ones leave at once.

        with model.generation_engine() as engine:
            engine.add(Request((1, 2, 3), GenerationConfig(max_new_tokens=64, n=4)))
            while engine.has_work:
                for event in engine.step():
                    ...

    The tokens of a request depend on its prompt, its configuration and its key, not on other requests, on when it came
    or on the limits below, up to numerics: sums of other sizes may differ in their last bits.

    When the weights have changed since the last step, prompts computed with the old ones are forgotten. Sequences that
    were being generated end as cancelled, and the step raises, unless they are to be recomputed. Changes that torch
    does not count are not noticed: writes through `parameter.data`, and steps of torch's fused optimizers, unless
    `TrainEngine` makes them; call `weights_changed` after those.

    Args:
        network: the network; during a step it is in evaluation mode.
        decoder: decodes tokens; None: completions have no text, and stop strings are refused.
        default_stop_token_ids: tokens that end sequences of requests whose configuration names none.
        max_batch_tokens: most tokens that a step computes; a longer prompt is computed in several steps.
        max_batch_sequences: most sequences that are computed at the same time.
        kv_cache_tokens: number of tokens for whose keys and values there is room. When it is used up, the newest
            sequences wait, and are computed again later. None: as many as fit in half of the free memory.
        prefix_sharing: whether blocks of 256 tokens with which several prompts begin are computed only once.
        recompute_after_update: whether sequences go on after a change of the weights. Tokens that they have stay, with
            their log-probabilities.
        mesh: the layout over which the network is parallelized: all its ranks make the same calls and get the same
            events. None: this process holds the whole network.
        exact: whether log-probabilities are those of `token_logprobs(exact=True)`, bit for bit; see `model.exact`.

    Raises:
        ConfigError: a limit is not a whole number of at least 1, or `exact` is not possible; says why.
    """

    def __init__(
        self,
        network: Transformer,
        *,
        decoder: TokenDecoder | None = None,
        default_stop_token_ids: Sequence[int] = (),
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_batch_sequences: int = MAX_BATCH_SEQUENCES,
        kv_cache_tokens: int | None = None,
        prefix_sharing: bool = True,
        recompute_after_update: bool = False,
        mesh: Mesh | None = None,
        exact: bool = False,
    ) -> None:
        self.decoder = decoder
        """Decodes tokens of requests that are added from now on."""
        self.default_stop_token_ids = tuple(check_items("default_stop_token_ids", default_stop_token_ids, int))
        """Tokens that end sequences of requests that are added from now on, unless they name some."""
        self._network, self._recomputes = network, recompute_after_update
        self._exact_mode = ExactMode(network) if exact else None
        if kv_cache_tokens is None:
            kv_cache_tokens = default_kv_cache_tokens(network)
        [kv_cache_tokens] = minimum(mesh, check_count("kv_cache_tokens", kv_cache_tokens))
        self._store = make_store(network, kv_cache_tokens, exact=exact)
        self._replica = make_replica(network, mesh)
        self._runner = ModelRunner(network, self._store, self._replica)
        [per_token] = minimum(mesh, self._store.can_share_prefixes)
        stale = partial(_keys_are_stale, network) if _depends_on_length(network) else None
        self._manager: CacheManager = (
            RowManager(kv_cache_tokens, prefix_sharing=prefix_sharing, per_token=bool(per_token), keys_are_stale=stale)
            if self._store.page_size is None
            else PageManager(
                kv_cache_tokens, prefix_sharing=prefix_sharing, keys_are_stale=stale, page_size=self._store.page_size
            )
        )
        self._scheduler = Scheduler(
            self._manager,
            max_batch_tokens=check_count("max_batch_tokens", max_batch_tokens),
            max_batch_sequences=check_count("max_batch_sequences", max_batch_sequences),
            keys_are_stale=stale,
            n_steps=self._replica.n_stages,
        )
        self._weights = WeightsVersion(network)
        self._n_requests = self._n_sequences = 0
        self._samples: dict[int, list[PartialCompletion]] = {}
        """Number of a sequence -> the samples that it becomes: all of a prompt until it is computed, then one."""
        self._sequences: dict[int, list[int]] = {}
        """Number of a request -> the numbers of its sequences that have not ended."""
        self._in_flight: deque[_StepInFlight] = deque()
        self._events: list[Event] = []
        """What has happened between two steps."""
        self._finished: list[FinishedEvent] = []
        """What `run` has to return."""
        self._most_new_tokens = 0
        self._prepacking: weakref.finalize | None = None
        self._prepacked: Sequence[PrepackedWeight] = []
        self._are_settled = False
        """Whether a whole pass has looked that they are those of the weights since these have changed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def has_work(self) -> bool:
        """Whether a step has something to compute or to tell."""
        return self._scheduler.has_work or bool(self._events)

    @property
    def is_exact(self) -> bool:
        """Whether log-probabilities are exact."""
        return self._exact_mode is not None

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a prompt and its completion for which the cache has room."""
        return self._manager.longest_sequence

    @property
    def load(self) -> Load:
        """What there is to do, and the room that is left."""
        running = {*self._scheduler.running_ids}
        samples = [each for of_sequence in self._samples.values() for each in of_sequence]
        waiting = [each for number, each in self._samples.items() if number not in running]
        n_waiting = len(samples) - sum(number in running for number in self._samples)
        return Load(
            len(samples),
            n_waiting,
            self._scheduler.max_sequences - len(samples),
            self._manager.n_free_tokens - sum(each[0].n_tokens * len(each) for each in waiting),
        )

    def add(self, request: Request, *, name: str = "the prompt") -> int:
        """Let a request wait for the next steps.

        Args:
            request: the request.
            name: what errors call its prompt: `prompt 3`.

        Returns:
            Its number, counting up from 0.

        Raises:
            DataError: the prompt is empty, has a token outside of the vocabulary, or may outgrow learned positions or
                the cache.
            ConfigError: stop strings without a decoder.
        """
        self.check(request, name)
        self._replica.note(request)
        request_id, config = self._n_requests, request.config
        key = hash_key(request.key)
        stop_token_ids = self.default_stop_token_ids if config.stop_token_ids is None else config.stop_token_ids
        samples = [
            PartialCompletion(request_id, request, number, key=key, stop_token_ids=stop_token_ids, decoder=self.decoder)
            for number in range(config.n)
        ]
        self._n_requests += 1
        if config.max_new_tokens == 0:
            self._events += [each.finish() for each in samples]
            return request_id
        self._scheduler.add(self._n_sequences, request.prompt_ids)
        self._samples[self._n_sequences] = samples
        self._sequences[request_id] = [self._n_sequences]
        self._n_sequences += config.n
        self._most_new_tokens = max(self._most_new_tokens, config.max_new_tokens)
        return request_id

    def check(self, request: Request, name: str = "the prompt") -> None:
        """Raise what `add` would raise."""
        check_instance("request", request, Request, "write Request(token_ids, GenerationConfig(...))")
        check_request(self._network.config, request, name, has_decoder=self.decoder is not None)
        if self._exact_mode is not None:
            check_exact_request(self._network.config, request, name)
        self._check_room(request, name)

    def cancel(self, request_id: int) -> None:
        """End all samples of a request that have not ended; the next step returns their events."""
        self._replica.note(request_id)
        self._cancel(request_id)

    def step(self) -> list[Event]:
        """Compute one forward pass, and sample the next tokens; returns what has happened since the step before.

        In a pipeline, as many steps are in flight as there are stages: the tokens are those of an earlier step.
        A sample ends when its logits are not finite, and its completion says so: `is_finite`.

        Raises:
            ConfigError: the weights have changed while sequences were being generated.
        """
        self._replica.compare_calls()
        if self._weights.has_changed():
            self._forget_weights()
        events, self._events = self._events, []
        try:
            step = self._scheduler.schedule()
            if step.sequences:
                with self._exact_mode or nullcontext():
                    self._start(step)
            if self._in_flight and (not step.sequences or len(self._in_flight) == self._replica.n_stages):
                self._finish(self._in_flight.popleft(), events)
        except BaseException:  # an interrupt too: nobody knows what is in the cache
            self._events = events
            self._in_flight.clear()
            self._scheduler.forget_cache()
            raise
        return events

    def run(self) -> list[Completion]:
        """Step until nothing is left to do; returns the completions by request, then by sample.

        After an error or an interrupt, another call goes on; it returns the earlier completions too.

        Raises:
            ConfigError: as for `step`.
        """
        while self.has_work:
            self._finished += [event for event in self.step() if isinstance(event, FinishedEvent)]
        finished, self._finished = self._finished, []
        return [event.completion for event in sorted(finished, key=lambda event: (event.request_id, event.sample))]

    def weights_changed(self) -> None:
        """Forget what was computed with the weights as they were; a step does it itself when it notices.

        Raises:
            ConfigError: sequences were being generated. They end as cancelled.
        """
        self._forget_weights()

    def close(self) -> None:
        """End all samples that have not ended, without events, and give back all memory."""
        while self._in_flight:
            self._finish(self._in_flight.popleft(), self._events)
        for request_id in [*self._sequences]:
            self._cancel(request_id)
        self._events.clear()
        self._finished.clear()
        self._scheduler.forget_cache()
        self._runner.close()
        if self._prepacking is not None:
            self._prepacking()
            self._prepacking, self._prepacked = None, []

    # ------------------------------------------------------------------ private helpers

    def _forget_weights(self) -> None:
        while self._in_flight:
            self._finish(self._in_flight.popleft(), self._events)
        begun = {samples[0].request_id for samples in self._samples.values() if samples[0].completion.token_ids}
        requests = set() if self._recomputes else begun
        for request_id in sorted(requests):
            self._cancel(request_id)
        self._scheduler.forget_cache()
        for weight in self._prepacked:
            weight.drop()
        self._are_settled = False
        if requests:
            raise ConfigError(
                f"the weights have changed in the middle of {counted(len(requests), 'request')}, now cancelled; let "
                "requests end before an update, or make the engine with recompute_after_update=True"
            )

    def _cancel(self, request_id: int) -> None:
        for sequence_id in [*self._sequences.get(request_id, ())]:
            self._scheduler.remove(sequence_id)
            self._events += self._end(sequence_id, "cancelled")

    def _check_room(self, request: Request, name: str) -> None:
        n_prompt, max_new_tokens = len(request.prompt_ids), request.config.max_new_tokens
        n_tokens = n_prompt + max_new_tokens - 1  # the last new token is never read
        if n_tokens > self._manager.longest_sequence:
            raise DataError(
                f"{name} has {counted(n_prompt, 'token')}, and with max_new_tokens={max_new_tokens} the cache must "
                f"hold {n_tokens:,}; with kv_cache_tokens={self._manager.n_tokens} it holds at most "
                f"{self._manager.longest_sequence:,} of a sequence; raise kv_cache_tokens, or lower max_new_tokens"
            )

    def _prepack(self) -> None:
        """Prepack weights, once a request is there for which it is worth the time."""
        if self._prepacking is None and self._most_new_tokens >= FEW_STEPS:
            stack = ExitStack()
            self._prepacked = stack.enter_context(prepacked_for_decoding(self._network))
            self._are_settled = False
            self._prepacking = weakref.finalize(self, stack.close)

    def _start(self, step: Step) -> None:
        """Compute a step, and sample; all samples of a prompt draw their first token from its logits."""
        was_training = self._network.training
        if was_training:
            self._network.eval()
        try:
            self._prepack()
            with settled_weights(self._prepacked if self._are_settled else []):
                logits = self._runner.run(step, [self._scheduler.new_tokens(scheduled) for scheduled in step.sequences])
        finally:
            if was_training:
                self._network.train()
        self._scheduler.computed(step)
        sequence_ids = [scheduled.sequence_id for scheduled in step.sequences if scheduled.samples]
        if not sequence_ids:
            return
        self._are_settled = True
        samples = [(sequence_id, each) for sequence_id in sequence_ids for each in self._samples[sequence_id]]
        if logits is not None and len(samples) > len(sequence_ids):
            rows = [row for row, sequence_id in enumerate(sequence_ids) for _ in self._samples[sequence_id]]
            logits = logits[torch.tensor(rows, device=logits.device)]
        tokens = self._replica.sample(logits, [each for _, each in samples])
        self._in_flight.append(_StepInFlight(sequence_ids, samples, tokens))

    def _finish(self, step: _StepInFlight, events: list[Event]) -> None:
        """Append the tokens that a step has sampled, and to `events` what happens."""
        tokens = step.tokens()
        if not self._in_flight:
            self._replica.finish()
        for (sequence_id, each), token in zip(step.samples, tokens, strict=True):
            # not if it was cancelled meanwhile, or has a token of which an interrupt kept the scheduler from learning
            if not each.has_ended and each.n_tokens == self._scheduler.n_tokens(sequence_id):
                events.append(each.append(token))
        for sequence_id in step.sequence_ids:
            if sequence_id in self._samples:
                events += self._go_on(sequence_id)

    def _go_on(self, sequence_id: int) -> list[Event]:
        """Schedule the next token of each sample of a sequence, or end it; returns the events of those that end."""
        samples = self._samples[sequence_id]
        going_on = [each for each in samples if not each.has_ended]
        if not going_on:
            if samples[0].completion.is_finite:
                self._scheduler.remove(sequence_id)
            elif (place := self._scheduler.discard(sequence_id)) is not None:
                self._store.erase(place)
            return self._end(sequence_id)
        if len(samples) == 1:
            self._scheduler.append(sequence_id, samples[0].completion.token_ids[-1])
            return []
        prompt_ids = going_on[0].completion.prompt_ids
        numbers = range(sequence_id, sequence_id + len(going_on))
        for number, each in zip(numbers, going_on, strict=True):
            self._samples[number] = [each]
            token = each.completion.token_ids[-1]
            if number == sequence_id:
                self._scheduler.append(number, token)
            else:
                self._scheduler.add(number, [*prompt_ids, token], parent_id=sequence_id, n_shared=len(prompt_ids))
        self._sequences[going_on[0].request_id] = [*numbers]
        return [each.finish() for each in samples if each.has_ended]

    def _end(self, sequence_id: int, reason: FinishReason | None = None) -> list[Event]:
        """End the samples of a sequence that is no longer scheduled; returns their events."""
        samples = self._samples.pop(sequence_id)
        request_id = samples[0].request_id
        self._sequences[request_id].remove(sequence_id)
        if not self._sequences[request_id]:
            del self._sequences[request_id]
        return [each.finish(reason) for each in samples]


@dataclass(frozen=True)
class _StepInFlight:
    """A step that was computed, or is being computed by later stages of a pipeline."""

    sequence_ids: list[int]
    """The sequences that it samples."""
    samples: list[tuple[int, PartialCompletion]]
    """The samples that get a token, each with the number of its sequence."""
    tokens: PendingTokens


def _depends_on_length(network: Transformer) -> bool:
    """Whether the rotation of keys depends on the length of the sequence."""
    return any(rope.depends_on_length for rope in network.config.distinct_ropes)


def _keys_are_stale(network: Transformer, n_cached: int, n_tokens: int) -> bool:
    return keys_are_stale(network.config, [n_cached], [n_tokens])
