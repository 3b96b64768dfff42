"""Its hook wants an argument that no hook gets."""

from reallm.data.spec import DatasetSpec
from reallm.hookspecs import hookimpl


@hookimpl
def reallm_datasets(settings):
    return {"wrong-argument": DatasetSpec(settings, "somewhere:Config")}
