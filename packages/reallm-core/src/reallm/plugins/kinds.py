"""The kinds of things that plugins offer: the hooks that return them, and their types."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Kind:
    """A kind, whose entry points are named `<kind>.<name>`.

    `value_type` is a lazy reference, since this module must not import the packages that define the types.
    A hook returns a mapping from names to values or, if values contain their names (`own_names`), an iterable of
    values.
    """

    name: str
    plural: str
    hook: str
    value_type: str
    own_names: bool = False

    @property
    def type_name(self) -> str:
        """The name of the value type: `HFFamily`."""
        return self.value_type.partition(":")[2]


KINDS = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("dataset", "datasets", "reallm_datasets", "reallm.specs:DatasetSpec"),
            Kind("family", "families", "reallm_hf_families", "reallm.hf.family:HFFamily", own_names=True),
            Kind("algorithm", "algorithms", "reallm_algorithms", "reallm.specs:Algorithm"),
            Kind("logger", "loggers", "reallm_loggers", "reallm.specs:LoggerSpec"),
            Kind("callback", "callbacks", "reallm_callbacks", "reallm.specs:CallbackSpec"),
            Kind("reward", "rewards", "reallm_rewards", "reallm.specs:RewardSpec"),
            Kind("implementation", "implementations", "reallm_implementations", "reallm.specs:ImplementationSpec"),
        )
    }
)
"""All kinds by name."""
