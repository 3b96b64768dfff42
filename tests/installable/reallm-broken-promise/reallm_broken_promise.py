"""Offers something else than its entry point promises."""

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec


@hookimpl
def reallm_datasets():
    return {"unpromised": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
