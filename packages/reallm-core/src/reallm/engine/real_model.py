"""`ReaLModel`: a network with the checkpoint it came from, and methods to load and to save it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from reallm.arguments import as_path, check_count, check_names, check_path, named_arguments
from reallm.checkpoint.adapter import AdapterFolder, adapter_boxes, with_adapters
from reallm.checkpoint.adapter_save import AdapterExport, ModelExport, write_adapter
from reallm.checkpoint.distributed_save import ShardedExport, write_distributed
from reallm.checkpoint.finite import check_finite
from reallm.checkpoint.load import read_boxes
from reallm.checkpoint.quantize import load_quantized
from reallm.checkpoint.save import Export, write_checkpoint
from reallm.config.lora import LoRAArgs
from reallm.dtype_device import as_device, as_dtype
from reallm.engine.family_methods import FamilyMethods, bound_method, method_names, split_name
from reallm.engine.generative_model import GenerativeModel
from reallm.errors import CheckpointError, ConfigError
from reallm.generation.logprobs import forward_packed, logprobs
from reallm.hf.checkpoint_folder import (
    base_folder,
    base_of_adapter,
    is_adapter_folder,
    read_hf_config,
    resolve_adapter,
    resolve_path,
    tokenizer_folder,
)
from reallm.hf.conversion.config import config_from_hf, config_of_folder, config_to_hf, hf_config_dict
from reallm.hf.conversion.families import check_family, family_for
from reallm.hf.conversion.state_dict import state_dict_from_hf, state_dict_to_hf
from reallm.hf.conversion.transformers_io import (
    checkpoint_state,
    transformers_config,
    transformers_model,
)
from reallm.hf.family import HFFamily
from reallm.model.adapted import AdaptedLayer
from reallm.model.config import ReaLModelConfig
from reallm.model.inputs import as_tokens
from reallm.model.parameter_names import is_adapter, is_trained
from reallm.model.sharding import Box
from reallm.notices import notify_once
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import fail_together
from reallm.parallel.parallelize import load_local
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PathLike = str | Path


class ReaLModel(GenerativeModel, metaclass=FamilyMethods):
    """A decoder-only language model on packed sequences, for training, inference and generation alike.

        model = ReaLModel.from_pretrained("path/to/checkpoint")
        logits = model(tokens, cu_seqlens)  # [T], [S+1] -> [T, V]
        model.save_pretrained("path/to/new/checkpoint")

    Made from a configuration, it has initial weights drawn from `seed`; a critic (`config.is_critic`) gives scores [T].

    With a mesh, all ranks of its layout make the same calls and hold a part of the model each:

        model = ReaLModel.from_pretrained("path/to/checkpoint", mesh=Mesh.of("tp2pp2"))
        rollout = model.reallocate("dp4")
    """

    family: HFFamily | None = None
    """The family in whose format the model is saved."""
    base: str | None = None
    """Folder or hub id of the checkpoint that the model was loaded from, which the folder of an adapter names."""
    bytes_read: int = 0
    """Bytes of the checkpoint's tensors that this process has read."""

    def __getattr__(self, attribute: str) -> Any:
        if split_name(attribute) is not None:
            return bound_method(self, attribute)
        message = f"'{type(self).__name__}' object has no attribute '{attribute}'"
        if hasattr(vars(self).get("_network"), attribute):
            message += f"; use model.network.{attribute}"
        raise AttributeError(message)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *method_names()})

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    @named_arguments(torch_dtype="dtype", device_map="device")
    def from_pretrained(
        cls,
        path: PathLike,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        is_critic: bool | None = None,
        min_vocab_size: int | None = None,
        seed: int = 0,
        mesh: Mesh | None = None,
        zero: int = 3,
        sequence_parallel: bool = False,
        lora: LoRAArgs | None = None,
        implementation: str = STANDARD_IMPLEMENTATION,
    ) -> ReaLModel:
        """Load a model from a HuggingFace checkpoint: a folder, or an id on the hub; its config names the family.

        It is in evaluation mode, without dropout; `TrainEngine` trains it in training mode.

        Args:
            path: folder with `config.json` and safetensors files, or with an adapter in PEFT's format whose base model
                is a local folder, or in the hub's cache.
            dtype: dtype of the parameters, or its name, such as `"bfloat16"`; None keeps the checkpoint's, or, if its
                tensors differ, takes the one in `config.json`. On CPU the tensors are then memory-mapped from the
                files, without a copy, and are read, and checked to be finite, when the network is first used.
            is_critic: True gives it a scalar head, drawn from `seed` if the checkpoint has none; None follows the
                checkpoint.
            min_vocab_size: number of tokens, such as `len(tokenizer)`. If the checkpoint has fewer rows, embedding and
                output head get further ones, drawn around the mean of theirs from `seed`, and `save_pretrained` writes
                the larger `vocab_size`. A checkpoint that has as many or more stays as it is.
            mesh: the layout over whose ranks the model is sharded; each rank reads only its part of the files. None:
                this process holds the whole model. See `ShardedModel` for `zero` and `sequence_parallel`.
            lora: low-rank adapters, new ones drawn from `seed`, or those of a folder. Then only they are trained,
                and the scalar head of a critic.
            implementation: whose layers compute it: reallm's, as the installed family says, or those of a plugin, such
                as `"transformers"`.

        Raises:
            CheckpointError: the folder cannot be loaded; says what is wrong with it and how to fix it.
            PluginError: no installed plugin offers the family; says what to install.
            ConfigError: the layout does not fit the model, or an argument is wrong; names it.
        """
        folder = resolve_path(check_path("path", path))
        base = None if as_path(path, CheckpointError).is_dir() else str(path)
        if is_adapter_folder(folder):
            if lora is not None and lora.is_on:
                raise ConfigError(f"{folder} holds an adapter; give the folder of its base model together with lora")
            lora, folder, base = LoRAArgs(path=str(folder)), base_folder(folder), base_of_adapter(folder)
        family = family_for(read_hf_config(folder), folder, implementation)
        return cls._from_folder(
            family,
            folder,
            dtype=dtype,
            device=device,
            is_critic=is_critic,
            min_vocab_size=min_vocab_size,
            seed=seed,
            mesh=mesh,
            zero=zero,
            sequence_parallel=sequence_parallel,
            lora=lora,
            base=base,
        )

    @named_arguments(path_or_repo_id="path", save_directory="path")
    def save_pretrained(
        self,
        path: PathLike,
        *,
        dtype: torch.dtype | str | None = None,
        max_shard_size: int | str = "5GB",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Write a HuggingFace checkpoint folder that transformers loads.

        Of a model with adapters only these are written, in their own dtype, as PEFT loads them; `merged` gives the
        whole model.

        The tokenizer, chat template and generation config of the checkpoint the model came from are carried over, or
        `tokenizer` is saved. The folder is replaced atomically: even if the process is killed, it holds either the old
        or the new checkpoint. With a mesh, all ranks of its layout call it and write parts of one checkpoint, in a
        folder that all can access.

        Args:
            path: the folder; made if missing.
            dtype: dtype of the saved tensors, or its name; None keeps the parameters' dtype.
            max_shard_size: bytes, or a size such as `"5GB"`; larger checkpoints are split as transformers does.
        """
        check_path("path", path)
        if isinstance(tokenizer, str | Path):
            raise ConfigError(f"tokenizer must be a tokenizer, not a path ({tokenizer}); AutoTokenizer loads one")
        export = self.export(dtype=dtype, max_shard_size=max_shard_size, tokenizer=tokenizer)
        if isinstance(export, AdapterExport):
            write_adapter(path, export)
        elif isinstance(export, ShardedExport):
            write_distributed(path, export)
        else:
            write_checkpoint(path, export)

    def export(
        self,
        *,
        dtype: torch.dtype | str | None = None,
        max_shard_size: int | str = "5GB",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> ModelExport:
        """The checkpoint that `save_pretrained` would write, as a value; its tensors are the parameters, not copies."""
        if self.family is None:
            raise CheckpointError(
                "this model belongs to no HuggingFace family; make it with ReaLModel.from_<family>(...)"
            )
        dtype = None if dtype is None else as_dtype(dtype)
        raw, tensors = self._to_raw(self.family, dtype), self.local_tensors()
        options: dict[str, Any] = {
            "dtype": dtype,
            "max_shard_size": max_shard_size,
            "carry_from": self.tokenizer_source if self.config.lora is not None else self.source,
            "tokenizer": tokenizer,
        }
        if self.config.lora is not None:
            return AdapterExport(self.base, self.family, self.config, self.mesh, tensors, **options)
        if self.mesh is not None and self.mesh.layout.size > 1:
            return ShardedExport(raw, self.family, self.config, self.mesh, tensors, **options)
        return Export(raw, state_dict_to_hf(self.family, tensors, self.config), **options)

    def read_adapter(self, path: PathLike) -> dict[str, Tensor]:
        """This rank's part of an adapter with the shapes of this model's, by parameter; see `other_adapter`.

        Args:
            path: its folder, or that of the run that has trained it.

        Raises:
            CheckpointError: it is damaged, or belongs to another model.
        """
        assert self.family is not None
        boxes = {name: box for name, box in self._local_boxes.items() if is_adapter(name)}
        read = AdapterFolder(resolve_adapter(path)).read_boxes(self.family, self.config, boxes, self.dtype)
        return {name: tensor.to(self.device) for name, tensor in read.items()}

    def merged(self) -> ReaLModel:
        """The model with its adapters added to the weights; other weights are shared with this model, not copied.

        Raises:
            ConfigError: ranks share the model.
        """
        if self.config.lora is None:
            return self
        if self.mesh is not None:
            raise ConfigError("adapters are merged by one process; load the model without a mesh")
        if self.config.base_is_quantized:
            raise ConfigError(
                "adapters are merged into the original weights, not into 4 bits: save_pretrained, then "
                "`reallm merge`, or load them without quantize_base"
            )
        model = type(self)(self.config.base, dtype=self.dtype, device="meta")
        tensors = {name: each for name, each in self.local_tensors().items() if not is_adapter(name)}
        for path, module in self.network.named_modules():
            if isinstance(module, AdaptedLayer):
                tensors[f"{path}.weight"] = module.merged_weight()
        load_local(model.network, tensors, self.device)
        model._build_args = replace(model._build_args, device=self.device)
        model.family, model._raw_hf_config, model.source = self.family, self._raw_hf_config, self.source
        model.tokenizer_source = self.tokenizer_source
        return model.train(self.training)

    @property
    def hf_config(self) -> PreTrainedConfig:
        """The transformers config of this model: the one it came with, or one made from its `config`."""
        if self.family is None:
            raise ConfigError(
                "this model belongs to no HuggingFace family; use ReaLModel.config_to_<family>(model.config)"
            )
        return transformers_config(self._to_raw(self.family, None))

    # ------------------------------------------------------------------ inference

    def token_logprobs(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        temperature: float = 1.0,
        *,
        max_tokens: int | None = None,
        exact: bool = False,
    ) -> Tensor:
        """Log-probability [T] float32 of each token given the tokens before it in its sequence; 0 for a first token.

        The same function of the logits as the `logprobs` of completions that were sampled at this temperature. Without
        dropout and without gradients, and without holding logits. With a mesh, all ranks of its layout make the
        same call, each computes some of the sequences, and all get the same result.

        Args:
            tokens: [T] integers, the sequences one after another.
            cu_seqlens: [S+1] integers, bounds of the sequences.
            temperature: divisor of the logits; 1 for greedy completions.
            max_tokens: limit on the tokens of a forward pass; a longer sequence has a pass of its own. None: one pass
                for all of a rank's sequences, or one for each stage of a pipeline.
            exact: compute the log-probabilities of `generate(exact=True)`, bit for bit.

        Raises:
            DataError: `cu_seqlens` does not bound the tokens.
            ConfigError: `temperature` not more than 0, `max_tokens` below 1, `exact` is not possible, or this is a
                critic.
        """
        if self.config.is_critic:
            raise ConfigError("a critic gives scores, not log-probabilities; call scores")
        tokens = as_tokens(tokens, self.config.vocab_size)
        return logprobs(
            self.network, tokens, cu_seqlens, temperature, mesh=self.mesh, max_tokens=max_tokens, exact=exact
        )

    def scores(self, tokens: Tensor, cu_seqlens: Tensor, *, max_tokens: int | None = None) -> Tensor:
        """A critic's score [T] float32 of each token; see `token_logprobs`.

        Raises:
            DataError: `cu_seqlens` does not bound the tokens.
            ConfigError: `max_tokens` below 1, or this is not a critic.
        """
        if not self.config.is_critic:
            raise ConfigError("only a critic gives scores; load the model with is_critic=True, or call token_logprobs")
        network, tokens = self.network, as_tokens(tokens, self.config.vocab_size)

        def per_token(hidden: Tensor, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
            return network.head(hidden)

        return forward_packed(network, tokens, cu_seqlens, per_token, mesh=self.mesh, max_tokens=max_tokens)

    # ------------------------------------------------------------------ HuggingFace families

    @classmethod
    def _from_folder(
        cls,
        family: HFFamily,
        folder: Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        is_critic: bool | None = None,
        min_vocab_size: int | None = None,
        seed: int = 0,
        lora: LoRAArgs | None = None,
        base: str | None = None,
        **placement: Any,
    ) -> ReaLModel:
        """A model from a checkpoint of a family; see `from_pretrained`. `base` is its name, if that is no folder."""
        wanted = None if dtype is None else as_dtype(dtype)
        target = as_device(device)
        seed = check_count("seed", seed, at_least=0)
        raw = read_hf_config(folder)
        stored = config_of_folder(family, folder, raw, is_critic=is_critic)
        config = stored.replace(vocab_size=max(stored.vocab_size, min_vocab_size or 0))
        adapter = None
        if lora is not None and lora.path is not None:  # resolved once: a run may save a newer adapter meanwhile
            adapter = resolve_adapter(lora.path)
            lora = replace(lora, path=str(adapter))
        config = with_adapters(family, config, lora)
        model = cls(config, device="meta", **placement)
        model._set_hf_source(family, raw, folder)
        model.base = base or str(folder.resolve())
        model.tokenizer_source = tokenizer_folder(folder, adapter)
        model._load(folder, stored, wanted, target, seed, lora)
        if config.vocab_size > stored.vocab_size:
            notify_once(
                f"{folder}: the vocabulary has grown from {stored.vocab_size:,} to {config.vocab_size:,} tokens; new "
                "rows are drawn around the mean of the others"
            )
        return model.eval()

    @classmethod
    def _from_family(
        cls, family: HFFamily, source: PathLike | PreTrainedConfig | PreTrainedModel, **options: Any
    ) -> ReaLModel:
        """A model from a checkpoint, from a HF config (fresh weights) or from a HF model (its weights, copied)."""
        check_names(f"from_{family.names[0]}", options, list(inspect.signature(cls.from_pretrained).parameters)[1:])
        if isinstance(source, str | Path):
            folder = resolve_path(source)
            check_family(family, read_hf_config(folder), folder)
            return cls._from_folder(family, folder, **options)
        raw = hf_config_dict(source.config if isinstance(source, nn.Module) else source)
        check_family(family, raw, "the config")
        config = config_from_hf(family, raw, is_critic=options.pop("is_critic", None))
        model = cls(config, **options)
        model._set_hf_source(family, raw, None)
        if isinstance(source, nn.Module):
            state = state_dict_from_hf(family, checkpoint_state(source), config)
            model.load_state_dict(model.state_dict() | state)  # a new critic's head stays as drawn
            model.eval()
        return model

    def _to_family(self, family: HFFamily) -> PreTrainedModel:
        """The transformers model with a copy of these weights."""
        state = state_dict_to_hf(family, self.state_dict(), self.config)
        return transformers_model(self._to_raw(family, None), state)

    @classmethod
    def _config_from_family(cls, family: HFFamily, source: PathLike | PreTrainedConfig) -> ReaLModelConfig:
        """The `ReaLModelConfig` of a checkpoint folder or a HF config."""
        raw = read_hf_config(resolve_path(source)) if isinstance(source, str | Path) else hf_config_dict(source)
        check_family(family, raw, source if isinstance(source, str | Path) else "the config")
        return config_from_hf(family, raw)

    @classmethod
    def _config_to_family(cls, family: HFFamily, config: ReaLModelConfig) -> PreTrainedConfig:
        """The transformers config that is equivalent to `config`."""
        return transformers_config(config_to_hf(family, config))

    # ------------------------------------------------------------------ private helpers

    def _set_hf_source(self, family: HFFamily, raw: Mapping[str, Any], source: Path | None) -> None:
        self.family, self._raw_hf_config, self.source = family, raw, source
        self.tokenizer_source = source

    def _empty_like(self, mesh: Mesh, dtype: torch.dtype) -> Self:
        model = super()._empty_like(mesh, dtype)
        model.family, model._raw_hf_config, model.source = self.family, self._raw_hf_config, self.source
        model.base, model.tokenizer_source = self.base, self.tokenizer_source
        return model

    def _to_raw(self, family: HFFamily, dtype: torch.dtype | None) -> dict[str, Any]:
        """This model's `config.json` in a family, for tensors of `dtype`; None: the dtype of the parameters."""
        base = self._raw_hf_config if self.family is family else None
        return config_to_hf(family, self.config, base, str(dtype or self.dtype).removeprefix("torch."))

    def _dtype_of_all(self, folder: Path, stored: Set[torch.dtype]) -> torch.dtype:
        """The dtype of a checkpoint's tensors; if they differ, the one that its `config.json` names."""
        if len(stored) == 1:
            return next(iter(stored))
        raw = self._raw_hf_config or {}
        named = f"torch.{raw.get('dtype') or raw.get('torch_dtype')}"
        found = next((each for each in stored if str(each) == named), None)
        several = " and ".join(sorted(map(str, stored)))
        if found is None:
            raise CheckpointError(f"{folder} has tensors of {several}; choose one of them with dtype=")
        notify_once(f"{folder} has tensors of {several}; all are converted to {found}, as its config.json says")
        return found

    @property
    def _local_boxes(self) -> Mapping[str, Box]:
        """As `boxes`, without a mesh that a process alone does not need."""
        if self.mesh is not None:
            return self.boxes
        return {name: Box.whole(parameter.shape) for name, parameter in self.named_parameters()}

    def _load(
        self,
        folder: Path,
        stored: ReaLModelConfig,
        dtype: torch.dtype | None,
        device: torch.device,
        seed: int,
        lora: LoRAArgs | None,
    ) -> None:
        """Replace the parameters, which are on the meta device, by this rank's part of a checkpoint's tensors.

        `stored` is the checkpoint's configuration, whose vocabulary may be smaller than the model's.
        """
        family = self.family
        assert family is not None
        boxes = self._local_boxes
        of_base = {name: box for name, box in boxes.items() if not is_adapter(name)}
        read = read_boxes(folder, family, stored, of_base, dtype=dtype, device=device, seed=seed)
        dtype = dtype or self._dtype_of_all(folder, read.stored_dtypes)
        self.network.to(dtype)
        # the scalar head of a new critic is drawn in float32
        tensors = {name: tensor.to(dtype) for name, tensor in read.tensors.items()}
        if lora is not None and lora.is_on:
            trained = {name: box for name, box in boxes.items() if is_trained(name, self.config)}
            for name, tensor in adapter_boxes(lora, folder, family, self.config, trained, dtype, seed).items():
                tensors[name] = tensor.to(device)
        load_local(self.network, tensors, device)
        self.bytes_read = read.bytes_read
        if self.config.base_is_quantized:
            self.bytes_read += load_quantized(self._network, folder, family, stored, dtype, device)
        self._build_args = replace(self._build_args, dtype=dtype, device=device)
        if self.mesh is None and device.type == "cpu" and read.stored_dtypes == {dtype}:
            # mapped tensors are read when they are used, and are checked then
            self._check_before_use = partial(check_finite, folder, family, stored)
            return
        with fail_together(self.mesh if self.mesh is not None and self.mesh.is_member else None):
            check_finite(folder, family, stored, tensors)
