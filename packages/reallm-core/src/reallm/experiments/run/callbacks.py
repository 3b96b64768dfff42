"""Calls the callbacks of a run on all ranks, and agrees on what they ask for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist

from reallm.errors import PluginError, did_you_mean
from reallm.experiments.run.run_view import Requests, RunState, View
from reallm.parallel.object_collectives import all_gather_json
from reallm.plugins import registry
from reallm.plugins.foreign_errors import describe_error
from reallm.plugins.loader import Offer
from reallm.specs import Callback

HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The methods that a run calls at its points."""


class CallbackError(PluginError):
    """A callback has raised, or cannot be used."""


class Callbacks:
    """The callbacks of a run, constructed. All ranks make the same calls, and what fails on one rank fails on all.

    Args:
        offers: the callbacks by name, from `callback_offers`.
        run: the run that they see.

    Raises:
        CallbackError: a callback cannot be constructed, or has a method that is never called.
    """

    def __init__(self, offers: Mapping[str, Offer], run: RunState) -> None:
        self._offers, self._run = offers, run
        self.requests = Requests()
        self._views = {name: View(name, run, self.requests) for name in offers}
        self._callbacks: dict[str, Any] = {}
        self._have_failed = False
        error: CallbackError | None = None
        try:
            for name in offers:
                self._callbacks[name] = self._construct(name)
        except CallbackError as raised:
            error = raised
        if offers:
            self._agree(error)

    @property
    def watch_saves(self) -> bool:
        """Whether a callback is called when a checkpoint is written."""
        return any(_overrides(callback, "on_save") for callback in self._callbacks.values())

    def call(self, hook: str, step: int, metrics: Mapping[str, float], *arguments: Any) -> None:
        """Call a method of all callbacks; all ranks have the same `requests` afterwards.

        Args:
            hook: name of the method.
            step: optimizer steps done.
            metrics: the last value of each metric.
            *arguments: arguments of the method after the view of the run.

        Raises:
            CallbackError: a callback has raised, on any rank. No callback is called again.
        """
        if not self._callbacks or self._have_failed:
            return
        self._run.step, self._run.metrics = step, metrics
        error: CallbackError | None = None
        for name, method in self._methods(hook).items():
            try:
                method(self._views[name], *arguments)
            except Exception as raised:  # a plugin's code may raise anything, and a save must follow
                error = self._error(name, f"failed in {hook}", raised)
                break
        self._agree(error)

    def _agree(self, error: CallbackError | None) -> None:
        requests, job = self.requests, self._run.job
        if not job.is_alone:
            local = [None if error is None else str(error), requests.stop, requests.save, requests.evaluate]
            assert dist.group.WORLD is not None
            by_rank = all_gather_json(local, dist.group.WORLD)
            failed = [(rank, text) for rank, (text, *_) in by_rank.items() if text is not None]
            if failed:
                rank, text = failed[0]
                error = CallbackError(f"rank {rank}: {text}" if rank else text)
            requests.stop = next((stop for _, stop, _, _ in by_rank.values() if stop is not None), None)
            requests.save = any(save for _, _, save, _ in by_rank.values())
            requests.evaluate = any(evaluate for *_, evaluate in by_rank.values())
        if error is not None:
            self._have_failed = True
            raise error

    def state(self) -> dict[str, Any]:
        """The state of each callback that has one, as JSON types.

        Raises:
            CallbackError: a callback has raised, or has returned something else, on any rank. After it, `state` leaves
                out what fails, and no other method is called.
        """
        found: dict[str, Any] = {}
        error: CallbackError | None = None
        for name, method in self._methods("state").items():
            try:
                found[name] = json.loads(json.dumps(method()))
            except Exception as raised:  # see `call`
                error = error or self._error(name, "failed in state", raised)
        if self._callbacks and not self._have_failed:  # after a failure the save goes on without this state
            self._agree(error)
        return found

    def load_state(self, states: Mapping[str, Any]) -> None:
        """Restore saved states; those of callbacks that the run no longer has are dropped.

        Raises:
            CallbackError: a callback has raised, on any rank.
        """
        error: CallbackError | None = None
        for name, method in self._methods("load_state").items():
            if name not in states:
                continue
            try:
                method(states[name])
            except Exception as raised:  # see `call`
                error = self._error(name, "failed in load_state", raised)
                break
        if self._callbacks:
            self._agree(error)

    def _methods(self, name: str) -> dict[str, Any]:
        """The method of that name of each callback that has it."""
        found = {callback: getattr(self._callbacks[callback], name, None) for callback in self._callbacks}
        return {callback: method for callback, method in found.items() if method is not None}

    def _construct(self, name: str) -> Any:
        try:
            callback = self._offers[name].value.callback_class()()
            methods = [method for method in dir(callback) if method.startswith("on_")]
        except Exception as raised:  # see `call`
            raise self._error(name, "cannot be constructed", raised) from raised
        for method in methods:
            if method not in HOOKS:
                raise CallbackError(
                    f"{self._who(name)} has a method '{method}', which is never called{did_you_mean(method, HOOKS)}; "
                    f"there are {', '.join(HOOKS)}"
                )
        return callback

    def _who(self, name: str) -> str:
        return f"callback '{name}' of {self._offers[name].plugin.release}"

    def _error(self, name: str, what: str, raised: Exception) -> CallbackError:
        return CallbackError(f"{self._who(name)} {what}: {describe_error(raised, self._offers[name].plugin)}")


def callback_offers(names: Iterable[str]) -> dict[str, Offer]:
    """What plugins offer as the callbacks named in a configuration.

    Raises:
        PluginError: no installed plugin offers a callback of that name.
    """
    return {name: registry.registry().offer("callback", name) for name in dict.fromkeys(names)}


def _overrides(callback: Any, hook: str) -> bool:
    """Whether a callback has a method of its own, not that of the base class `Callback`, which does nothing."""
    method = getattr(type(callback), hook, None)
    return method is not None and method is not getattr(Callback, hook)
