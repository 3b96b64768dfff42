"""Offers `shared`, as does the other one, and `only-a`."""

from reallm.data.spec import DatasetSpec
from reallm.hookspecs import hookimpl


@hookimpl
def reallm_datasets():
    spec = DatasetSpec("somewhere:Dataset", "somewhere:Config")
    return {"only-a": spec, "shared": spec}
