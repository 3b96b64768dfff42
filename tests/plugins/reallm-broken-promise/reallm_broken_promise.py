"""Offers something else than its entry point promises."""

from reallm.data.spec import DatasetSpec
from reallm.hookspecs import hookimpl


@hookimpl
def reallm_datasets():
    return {"unpromised": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
