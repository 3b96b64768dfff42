"""Names an algorithm and its distribution in the errors of its graph and its interfaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reallm.errors import PluginError, ReallmError
from reallm.plugins import registry
from reallm.plugins.foreign_errors import describe_error
from reallm.plugins.loader import Offer
from reallm.specs import Algorithm


def offer_of(algorithm: Algorithm) -> Offer | None:
    """The offer of the plugin that an algorithm came from; None if it did not come from a plugin."""
    return registry.registry().owner(algorithm)


def owner_of(algorithm: Algorithm) -> str:
    """`algorithm 'ppo' of reallm-ppo 0.1`; empty if it did not come from a plugin."""
    offer = offer_of(algorithm)
    return "" if offer is None else f"algorithm '{offer.name}' of {offer.plugin.release}"


@contextmanager
def errors_name(owner: str) -> Iterator[None]:
    """Context in which the message of a `PluginError` begins with the owner, and other exceptions get a note of it."""
    try:
        yield
    except PluginError as error:
        if not owner or str(error).startswith(owner):
            raise
        raise PluginError(f"{owner}: {error}") from error
    except ReallmError:
        raise
    except Exception as error:  # of the plugin's code: its author needs the traceback
        if owner:
            error.add_note(f"raised in {owner}")
        raise


@contextmanager
def made_by_plugin(algorithm: Algorithm, what: str) -> Iterator[None]:
    """Context for a plugin's code that makes something: exceptions become a `PluginError` of one line.

    An exception of an algorithm that did not come from a plugin stays what it is.

    Args:
        algorithm: the algorithm.
        what: what is made: `its graph`.

    Raises:
        PluginError: the plugin's code has raised something; names the plugin and the line.
    """
    offer = offer_of(algorithm)
    with errors_name(owner_of(algorithm)):
        try:
            yield
        except ReallmError:
            raise
        except Exception as error:  # the plugin's code may raise anything
            if offer is None:
                raise
            raise PluginError(f"{what} cannot be made: {describe_error(error, offer.plugin)}") from error
