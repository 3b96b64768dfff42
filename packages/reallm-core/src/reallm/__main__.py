"""Entry point of the command `reallm`, and of `python -m reallm`: also sees to Ctrl-C while the command is imported."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from reallm.cli.streams import tell, tell_interrupted
from reallm.launch.end_with_launcher import end_with_launcher
from reallm.launch.signals import INTERRUPTED
from reallm.machine_errors import as_machine_error

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN_S = 0.01
"""Seconds until a discarded Ctrl-C is raised again: when the callback has ended."""


def main() -> None:
    """Run the command line of this process, and exit."""
    end_with_launcher()  # before what takes longer to import
    sys.unraisablehook = _raise_interrupts_again
    try:
        _imported_command()()
    except KeyboardInterrupt:
        tell_interrupted()
        sys.exit(INTERRUPTED)
    finally:  # only Python's own end is left, which would answer Ctrl-C with a traceback
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _imported_command() -> Callable[[], None]:
    """The command, unless this process cannot have the memory or the files to import it."""
    try:
        from reallm.cli.main import main as command
        from reallm.compiled_code import use_own_folder
    except Exception as error:
        known = as_machine_error(error)
        if known is error:
            raise
        tell(f"error: {known}\n")
        sys.exit(2)
    use_own_folder()
    return command


def _raise_interrupts_again(discarded: UnraisableHookArgs) -> None:
    """Python prints an exception that a callback of its own raises, as in an import, and goes on; Ctrl-C shall not."""
    if issubclass(discarded.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    else:
        sys.__unraisablehook__(discarded)


if __name__ == "__main__":
    main()
