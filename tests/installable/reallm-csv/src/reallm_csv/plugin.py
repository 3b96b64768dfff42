"""What this package offers. Names classes without importing them, so that looking around stays fast."""

from reallm import LoggerSpec, hookimpl

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_loggers() -> dict[str, LoggerSpec]:
    """The one logger of this package."""
    return {
        "csv": LoggerSpec(
            logger="reallm_csv.logger:CsvLogger",
            description="metrics as a table, metrics.csv in the run folder",
        )
    }
