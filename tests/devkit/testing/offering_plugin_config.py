"""The configuration of the dataset in `offering_plugin`, where importing it brings no torch."""

from dataclasses import dataclass

from reallm import REQUIRED, option


@dataclass
class WordsConfig:
    train_path: str = option(REQUIRED, "rows with a key 'text'")
    my_arg: int = option(1, "a number")
