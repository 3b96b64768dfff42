"""Its hook wants an argument that no hook gets."""

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec


@hookimpl
def reallm_datasets(settings):
    return {"wrong-argument": DatasetSpec(settings, "somewhere:Config")}
