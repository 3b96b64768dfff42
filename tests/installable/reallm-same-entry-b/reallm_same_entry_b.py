"""Its entry point is called `plugin`, as is the other one's."""

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec


@hookimpl
def reallm_datasets():
    return {"same-entry-b": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
