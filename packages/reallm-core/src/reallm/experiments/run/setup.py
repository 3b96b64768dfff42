"""Loads the parts of a run: layouts, tokenizer and datasets, models with their engines."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reallm.algorithms.graph import Graph
from reallm.algorithms.interface import optimizer_steps
from reallm.algorithms.interface_checks import check_interfaces
from reallm.algorithms.owner import made_by_plugin
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.config.args import ModelArgs
from reallm.config.dataset import CHAT_TEMPLATE, batch_size
from reallm.config.lr_schedule import check_warmup
from reallm.config.training import TrainingConfig, max_tokens_per_microbatch, model_args, role_optimizer
from reallm.data.chat.known_templates import set_chat_template
from reallm.data.dataset_stats import DatasetStats, fingerprint, histogram, measure
from reallm.data.datasets import Samples, make_dataset, own_report
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray
from reallm.data.sampler import MixtureSampler, StepSampler
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError, PluginError, counted, did_you_mean, quoted
from reallm.experiments.preflight.consistency import settings_and_versions
from reallm.experiments.preflight.device import choose_device, choose_dtype, deterministic_kernels
from reallm.experiments.preflight.vocabulary import check_vocabulary
from reallm.hf.checkpoint_folder import resolve_adapter, resolve_path, tokenizer_folder
from reallm.hf.conversion.config import load_model_config
from reallm.hf.conversion.transformers_io import add_tokens, load_tokenizer, n_token_ids
from reallm.launch.consistency import check_same_on_all_ranks
from reallm.launch.job import Job
from reallm.notices import notify_once
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.specs import Algorithm
from reallm.training.engine import TrainEngine, align_parameters
from reallm.training.eval_engine import EvalEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Data:
    """The tokenized datasets of a run, and the order in which its steps take them."""

    train: Samples
    valid: Samples | None
    valid_batch_size: int
    sampler: StepSampler
    stats: DatasetStats
    """Statistics of the training data."""
    valid_stats: DatasetStats | None
    """Statistics of the validation data."""
    fingerprint: str
    """Fingerprint of the training data."""
    tokenizer: PreTrainedTokenizerBase
    tokenizer_changed: bool = False
    """Whether the tokenizer is not the checkpoint's: it is then saved with the trained models."""

    def as_json(self) -> dict[str, Any]:
        """The content of a run's `data.json`: by split its report, number of samples and histogram of lengths."""
        lengths = self.stats.lengths
        splits: dict[str, Any] = {
            "train": {
                "report": report(self.train),
                "n_samples": len(self.train),
                "lengths": histogram(lengths),
                "counted": len(lengths),
            }
        }
        if self.valid is not None:
            splits["valid"] = {"report": report(self.valid), "n_samples": len(self.valid)}
        for split, samples in {"train": self.train, "valid": self.valid}.items():
            if isinstance(samples, MixedSamples):
                splits[split]["sources"] = {
                    name: {"report": report(source), "n_samples": len(source)}
                    for name, source in samples.sources.items()
                }
        if isinstance(self.train, MixedSamples):
            for source, n in zip(splits["train"]["sources"].values(), self.train.quotas, strict=True):
                source["n_samples_of_epoch"] = n
        return splits


@contextmanager
def distributed_context(config: TrainingConfig, settings: Mapping[str, Any], graph: Graph, job: Job) -> Iterator[None]:
    """Context in which the processes of a job load models and compute together.

    Args:
        config: configuration of the run or evaluation.
        settings: all its settings, as nested mappings of plain values.
        graph: graph of the algorithm.
        job: the processes.

    Raises:
        ConfigError: the settings differ between the processes, or there is no such device.
    """
    found = settings_and_versions(config, settings, graph.roles)
    check_same_on_all_ranks(job, "settings", found, config.parallel.timeout)
    device = choose_device(model_args(config, graph.roles[0]).device, job.gpu)
    with job.process_groups(device, config.parallel.timeout), deterministic_kernels(config.deterministic):
        yield


def make_interfaces(algorithm: Algorithm, graph: Graph, config: Any) -> dict[str, Any]:
    """An instance of each role's interface class, by role.

    Raises:
        PluginError: a class does not fit the graph, or cannot be constructed; names the plugin.
    """
    with made_by_plugin(algorithm, "its interfaces"):
        check_interfaces(algorithm, graph)
        return {role: algorithm.interface_class(role)(config) for role in graph.all_roles}


def planned_tokens(graph: Graph, interfaces: Mapping[str, Any], role: str) -> Callable[[NamedArray], Sequence[int]]:
    """The tokens that samples of the dataset put through a trained model, as far as they are known before a step.

    If the model is trained on what is generated, and its interface does not say how much that can be, what that of
    another trained role says counts.

    Raises:
        PluginError: none of them says it.
    """
    if not hasattr(interfaces[role], "planned_tokens") and role in (call.role for call in graph.objective_calls):
        n_tokens: Callable[[NamedArray], Sequence[int]] = interfaces[role].n_tokens
        return n_tokens
    for name in (role, *graph.trained_roles):
        planned: Callable[[NamedArray], Sequence[int]] | None = getattr(interfaces[name], "planned_tokens", None)
        if planned is not None:
            return planned
    raise PluginError(
        f"the model of '{role}' is trained on what is generated, and {type(interfaces[role]).__qualname__} has no "
        "method planned_tokens(sample), which says how many tokens that can be"
    )


def check_columns(graph: Graph, interfaces: Mapping[str, Any], samples: Samples) -> None:
    """Check that the row of each sample has the columns that interfaces need.

    Raises:
        DataError: one is missing; names it, what needs it, and the first such row.
    """
    needed: dict[str, str] = {}
    for role in graph.all_roles:
        needed |= getattr(interfaces[role], "needed_columns", {})
    for sample in (samples[i] for i in range(len(samples))) if needed else ():
        (found,) = sample.metadata.get("columns", ({},))
        for column in needed:
            if column not in found:
                (row,) = sample.metadata["ids"]
                raise DataError(
                    f"{needed[column]} needs the column '{column}', which row {row} lacks"
                    f"{did_you_mean(column, found)}; it has {', '.join(found) or 'none but the prompt'}"
                )


def load_data(config: TrainingConfig, graph: Graph, interfaces: Mapping[str, Any]) -> Data:
    """Tokenize the datasets with the tokenizer of the first trained model.

    Raises:
        ReallmError: a tokenizer or dataset cannot be read, is empty, or lacks keys that the graph reads; or settings
            do not fit the data.
    """
    trained = graph.trained_roles[0]
    tokenizer, tokenizer_changed = load_run_tokenizer(config, graph)
    check_vocabularies(config, graph, interfaces, tokenizer)
    splits = config.datasets()
    built = {split: make_dataset(dataset, seed=config.seed, tokenizer=tokenizer) for split, dataset in splits.items()}
    train, valid = built["train"], built.get("valid")
    if not len(train):
        raise DataError(f"dataset '{splits['train'].name}' gives no samples to train on ({report(train)})")
    if valid is not None and not len(valid):
        valid = None
    graph.check_producers(tuple(train[0].keys()), splits["train"].name)
    for split in (train, valid):
        if split is not None:
            check_columns(graph, interfaces, split)
    sampler = _make_sampler(config, train)
    for role in graph.trained_roles:
        n_steps = sampler.total_steps * optimizer_steps(interfaces[role])
        check_warmup(role_optimizer(config, role), n_steps, f"all the steps there are, {n_steps}")
    if valid is None:
        _check_needs_no_validation(config)
    n_tokens = planned_tokens(graph, interfaces, trained)
    max_tokens = max_tokens_per_microbatch(config, trained, graph.train_calls[0].name)
    stats, valid_size = measure(train, n_tokens, sampler, max_tokens), batch_size(config.dataset, "valid")
    valid_stats = None
    if valid is not None:
        valid_plan = StepSampler(len(valid), valid_size, 1, None, config.seed)
        valid_stats = measure(valid, n_tokens, valid_plan, max_tokens)
    return Data(
        train,
        valid,
        valid_size,
        sampler,
        stats,
        valid_stats,
        _fingerprint(train),
        tokenizer,
        tokenizer_changed,
    )


def prompt_lengths(config: TrainingConfig, algorithm: Algorithm, graph: Graph) -> list[int]:
    """Tokens of the prompts of a run's first steps; of rows, if its algorithm generates nothing.

    Raises:
        ReallmError: as for `load_data`.
    """
    data = load_data(config, graph, make_interfaces(algorithm, graph, config))
    keys = [key for call in graph.calls if call.kind == "generate" for key in call.inputs if key in data.train[0]]
    if not keys:
        return list(data.stats.lengths)
    samples = (data.train[row] for row in data.stats.rows)
    return [sum(n) for sample in samples for n in sample.metadata["seqlens"][keys[0]]]


def check_vocabularies(
    config: TrainingConfig, graph: Graph, interfaces: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that all models have the vocabulary of the run, except those whose interface has `own_tokenizer`.

    Raises:
        ConfigError: a model has another vocabulary; names its key.
    """
    first, vocabulary = graph.trained_roles[0], tokenizer.get_vocab()
    for role in graph.roles:
        path = model_args(config, role).path
        if path != model_args(config, first).path and not getattr(interfaces[role], "own_tokenizer", False):
            check_vocabulary(f"{role}.path", path, vocabulary, first)


def _make_sampler(config: TrainingConfig, train: Samples) -> StepSampler:
    steps = (len(train), batch_size(config.dataset, "train"), config.epochs, config.max_steps, config.seed)
    if not isinstance(train, MixedSamples):
        return StepSampler(*steps)
    sizes = tuple(len(samples) for samples in train.sources.values())
    return MixtureSampler(*steps, names=tuple(train.sources), sizes=sizes, quotas=tuple(train.quotas))


def _fingerprint(train: Samples) -> str:
    """Fingerprint of the samples and, in a mixture, of how often each source is taken."""
    found = fingerprint(train)
    if not isinstance(train, MixedSamples):
        return found
    return hashlib.sha256(repr((found, list(train.sources), train.quotas)).encode()).hexdigest()


def load_run_tokenizer(config: TrainingConfig, graph: Graph) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer of a run, that of the first trained model, and whether it has changed, and so is to be saved.

    Raises:
        ReallmError: there is no tokenizer, it cannot be loaded, tokens cannot be added, or there is no such chat
            template.
    """
    first = graph.trained_roles[0]
    for role in graph.roles:
        if role != first and model_args(config, role).add_tokens:
            raise ConfigError(
                f"{role}.add_tokens: the tokenizer of the run is that of {first}; give {first}.add_tokens"
            )
    args = model_args(config, first)
    adapter = None if args.lora.path is None else resolve_adapter(args.lora.path)
    tokenizer = load_tokenizer(tokenizer_folder(resolve_path(args.path, weights=False), adapter))
    if "" in args.add_tokens:
        raise ConfigError(f"{first}.add_tokens has an empty string; leave it out")
    for token, n in Counter(args.add_tokens).items():
        if n > 1:
            raise ConfigError(f"{first}.add_tokens has '{token}' {n} times; give it once")
    known = tokenizer.get_vocab()
    existing = [token for token in args.add_tokens if token in known]
    if existing:
        notify_once(f"{first}.add_tokens: the tokenizer has {quoted(existing, 8)} already")
    has_changed = add_tokens(tokenizer, args.add_tokens) > 0
    chat_template = getattr(getattr(config, "dataset", None), CHAT_TEMPLATE, None)
    if chat_template is not None:
        set_chat_template(tokenizer, chat_template, role=first)
    return tokenizer, has_changed or chat_template is not None


def load_roles(
    config: TrainingConfig,
    graph: Graph,
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    placement: Placement,
    *,
    horizons: Mapping[str, int] | None,
    tokenizer_changed: bool = False,
) -> dict[str, Role]:
    """Load the models of roles, each in the layout of its home, with an engine for those that the graph trains.

    Args:
        config: configuration of the run.
        graph: graph of the algorithm.
        names: the roles.
        tokenizer: tokenizer of the run.
        job: the processes that load the models together.
        placement: where the roles are called.
        horizons: optimizer steps of the whole run by trained role; None to evaluate alone, without training engines
            and their memory.
        tokenizer_changed: whether the tokenizer is to be saved with the models.

    Raises:
        ReallmError: a checkpoint cannot be loaded, or a device does not exist.
    """
    roles: dict[str, Role] = {}
    meshes: dict[Layout, Mesh] = {}
    bases = {name: trained for name, trained in placement.shared.items() if trained in names}
    for name in sorted(names, key=bases.__contains__):  # those whose model others share come first
        args = model_args(config, name)
        if name in bases:
            one = roles[bases[name]]
            roles[name] = dataclasses.replace(
                one,
                engine=None,
                evaluator=None,
                args=args,
                tokenizer=None,
                meshes={},
                base_of=bases[name],
                adapter=None if args.lora.path is None else one.model.read_adapter(args.lora.path),
            )
            continue
        device = choose_device(args.device, job.gpu)
        mesh, own_meshes = None, {}
        if not job.is_alone:
            for layout in placement.copies(name):
                if layout not in meshes:
                    meshes[layout] = Mesh.of(layout, timeout=config.parallel.timeout)
                own_meshes[layout] = meshes[layout]
            mesh = meshes[placement.homes[name]]
        dtype = choose_dtype(args.dtype, device)
        model = ReaLModel.from_pretrained(
            args.path,
            dtype=dtype if args.lora.quantize_base else None,  # quantized weights are not converted later
            device=device,
            is_critic=args.is_critic,
            min_vocab_size=min_vocab_size(config, graph, tokenizer, name),
            seed=config.seed,
            mesh=mesh,
            zero=config.parallel.zero,
            sequence_parallel=config.parallel.sequence_parallel,
            lora=args.lora,
            implementation=args.implementation,
        )
        checkpoint_dtype = model.dtype
        model.to(dtype)
        engine, evaluator = None, None
        if name in graph.trained_roles and (mesh is None or mesh.is_member):
            model.gradient_checkpointing = args.gradient_checkpointing
            if args.compile:
                model.compile_blocks()
            if horizons is not None:
                engine = _make_engine(config, name, model, horizons[name])
            evaluator = engine or EvalEngine(model, max_tokens_per_microbatch(config, name))
        if name in graph.updated_roles:
            align_parameters(model.network)
        to_save = tokenizer if tokenizer_changed else None
        roles[name] = Role(model, engine, evaluator, args, checkpoint_dtype, to_save, own_meshes)
    return {name: roles[name] for name in names}


def min_vocab_size(config: TrainingConfig, graph: Graph, tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    """The number of tokens for which the model of a role gets rows; None: it keeps those of its checkpoint."""
    has_new_tokens = bool(model_args(config, graph.trained_roles[0]).add_tokens)
    return n_token_ids(tokenizer) if model_args(config, role).resize_vocab or has_new_tokens else None


def _make_engine(config: TrainingConfig, role: str, model: ReaLModel, total_steps: int) -> TrainEngine:
    return TrainEngine(
        model,
        role_optimizer(config, role),
        total_steps,
        max_tokens_per_microbatch(config, role),
        seed=config.seed,
        moe_aux_loss_coef=model_args(config, role).moe_aux_loss_coef,
        moe_bias_update_rate=model_args(config, role).moe_bias_update_rate,
        exact=getattr(config, "exact", False) and not model.config.is_critic,
    )


def _check_needs_no_validation(config: TrainingConfig) -> None:
    for key in ("eval_every", "best_metric", "stop_after_evals_without_gain"):
        value = getattr(config, key)
        if value is not None:
            raise ConfigError(
                f"{key}={value} needs validation data; give dataset.valid_path or dataset.valid_fraction, "
                f"or leave {key} out"
            )


def report(dataset: Samples) -> str:
    """A dataset's own one-line report of its rows, or else its number of samples."""
    own = own_report(dataset)
    return counted(len(dataset), "sample") if own is None else own


def check_lengths(
    samples: Samples, stats: DatasetStats, models: Sequence[ModelArgs], *, noun: str = "sample"
) -> list[str]:
    """Compare the measured samples with the lengths that the models are made for; a line for each that they exceed.

    Messages call a sample by the `noun`.

    Raises:
        DataError: a sample is longer than the learned positions of a model; names it.
    """
    length, lines = max(stats.lengths), []
    are_prompts = "prompt_ids" in samples[0]
    with_answers = " with the longest answer" if are_prompts else ""
    for args in models:
        model = load_model_config(args.path, implementation=args.implementation)
        limit = model.longest_sequence
        if limit is None or length <= limit:
            if model.outgrown_by(length):
                n = sum(each > model.max_positions for each in stats.lengths)
                have = "has" if n == 1 else "have"
                lines.append(
                    f"warning: {n:,} of {counted(len(stats.lengths), noun)} {have} more than the "
                    f"{model.max_positions:,} tokens that {args.path} was made for (max_position_embeddings), up to "
                    f"{length:,}{with_answers}; {_how_to_shorten(are_prompts, model.max_positions)}"
                )
            continue
        row = stats.rows[stats.lengths.index(length)]
        ids = samples[row].metadata.get("ids")
        name = f"{noun} '{ids[0]}'" if ids else f"{noun} {row}"
        raise DataError(
            f"{name} has {length:,} tokens{with_answers}, but {args.path} has learned {limit:,} positions; "
            f"{_how_to_shorten(are_prompts, limit)}"
        )
    return lines


def _how_to_shorten(are_prompts: bool, limit: int) -> str:
    if are_prompts:
        return "lower max_new_tokens, or have the dataset cut or drop longer prompts (dataset.max_prompt_len)"
    return f"have the dataset cut or drop what is longer (dataset.max_seqlen={limit})"
