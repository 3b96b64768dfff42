"""One hook raises, the other works."""

from reallm.hookspecs import hookimpl
from reallm.specs import LoggerSpec


@hookimpl
def reallm_datasets():
    raise ValueError("no data today")


@hookimpl
def reallm_loggers():
    return {"still-good": LoggerSpec("somewhere:Logger")}
