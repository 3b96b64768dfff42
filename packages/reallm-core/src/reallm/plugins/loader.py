"""Loads a plugin and collects its offers. Errors are recorded as failures and affect no other plugin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from reallm import hookspecs
from reallm.deprecation import HookDeprecationWarning, collect_deprecations, show
from reallm.errors import did_you_mean
from reallm.plugins.finder import GROUP, Plugin
from reallm.plugins.foreign_errors import describe_error, missing_module, shortened, type_name
from reallm.plugins.kinds import KINDS, Kind
from reallm.references import resolve


@dataclass(frozen=True)
class Offer:
    """One thing that a plugin offers; a family with several names is one offer for each."""

    kind: str
    name: str
    value: Any
    plugin: Plugin


@dataclass(frozen=True)
class Loaded:
    """The result of loading a plugin. One with `failures` may still have offers from its other hooks.

    `notes` are deprecations.
    """

    plugin: Plugin
    offers: tuple[Offer, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _LoadError(Exception):
    """Raised with the reason, in one line, that a plugin or one of its hooks cannot be used."""


def load(plugin: Plugin) -> Loaded:
    """Import a plugin, check it, and call its hooks. Never raises: errors are in `failures`."""
    with collect_deprecations() as collected:
        loaded = _load(plugin)
    try:
        for warning in collected:
            show(HookDeprecationWarning(f"{plugin}: {warning.message}", warning.filename, warning.lineno))
    except HookDeprecationWarning as error:  # the user has turned warnings into errors
        return Loaded(plugin, failures=(str(error),))
    return replace(loaded, notes=tuple(map(str, collected)))


def _load(plugin: Plugin) -> Loaded:
    try:
        module = _import(plugin)
        _check_api(module, plugin)
        hooks = _register(module, plugin)
    except _LoadError as failure:
        return Loaded(plugin, failures=(str(failure),))
    except Exception as error:  # even attribute access may run the plugin's code
        return Loaded(plugin, failures=(f"cannot be loaded: {describe_error(error, plugin)}",))

    offers: list[Offer] = []
    failures: list[str] = []
    failed_kinds: list[Kind] = []  # their promises are not reported as broken a second time
    for kind, hook in hooks.items():
        try:
            offers += _call(hook, kind, plugin)
        except _LoadError as failure:
            failures.append(f"{kind.hook} {failure}")
            failed_kinds.append(kind)
    broken = list(_broken_promises(plugin, offers, failed_kinds))
    if broken:
        # Its other offers are dropped too: otherwise the result of a look-up would depend on earlier ones.
        return Loaded(plugin, failures=(*failures, *broken))
    return Loaded(plugin, tuple(offer for offer in offers if _is_allowed(offer)), tuple(failures))


def _import(plugin: Plugin) -> Any:
    try:
        return EntryPoint(plugin.entries[0], plugin.value, GROUP).load()
    except ModuleNotFoundError as error:
        raise _LoadError(missing_module(error, plugin)) from error
    except (Exception, SystemExit) as error:  # the plugin's code must not end this program
        raise _LoadError(f"cannot be imported: {describe_error(error, plugin)}") from error


def _check_api(module: Any, plugin: Plugin) -> None:
    """Check that the major version is ours and the minor not newer; a plugin that states no version is accepted."""
    stated = getattr(module, "REALLM_HOOK_API", None)
    if stated is None:
        return
    if not (isinstance(stated, str) and re.fullmatch(r"\d+\.\d+", stated)):
        raise _LoadError(f"REALLM_HOOK_API = {stated!r} is not a version such as '1.0'")
    major, minor = map(int, stated.split("."))
    if (major, minor) > hookspecs.HOOK_API:
        outdated = "reallm-core"
    elif major < hookspecs.HOOK_API[0]:
        outdated = plugin.distribution
    else:
        return
    ours = "{}.{}".format(*hookspecs.HOOK_API)
    raise _LoadError(f"made for hook API {stated}, but reallm-core has {ours}; pip install --upgrade {outdated}")


def _register(module: Any, plugin: Plugin) -> dict[Kind, pluggy.HookCaller]:
    """The hooks that the plugin implements, validated against their specifications.

    Each plugin has a separate manager, so that errors and results belong to that plugin only.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, plugin.label)
    except pluggy.PluginValidationError as error:
        # The first line of pluggy's message repeats the plugin's label.
        detail = shortened(str(error).partition("\n")[2])
        raise _LoadError(f"a hook does not fit its specification: {detail}; hooks take no arguments") from error

    kinds = {kind.hook: kind for kind in KINDS.values()}
    hooks = {hook.name: hook for hook in manager.get_hookcallers(module) or ()}
    for name, hook in hooks.items():
        if name not in kinds and not all(implementation.optionalhook for implementation in hook.get_hookimpls()):
            raise _LoadError(f"there is no hook '{name}'{did_you_mean(name, kinds)}")
    for name in kinds:
        if name not in hooks and callable(getattr(module, name, None)):
            raise _LoadError(f"the function {name} is not marked with @hookimpl")
    if not hooks:
        raise _LoadError(f"implements no hook; there are {', '.join(kinds)}")
    return {kind: hooks[name] for name, kind in kinds.items() if name in hooks}


def _call(hook: pluggy.HookCaller, kind: Kind, plugin: Plugin) -> list[Offer]:
    offers: dict[str, Offer] = {}
    try:
        # The functions are called directly, since a hook caller silently drops a result of None.
        for implementation in hook.get_hookimpls():
            for name, value in _named_values(kind, implementation.function()):
                if name in offers:
                    raise _LoadError(f"offers '{name}' twice")
                offers[name] = Offer(kind.name, name, value, plugin)
    except _LoadError:
        raise
    except (Exception, SystemExit) as error:  # the plugin's code may raise anything
        raise _LoadError(f"raised {describe_error(error, plugin)}") from error
    return list(offers.values())


def _named_values(kind: Kind, returned: Any) -> Iterator[tuple[str, Any]]:
    """Validated (name, value) pairs of a hook's result."""
    if not kind.own_names:
        if not isinstance(returned, Mapping):
            raise _LoadError(f"returned {type_name(returned)}, not a mapping from names to {kind.type_name}")
        for name, value in returned.items():
            _check_value(kind, value, f"the value of '{name}'")
            yield _checked_name(name), value
        return
    if isinstance(returned, Mapping | str) or not isinstance(returned, Iterable):
        raise _LoadError(f"returned {type_name(returned)}, not a list of {kind.type_name}")
    for value in returned:
        _check_value(kind, value, "an element")
        if isinstance(value.names, str):
            raise _LoadError(f"gave names={value.names!r}, which is not a tuple; write names=({value.names!r},)")
        for name in value.names:
            yield _checked_name(name), value


def _check_value(kind: Kind, value: Any, what: str) -> None:
    if not isinstance(value, resolve(kind.value_type)):
        raise _LoadError(f"returned a wrong type: {what} is {type_name(value)}, not {kind.type_name}")


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name or name != name.strip():
        raise _LoadError(f"gave the name {name!r}, which is not a non-empty string without surrounding blanks")
    return name


def _broken_promises(plugin: Plugin, offers: Iterable[Offer], failed_kinds: Iterable[Kind]) -> Iterator[str]:
    """A line for each promise without an offer and, unless the plugin is open, for each offer without a promise."""
    offered = {(offer.kind, offer.name) for offer in offers}
    excused = {kind.name for kind in failed_kinds}
    for kind, name in plugin.promises:
        if (kind, name) not in offered and kind not in excused:
            yield f"the entry point '{kind}.{name}' promises the {kind} '{name}', which no hook returns"
    promised = {*plugin.promises, *plugin.blocked_promises}
    if len(promised) == len(plugin.entries):  # every entry point is a promise
        for kind, name in sorted(offered - promised):
            yield f'offers the {kind} \'{name}\' without an entry point; add "{kind}.{name}" = "{plugin.value}"'


def _is_allowed(offer: Offer) -> bool:
    """Whether an active entry point covers this offer."""
    plugin, what = offer.plugin, (offer.kind, offer.name)
    return what in plugin.promises or (plugin.is_open and what not in plugin.blocked_promises)
