"""Implements `reallm_dataset`, but the hook is called `reallm_datasets`."""

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec


@hookimpl
def reallm_dataset():
    return {"misspelt-hook": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
