"""Its entry point is called `plugin`, as is the other one's."""

from reallm.data.spec import DatasetSpec
from reallm.hookspecs import hookimpl


@hookimpl
def reallm_datasets():
    return {"same-entry-b": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
