"""Implements `reallm_dataset`, but the hook is called `reallm_datasets`."""

from reallm.data.spec import DatasetSpec
from reallm.hookspecs import hookimpl


@hookimpl
def reallm_dataset():
    return {"misspelt-hook": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
