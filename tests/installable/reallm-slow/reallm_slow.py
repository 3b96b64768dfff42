"""Takes its time to be imported."""

import time

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec

time.sleep(0.1)


@hookimpl
def reallm_datasets():
    return {"slow": DatasetSpec("somewhere:Dataset", "somewhere:Config")}
