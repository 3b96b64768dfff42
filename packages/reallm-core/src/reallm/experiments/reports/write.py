"""Writes the reports of a run into its folder: the summary page and a plot of rewards or losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reallm.errors import DataError, NonFiniteError
from reallm.experiments.reports.html import write_summary_page
from reallm.experiments.reports.png import save_plot
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.metrics import headline, read_curves


def write_plot(folder: RunFolder, echo: Callable[[str], None]) -> None:
    """Draw the rewards or the losses; print the reason if that fails or if there are none."""
    with report_failure(echo, "no plot of the losses"):
        curves = read_curves(folder.metrics)
        if headline(curves):
            save_plot(curves, folder.plot)
        else:
            echo(f"no plot of the losses: there are none in {folder.metrics}")


def write_page(folder: RunFolder, echo: Callable[[str], None]) -> None:
    """Write the summary page; print the reason if that fails."""
    with report_failure(echo, "no summary page"):
        write_summary_page(folder.path)


@contextmanager
def report_failure(echo: Callable[[str], None], what: str) -> Iterator[None]:
    """Context that prints why it failed to write `what`: a full disk must not end a run or hide its checkpoint."""
    try:
        yield
    except (OSError, ValueError, DataError, NonFiniteError) as error:
        echo(f"{what}: {error}")
