"""The templates of pages, which lie beside this file."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from reallm.experiments.reports.number_format import number


def template(name: str) -> Template:
    """The template of a page by the name of its file."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reallm.experiments.reports", ""),
        autoescape=True,  # data, samples and the names of metrics can contain anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment
