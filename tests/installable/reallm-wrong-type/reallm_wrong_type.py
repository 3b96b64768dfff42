"""Returns a class where a `DatasetSpec` is wanted."""

from reallm.hookspecs import hookimpl


class Dataset:
    pass


@hookimpl
def reallm_datasets():
    return {"wrong-type": Dataset}
