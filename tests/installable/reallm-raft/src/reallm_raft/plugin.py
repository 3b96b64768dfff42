"""What this package offers. Names classes without importing them, so that looking around stays fast."""

from reallm import Algorithm, hookimpl

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_algorithms() -> dict[str, Algorithm]:
    """The one algorithm of this package."""
    return {
        "raft": Algorithm(
            config="reallm_raft.config:RaftConfig",
            graph="reallm_raft.config:calls",
            interfaces={
                "actor": "reallm_raft.interface:RaftInterface",
                "scorer": "reallm_raft.interface:ScoreInterface",
            },
            description="best-of-n distillation: trains on the best of several answers to each prompt",
        )
    }
