"""From YAML files and key=value arguments to an SFTConfig."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs, RewardArgs
from reallm.config.load import describe, load
from reallm.config.optimizer import OPTIONS, OptimizerConfig
from reallm.errors import ConfigError, UnknownNameError
from reallm.printable import printable
from tests.helpers import fake_plugins

NEEDED = ["model.path=m", "dataset.train_path=t.jsonl"]


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.install(monkeypatch)


def built(*arguments: str, files: list[Path] | None = None) -> SFTConfig:
    return load(SFTConfig, files or [], [*NEEDED, *arguments]).build()


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---------------------------------------------------------------- values


def test_defaults_are_those_of_the_dataclasses():
    config = built()
    assert config == SFTConfig(model=ModelArgs(path="m"), dataset=config.dataset)
    assert config.optimizer == OptimizerConfig()
    assert isinstance(config.dataset, fake_plugins.RowsConfig)


def test_the_command_line_wins_over_files_and_later_files_over_earlier(file):
    first = file("epochs: 2\nseed: 2\noptimizer:\n  lr: 1e-3\n  eps: 1e-6\n")
    second = file("seed: 3\noptimizer.lr: 2e-3\n", "second.yaml")
    config = built("optimizer.lr=3e-3", files=[first, second])
    assert (config.epochs, config.seed, config.optimizer.lr, config.optimizer.eps) == (2, 3, 3e-3, 1e-6)


def test_the_last_of_two_arguments_counts():
    assert built("seed=1", "seed=5").seed == 5


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.warmup_steps=10", "optimizer.warmup_steps", 10),
        ("optimizer.warmup_steps=null", "optimizer.warmup_steps", None),
        ("model.compile=true", "model.compile", True),
        ("loggers=[jsonl]", "loggers", ["jsonl"]),
        ("loggers=[]", "loggers", []),
        ("name=007", "name", "007"),
        ("name=1e-4", "name", "1e-4"),
        ("name=a=b", "name", "a=b"),
        ("name=@x", "name", "@x"),
        ("name=a: b", "name", "a: b"),
        ("name=null", "name", None),
        ("name=run-${seed}", "name", "run-1"),
        ("dataset.overlong=drop", "dataset.overlong", "drop"),
    ],
)
def test_values_have_the_types_of_their_keys(argument, key, value):
    found = load(SFTConfig, [], [*NEEDED, argument]).values[key]
    assert found == value
    assert type(found) is type(value)


def test_text_in_a_file_stays_as_it_is_written(file):
    assert built(files=[file("name: 007\n")]).name == "007"


def test_an_empty_file_or_group_changes_nothing(file):
    assert built(files=[file(""), file("optimizer:\nmodel: {}\n", "b.yaml")]) == built()


def test_a_yaml_merge_is_followed(file):
    with pytest.raises(ConfigError, match="unknown key 'common.lr'"):
        built(files=[file("common: &c\n  lr: 3\noptimizer:\n  <<: *c\n")])
    assert built(files=[file("optimizer:\n  <<: {lr: 3}\n  eps: 1\n")]).optimizer.lr == 3.0


# ---------------------------------------------------------------- datasets


def test_a_dataset_is_chosen_by_its_name_and_has_keys_of_its_own():
    config = load(
        SFTConfig, [], ["model.path=m", "dataset.name=my-dataset", "dataset.my_arg=3", "dataset.extra.q=7"]
    ).build()
    assert isinstance(config.dataset, fake_plugins.MyConfig)
    assert (config.dataset.my_arg, config.dataset.extra) == (3, {"q": 7})
    with pytest.raises(ConfigError, match=r"unknown key 'dataset.train_path'; keys of my-dataset: name, my_arg"):
        load(SFTConfig, [], [*NEEDED, "dataset.name=my-dataset"])


def test_a_dataset_is_chosen_in_a_file_too(file):
    path = file("dataset:\n  name: my-dataset\n  my_arg: 4\n")
    assert load(SFTConfig, [path], ["model.path=m"]).build().dataset.my_arg == 4


def test_the_splits_of_the_default_dataset():
    datasets = built("dataset.valid_path=v.jsonl", "dataset.max_seqlen=8").datasets()
    arguments = {"max_seqlen": 8, "overlong": "truncate"}
    assert {split: (one.name, dict(one.args)) for split, one in datasets.items()} == {
        "train": ("prompt_answer", {"path": "t.jsonl", **arguments}),
        "valid": ("prompt_answer", {"path": "v.jsonl", **arguments}),
    }
    assert list(built().datasets()) == ["train"]


def test_a_dataset_without_train_path_gets_its_own_fields():
    config = load(SFTConfig, [], ["model.path=m", "dataset.name=my-dataset", "dataset.my_arg=3"]).build()
    [(split, dataset)] = config.datasets().items()
    assert (split, dataset.name, dict(dataset.args)) == (
        "train",
        "my-dataset",
        {"my_arg": 3, "mode": "fast", "extra": {}},
    )


def test_a_configuration_made_in_python_knows_its_dataset():
    config = SFTConfig(model=ModelArgs(path="m"), dataset=fake_plugins.RowsConfig(train_path="t.jsonl"))
    assert config.datasets()["train"].name == "prompt_answer"
    mine = SFTConfig(model=ModelArgs(path="m"), dataset=fake_plugins.MyConfig(my_arg=1))
    assert mine.datasets()["train"].name == "my-dataset"
    with pytest.raises(ConfigError, match="ModelArgs is not the configuration of an installed dataset"):
        SFTConfig(model=ModelArgs(path="m"), dataset=ModelArgs(path="m")).datasets()


def test_a_dataset_that_is_not_installed_says_so(monkeypatch):
    fake_plugins.install(monkeypatch, without="prompt_answer")
    with pytest.raises(UnknownNameError, match="pip install the-package"):
        built()


# ---------------------------------------------------------------- printing


@pytest.mark.parametrize(
    "arguments",
    [
        NEEDED,
        [*NEEDED, "optimizer.lr=1e-4", "name=1e-4", "loggers=[]", "optimizer.warmup_steps=3"],
        ["model.path=m", "dataset.name=my-dataset", "dataset.my_arg=3", "dataset.extra={a: 1}", "name=a: b"],
    ],
)
def test_printed_configuration_is_read_back_as_it_was(arguments, file):
    loaded = load(SFTConfig, [], arguments)
    again = load(SFTConfig, [file(loaded.to_yaml())], [])
    assert again.values == loaded.values
    assert again.to_yaml() == loaded.to_yaml()
    assert again.build() == loaded.build()


def test_the_yaml_of_all_values_has_escapes_for_what_reorders_characters(file):
    loaded = load(SFTConfig, [], [*NEEDED, "name=a\u202eb\x1bé"])
    assert printable(loaded.to_yaml()) == loaded.to_yaml()
    assert load(SFTConfig, [file(loaded.to_yaml())], []).values == loaded.values


def test_a_configuration_object_prints_as_it_was_loaded():
    config = built("optimizer.lr=1e-4")
    assert describe(config).to_yaml() == load(SFTConfig, [], [*NEEDED, "optimizer.lr=1e-4"]).to_yaml()
    made = SFTConfig(model=ModelArgs(path="m"), dataset=fake_plugins.MyConfig(my_arg=1))
    assert describe(made).tree()["dataset"]["name"] == "my-dataset"


def test_a_configuration_with_gaps_is_printed_as_a_template():
    printed = yaml.safe_load(load(SFTConfig, [], []).to_yaml())
    assert printed["model"]["path"] == "???"
    assert next(iter(printed["dataset"])) == "name"
    assert list(printed)[:3] == ["model", "dataset", "optimizer"]


# ---------------------------------------------------------------- values that make no sense


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epochs=0", "epochs=0 must be at least 1"),
        ("max_steps=-1", "max_steps=-1 must be at least 1"),
        ("eval_every=0", "eval_every=0 must be at least 1"),
        ("save_every=0", "save_every=0 must be at least 1"),
        ("max_tokens_per_microbatch=0", "max_tokens_per_microbatch=0 must be at least 1"),
        ("seed=-1", "seed=-1 must be 0 or more"),
        ("dataset.train_bs_n_seqs=0", "dataset.train_bs_n_seqs=0 must be at least 1"),
        ("dataset.valid_bs_n_seqs=0", "dataset.valid_bs_n_seqs=0 must be at least 1"),
        ("dataset.max_seqlen=1", "dataset.max_seqlen=1 must be at least 2"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 must be"),
        ("optimizer.lr=nan", "optimizer.lr=nan must be"),
        ("optimizer.warmup_ratio=2", "optimizer.warmup_ratio=2.0 must be"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(argument, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        built(argument)


def test_what_a_plugins_dataclass_raises_is_told_by_its_key():
    with pytest.raises(ConfigError, match=r"^dataset\.my_arg is too much$"):
        load(SFTConfig, [], ["model.path=m", "dataset.name=my-dataset", "dataset.my_arg=101"]).build()


def test_python_users_get_the_same_checks():
    dataset = fake_plugins.RowsConfig(train_path="t.jsonl")
    with pytest.raises(ConfigError, match=r"^model\.path is required"):
        SFTConfig(dataset=dataset)
    with pytest.raises(ConfigError, match=r"^dataset is required"):
        SFTConfig(model=ModelArgs(path="m"))
    with pytest.raises(ConfigError, match=r"^dataset\.train_path is required"):
        SFTConfig(model=ModelArgs(path="m"), dataset=fake_plugins.RowsConfig())
    with pytest.raises(ConfigError, match=r"^dtype='fp32' is not one of auto, float32"):
        ModelArgs(path="m", dtype="fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(OPTIONS))
def test_an_optimizer_is_chosen_by_its_name_alone(name: str) -> None:
    chosen = built(f"optimizer.name={name}").optimizer
    assert chosen == OptimizerConfig(name=name)
    assert chosen.options == OPTIONS[name]
    assert built("optimizer.beta1=0.8").optimizer == OptimizerConfig(beta1=0.8)
    with pytest.raises(ConfigError, match="optimizer.beta1=0.9 is an option of adamw and muon, not of sgd"):
        built("optimizer.name=sgd", "optimizer.beta1=0.9")


def test_the_settings_of_a_run_can_be_used_with_another_optimizer(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(load(SFTConfig, (), ["model.path=m", "dataset.train_path=t.jsonl"]).to_yaml())
    assert load(SFTConfig, [file], ["optimizer.name=sgd"]).build().optimizer == OptimizerConfig(name="sgd")


@dataclass(frozen=True)
class Rewarded:
    """A configuration with a group whose value may be written as that of the group."""

    reward: RewardArgs = field(default_factory=RewardArgs)


@pytest.mark.parametrize(
    ("text", "functions"),
    [("exact_match", ["exact_match"]), ("[a:f,b.py:g]", ["a:f", "b.py:g"]), ("verl:a:f", ["verl:a:f"])],
)
def test_a_value_of_a_group_is_that_of_its_shorthand(text: str, functions: list[str], file) -> None:
    assert load(Rewarded, arguments=[f"reward={text}"]).values["reward.functions"] == functions
    assert load(Rewarded, [file(f"reward: {text}\n")], ["--trust-code"]).values["reward.functions"] == functions
    assert load(Rewarded, arguments=["reward.functions=[a]", f"reward={text}"]).values["reward.functions"] == functions
