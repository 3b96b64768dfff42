"""Offers `shared`, as does the other one, and `only-a`."""

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec


@hookimpl
def reallm_datasets():
    spec = DatasetSpec("somewhere:Dataset", "somewhere:Config")
    return {"only-a": spec, "shared": spec}
