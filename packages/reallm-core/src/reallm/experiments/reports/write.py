"""What a run draws into its folder: the loss curves and the summary page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reallm.errors import DataError
from reallm.experiments.reports.html import write_summary_page
from reallm.experiments.reports.png import save_plot
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.metrics import read_curves


def write_plot(folder: RunFolder, say: Callable[[str], None]) -> None:
    """Draw the loss curves, if there are any; where that fails, say why."""
    with report_failure(say, "no plot of the losses"):
        curves = read_curves(folder.metrics)
        if any(name.endswith("/loss") for name in curves):
            save_plot(curves, folder.plot)
        else:
            say(f"no plot of the losses: there are none in {folder.metrics}")


def write_page(folder: RunFolder, say: Callable[[str], None]) -> None:
    """Write the summary page; where that fails, say why."""
    with report_failure(say, "no summary page"):
        write_summary_page(folder.path)


@contextmanager
def report_failure(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Say why `what` is not there: a full disk must neither end a run nor hide where its checkpoint is."""
    try:
        yield
    except (OSError, ValueError, DataError) as error:
        say(f"{what}: {error}")
