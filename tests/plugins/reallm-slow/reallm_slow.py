"""Takes its time to be imported."""

import time

from reallm.data.spec import DatasetSpec
from reallm.hookspecs import hookimpl

time.sleep(0.1)


@hookimpl
def reallm_datasets():
    return {"slow": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
