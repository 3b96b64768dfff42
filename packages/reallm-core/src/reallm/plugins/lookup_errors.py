"""Errors of a look-up with no result, or with several: one line with the culprit and the remedy."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from reallm.errors import PluginError, UnknownNameError, nearest
from reallm.plugins.finder import DISABLE, Plan, Plugin, canonical
from reallm.plugins.kinds import KINDS
from reallm.plugins.known import install_hint, known_names, providers
from reallm.plugins.loader import Loaded


def conflict(kind: str, name: str, plugins: Sequence[Plugin], plan: Plan) -> PluginError:
    """The error for a name that several plugins offer; one of them can be disabled."""
    last = plugins[-1]
    entry = f"{kind}.{name}"
    disable = f"{last.distribution}[{entry}]" if entry in last.entries else last.distribution
    note = f" (nothing installed is called {_listed(plan.unknown_disabled)})" if plan.unknown_disabled else ""
    return PluginError(
        f"the {kind} '{name}' is offered by {' and by '.join(map(str, plugins))}; "
        f"uninstall one, or set {DISABLE}='{disable}'{note}"
    )


def failed(kind: str, name: str, loaded: Loaded) -> PluginError:
    """The error for a name whose plugin is broken."""
    return PluginError(f"the {kind} '{name}' is in {loaded.plugin}, which failed: {'; '.join(loaded.failures)}")


def blocked(kind: str, name: str, plugin: Plugin) -> PluginError:
    """The error for a name whose plugin is disabled."""
    return PluginError(f"the {kind} '{name}' is in {plugin}, which {DISABLE} blocks; remove it from there")


def unknown(kind: str | None, name: str, installed: Iterable[str], listing: Iterable[Loaded]) -> UnknownNameError:
    """The error for an unknown name: gives similar names, what to install, and what is installed, failed or blocked.

    Args:
        kind: kind of the name; None if it may be of any kind.
        installed: the names of that kind that can be used.
        listing: all plugins.
    """
    installed, listing = list(installed), list(listing)
    plural = KINDS[kind].plural if kind else "names"
    facts = [f"installed {plural}: {_listed(installed) or 'none'}"]
    if not installed and not providers(kind, name):
        facts += [f"pip install {' or '.join(having)} has {plural}"] if (having := providers(kind)) else []
    for loaded in listing:
        if loaded.failures:
            facts.append(f"failed: {loaded.plugin}: {'; '.join(loaded.failures)}")
        if loaded.plugin.blocked:
            facts.append(f"blocked by {DISABLE}: {loaded.plugin.distribution}[{','.join(loaded.plugin.blocked)}]")
    what = f"the {kind} '{name}'" if kind else f"anything named '{name}'"
    advice = _advice(kind, name, installed, {canonical(loaded.plugin.distribution) for loaded in listing})
    return UnknownNameError(f"no installed plugin offers {what}{advice} ({'; '.join(facts)})")


def _advice(kind: str | None, name: str, installed: Sequence[str], distributions: Container[str]) -> str:
    """Advice what to install if known; else the most similar name; else a guess by the naming convention."""
    for distribution in providers(kind, name):
        return f"; pip install {'--upgrade ' if distribution in distributions else ''}{distribution}"
    names = [*installed, *known_names(kind)]
    near = nearest(name, names) or nearest(name.lower(), names)
    if near is None:
        hint = install_hint(kind, name) if kind else ""
        return f"; {hint}" if hint else ""
    lacking = [] if near in installed else providers(kind, near)
    return f"; did you mean '{near}'?" + (f" pip install {lacking[0]}" if lacking else "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
