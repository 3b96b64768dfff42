"""Made for a version of the hooks that is yet to come."""

from reallm.hookspecs import hookimpl

REALLM_HOOK_API = "2.0"


@hookimpl
def reallm_hook_of_the_future():
    return {}
