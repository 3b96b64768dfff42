"""What this package offers. Names classes without importing them, so that looking around stays fast."""

from reallm import CallbackSpec, hookimpl

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_callbacks() -> dict[str, CallbackSpec]:
    """The one callback of this package."""
    return {
        "plateau": CallbackSpec(
            callback="reallm_plateau.callback:PlateauCallback",
            description="ends a run whose training loss no longer falls",
        )
    }
