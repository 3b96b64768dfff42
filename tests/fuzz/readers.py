"""What is read of others' files: for each reader a small corpus of files, and how one with another content is read."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from reallm.algorithms.sft.config import SFTConfig
from reallm.checkpoint.adapter import AdapterFolder
from reallm.checkpoint.checksums import CHECKSUMS, verify_checksums, write_checksums
from reallm.checkpoint.load import read_checkpoint
from reallm.checkpoint.reader import open_checkpoint
from reallm.config.load import load
from reallm.data.chat import bounded_jinja
from reallm.data.chat.template import ChatTemplate
from reallm.data.row_sources import RowSource
from reallm.data.rows import iter_rows
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError, ReallmError
from reallm.experiments.checkpointing.state_file import Generators
from reallm.experiments.checkpointing.train_state import read_state
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder
from reallm.experiments.runs.info import read_run
from reallm.experiments.runs.metrics import read_curves
from reallm.experiments.runs.settings import n_processes, read_settings
from reallm.generation.conversation import Conversation
from reallm.hf.checkpoint_folder import base_of_adapter
from reallm.hf.conversion.config import config_from_hf, load_model_config
from reallm.hf.conversion.families import get_family
from reallm.hf.conversion.transformers_io import end_of_sequence_ids, load_tokenizer, transformers_config
from reallm.parallel.layout import Layout
from reallm.plugins import finder, registry
from reallm.serving.bodies import parse_body
from reallm.serving.engine_requests import chat_requests, completion_requests
from reallm.serving.errors import APIError
from reallm.serving.requests import ChatCompletionRequest, CompletionRequest
from reallm.serving.served_model import ServedModel
from tests.fuzz import server
from tests.fuzz.runner import Open, Read
from tests.helpers.run_folders import write_run
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 17, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "max_position_embeddings": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.02,
    "tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32", "transformers_version": "5.0.0", "use_cache": True,
}  # fmt: skip
_ROPES: tuple[dict[str, Any], ...] = (
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 16}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "beta_fast": 32, "beta_slow": 1}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0],
                      "original_max_position_embeddings": 16}},
)  # fmt: skip
_CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
]
_TEMPLATES = (
    CHATML,
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m['content'] | trim }} [/INST]{% else %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(n=0) %}{%- for m in messages %}{%- set ns.n = ns.n + 1 %}<|{{ m.role }}|>{{ m.content }}"
    "{%- if loop.last and add_generation_prompt %}<|assistant|>{%- endif %}{%- endfor %}",
    "{%- macro show(m) %}{{ m.role | upper }}: {{ m.content }}\n{% endmacro %}{% for m in messages %}{{ show(m) }}"
    "{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{{ 'a'.ljust(10 ** 11) }}{{ 'b' | center(10 ** 11) }}",
    "{{ '%99999999999d' % 1 }}{{ '{:99999999999d}'.format(1) }}",
    "{{ messages | undefined_filter }}",
    "{{ messages.__class__.__mro__ }}{{ ''.__class__ }}",
    "{{ raise_exception('no\nway') }}",
    "{% include '/etc/passwd' %}",
    "{% for x in range(10 ** 9) %}{% endfor %}",
)


def _llama_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens": (17, 8), "lm_head": (17, 8), "model.norm": (8,)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {
            f"{at}.self_attn.q_proj": (8, 8), f"{at}.self_attn.k_proj": (4, 8), f"{at}.self_attn.v_proj": (4, 8),
            f"{at}.self_attn.o_proj": (8, 8), f"{at}.mlp.gate_proj": (12, 8), f"{at}.mlp.up_proj": (12, 8),
            f"{at}.mlp.down_proj": (8, 12), f"{at}.input_layernorm": (8,), f"{at}.post_attention_layernorm": (8,),
        }  # fmt: skip
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _checkpoint(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(_LLAMA))
    (folder / "model.safetensors").write_bytes(save(_llama_state()))
    return folder


def _writing(file: Path, read: Callable[[], object]) -> Read:
    """Reads what is written into a file first."""

    def written(content: bytes) -> object:
        file.write_bytes(content)
        return read()

    return written


def _refusing(
    corpus: Sequence[bytes], read: Read, error: type[ReallmError] = ReallmError
) -> tuple[Sequence[bytes], Read]:
    """A reader whose corpus may be refused as it is: parts of it are hostile already."""

    def tolerant(content: bytes) -> object:
        try:
            return read(content)
        except error:
            if content in corpus:
                return None
            raise

    return corpus, tolerant


def _weights(folder: Path) -> tuple[Sequence[bytes], Read]:
    file = _checkpoint(folder) / "model.safetensors"
    family = get_family("llama")
    config = config_from_hf(family, _LLAMA)
    return [file.read_bytes()], _writing(file, lambda: read_checkpoint(folder, family, config))


def _index(folder: Path) -> tuple[Sequence[bytes], Read]:
    state, shards = _llama_state(), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: shards[i % 2] for i, name in enumerate(state)}
    for shard in shards:
        (folder / shard).write_bytes(save({name: state[name] for name in state if weight_map[name] == shard}))
    corpus = [json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()]
    return corpus, _writing(folder / "model.safetensors.index.json", lambda: open_checkpoint(folder))


def _family_configs() -> list[bytes]:
    """The default `config.json` of every family, and Llama's with each kind of RoPE."""
    found: list[dict[str, Any]] = [_LLAMA, *(_LLAMA | {"rope_parameters": None} | rope for rope in _ROPES)]
    for family in {id(family): family for family in registry.offers("family").values()}.values():
        raw = transformers_config({"model_type": family.model_type}).to_dict()
        raw["architectures"] = [family.architectures[0]]
        try:
            config_from_hf(family, raw)
        except ReallmError:  # a default of transformers that the family refuses
            continue
        found.append(raw)
    return [json.dumps(raw).encode() for raw in found]


def _config(folder: Path) -> tuple[Sequence[bytes], Read]:
    return _family_configs(), _writing(folder / "config.json", lambda: load_model_config(folder))


def _model(folder: Path) -> tuple[Sequence[bytes], Read]:
    _checkpoint(folder)
    corpus = [json.dumps(_LLAMA).encode()]
    return corpus, _writing(folder / "config.json", lambda: ReaLModel.from_pretrained(folder))


def _tokenizer(file: str) -> Open:
    def opened(folder: Path) -> tuple[Sequence[bytes], Read]:
        corpus = []
        for kind in ("bytes", "words"):
            tiny_tokenizer(kind=kind, bos=True).save_pretrained(folder)
            corpus.append((folder / file).read_bytes())

        def read() -> object:
            tokenizer = load_tokenizer(folder)
            return tokenizer.decode(tokenizer.encode("Hello, how are\n you?"))

        return corpus, _writing(folder / file, read)

    return opened


def _generation_config(folder: Path) -> tuple[Sequence[bytes], Read]:
    corpus = [b'{"eos_token_id": 2, "bos_token_id": 1, "temperature": 0.6}', b'{"eos_token_id": [1, 2], "top_p": 0.9}']
    return corpus, _writing(folder / "generation_config.json", lambda: end_of_sequence_ids({}, folder))


def _template(folder: Path) -> tuple[Sequence[bytes], Read]:
    tokenizer = tiny_tokenizer()
    bounded_jinja.MAX_SECONDS = 0.05  # in this process alone, so that more templates are tried

    def read(content: bytes) -> object:
        tokenizer.chat_template = content.decode(errors="replace")
        template = ChatTemplate(tokenizer)
        _ = template.end_tokens
        conversation = Conversation(tokenizer, template)
        conversation.set_system("Be brief.")
        conversation.ask("1 + 1?")
        conversation.answer([1, 2, 3], "2")
        return conversation.ask("And 2 + 2?")

    return _refusing([template.encode() for template in _TEMPLATES], read, DataError)


def _rows(extension: str, corpus: Callable[[], Sequence[bytes]]) -> Open:
    def opened(folder: Path) -> tuple[Sequence[bytes], Read]:
        file = folder / f"rows{extension}"

        def read() -> object:
            return list(iter_rows(RowSource(str(file))))

        return corpus(), _writing(file, read)

    return opened


def _json_rows() -> list[bytes]:
    rows = [
        {"prompt": "a", "answer": "b"}, {"messages": _CONVERSATION}, {"instruction": "i", "input": "", "output": "o"},
        {"prompt": "p", "chosen": "c", "rejected": "r"}, {"conversations": [{"from": "human", "value": "x"}]},
    ]  # fmt: skip
    return [*(json.dumps(row).encode() + b"\n" for row in rows), json.dumps(rows[:1] * 3).encode()]


def _csv_rows() -> list[bytes]:
    return [b'prompt,answer\n"a, b",c\n"d\ne",f\n']


def _gz_rows() -> list[bytes]:
    return [gzip.compress(rows, mtime=0) for rows in _json_rows()]


def _training_state(folder: Path) -> tuple[Sequence[bytes], Read]:
    checkpoint = folder / "step-000002"
    (checkpoint / TRAINING_STATE / "model").mkdir(parents=True)
    state = {
        "format": 1, "step": 2, "evaluated_step": None, "engines": {"model": {"step": 2, "skipped_steps": 0}},
        "metrics": {"train/loss": 1.5, "eval/loss": None}, "evals_without_gain": 0, "seconds": 3.5, "data": "abc",
        "best": {"metric": "eval/loss", "value": 1.0, "step": 1, "checkpoint": "checkpoints/step-000001"},
        "interfaces": {"model": {"kl": 0.1}}, "versions": {"torch": "2"}, "callbacks": {},
        "generators": asdict(Generators.capture()),
    }  # fmt: skip
    file = checkpoint / TRAINING_STATE / "state.json"
    return [json.dumps(state).encode()], _writing(file, lambda: read_state(checkpoint)[0].generators.restore())


def _checksums(folder: Path) -> tuple[Sequence[bytes], Read]:
    for name in ("a.json", "b.safetensors"):
        (folder / name).write_text(name)
    write_checksums(folder, {})
    return [(folder / CHECKSUMS).read_bytes()], _writing(folder / CHECKSUMS, lambda: verify_checksums(folder))


def _yaml(folder: Path) -> tuple[Sequence[bytes], Read]:
    corpus = [
        b"model:\n  path: m\ndataset:\n  name: prompt_answer\n  train_path: rows.jsonl\noptimizer:\n  lr: 1e-4\n",
        b"model.path: m\ndataset.train_path: [a.jsonl, b.jsonl]\nepochs: 2\nname: ${seed}\nloggers: [jsonl]\n",
        b"a: &a {lr: 1}\noptimizer: {<<: *a}\n",
    ]
    file = folder / "run.yaml"

    return _refusing(corpus, _writing(file, lambda: load(SFTConfig, [file]).values))


def _command_line(folder: Path) -> tuple[Sequence[bytes], Read]:
    corpus = [
        b"model.path=m\ndataset.name=prompt_answer\ndataset.train_path=rows.jsonl\noptimizer.lr=1e-4",
        b"model.path=m\nloggers=[jsonl,tensorboard]\nname=${seed}\nparallel.dp=2\nepochs=1",
        b"dataset.train_path=[a.jsonl, b.jsonl]\nresume=x\nlr_schedule.warmup_steps=10\nseed=3",
    ]

    def read(content: bytes) -> object:
        return load(SFTConfig, [], content.decode(errors="replace").split("\n")).values

    return _refusing(corpus, read)


def _layout(folder: Path) -> tuple[Sequence[bytes], Read]:
    corpus = [b"tp2pp1dp2", b"fsdp4", b"dp2tp2@4-7", b"tp2@0,2", b"dp99999999999999999", b"dp2@0-99999999999"]
    return _refusing(corpus, lambda content: Layout.parse(content.decode(errors="replace")))


_METADATA: Mapping[str, bytes] = {
    "METADATA": b"Metadata-Version: 2.1\nName: reallm-fuzz\nVersion: 1.0\nSummary: none\n\nText\n",
    "entry_points.txt": b"[reallm]\nfamily.fuzz = reallm_fuzz.plugin\ndataset.fuzz = reallm_fuzz.plugin:rows\n",
    "direct_url.json": b'{"url": "file:///x", "dir_info": {"editable": true}}',
}


def _metadata(name: str) -> Open:
    def opened(folder: Path) -> tuple[Sequence[bytes], Read]:
        inner = folder / "reallm_fuzz-1.0.dist-info"
        inner.mkdir()
        for file, content in _METADATA.items():
            (inner / file).write_bytes(content)

        def read() -> object:
            sys.path[:] = [str(folder)]
            try:
                found = finder.find()
            finally:
                sys.path[:] = before
            if found.broken:
                raise DataError(found.broken[0].reason)  # it is listed, and nothing ends for it
            return found

        before = list(sys.path)
        return [_METADATA[name]], _writing(inner / name, read)

    return opened


def _request(folder: Path) -> tuple[Sequence[bytes], Read]:
    tokenizer = tiny_tokenizer()
    served = ServedModel("tiny", tokenizer, len(tokenizer), 512)
    corpus = [
        json.dumps({"messages": _CONVERSATION[1:], "max_tokens": 5, "temperature": 0.5, "stop": ["x"]}).encode(),
        json.dumps({"prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2, "top_p": 0.9, "seed": 7}).encode(),
        json.dumps({"messages": _CONVERSATION[1:2], "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        ], "tool_choice": "none"}).encode(),
    ]  # fmt: skip

    def read(content: bytes) -> object:
        try:
            body = parse_body(content, "application/json")
            if isinstance(body, dict) and "messages" in body:
                return chat_requests(ChatCompletionRequest.model_validate(body), served)
            return completion_requests(CompletionRequest.model_validate(body), served)
        except APIError as error:
            raise DataError(str(error)) from None

    return corpus, read


def _adapter(name: str) -> Open:
    def opened(folder: Path) -> tuple[Sequence[bytes], Read]:
        family = get_family("llama")
        config = config_from_hf(family, _LLAMA)
        at = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        state = {at.format(i, "A"): torch.ones(2, 8) for i in range(2)} | {
            at.format(i, "B"): torch.ones(8, 2) for i in range(2)
        }
        files = {
            "adapter_config.json": json.dumps(
                {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.0,
                 "base_model_name_or_path": "base", "bias": "none", "alpha_pattern": {}, "use_rslora": False}
            ).encode(),
            "adapter_model.safetensors": save(state),
        }  # fmt: skip
        for file, content in files.items():
            (folder / file).write_bytes(content)

        def read() -> object:
            base_of_adapter(folder)
            adapter = AdapterFolder(folder)
            lora = adapter.lora(family, config)
            return adapter.read(family, config.replace(lora=lora))

        return [files[name]], _writing(folder / name, read)

    return opened


def _run_folder(name: str) -> Open:
    def opened(folder: Path) -> tuple[Sequence[bytes], Read]:
        settings = {"model": {"path": "m", "dtype": None}, "seed": 1, "parallel": {"dp": 2, "tp": 1, "pp": 1},
                    "actor_gen": {"layout": "dp2"}}  # fmt: skip
        run = write_run(folder / "run", settings=settings, eval_losses={2: 1.0}, resumable=True)

        def read() -> object:
            found = read_run(run)
            read_curves(run / "metrics.jsonl")
            n_processes(read_settings(run / "config.yaml"))
            RunFolder(run).resume_command("sft")
            return found

        return [(run / name).read_bytes()], _writing(run / name, read)

    return opened


READERS: Mapping[str, Open] = {
    "weights": _weights,
    "index": _index,
    "config": _config,
    "config of a model": _model,
    "tokenizer": _tokenizer("tokenizer.json"),
    "tokenizer config": _tokenizer("tokenizer_config.json"),
    "generation config": _generation_config,
    "chat template": _template,
    "rows in JSON": _rows(".json", _json_rows),
    "rows in JSONL": _rows(".jsonl", _json_rows),
    "rows in CSV": _rows(".csv", _csv_rows),
    "rows compressed": _rows(".jsonl.gz", _gz_rows),
    "summary of a run": _run_folder("summary.json"),
    "metrics of a run": _run_folder("metrics.jsonl"),
    "settings of a run": _run_folder("config.yaml"),
    "training state": _training_state,
    "checksums": _checksums,
    "YAML": _yaml,
    "command line": _command_line,
    "layout": _layout,
    "metadata": _metadata("METADATA"),
    "entry points": _metadata("entry_points.txt"),
    "direct URL": _metadata("direct_url.json"),
    "request": _request,
    "request over HTTP": server.open_bodies,
    "connection": server.open_connections,
    "adapter config": _adapter("adapter_config.json"),
    "adapter weights": _adapter("adapter_model.safetensors"),
}
"""Name of a reader -> its corpus and how it reads."""
