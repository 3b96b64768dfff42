"""`reallm generate`: continue prompts with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reallm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from reallm.generation.request import Completion


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Texts to continue.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Checkpoint to use: a folder or a hub id. Required.")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="More prompts: .txt, one a line, or .jsonl, key 'prompt'."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the form of the model's chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens to add to a prompt.")] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            min=0,
            help="0: always the most likely token; 1: sample as the model says. Default: 1 with --top-k or --top-p, "
            "else 0.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", min=1, help="Sample from the K most likely tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sample from the most likely tokens that have P of the probability."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before TEXT where it appears; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Continue prompts with a checkpoint.

    \b
      reallm generate --model PATH "Once upon a time"
      reallm generate --model PATH --chat --temperature 0.7 "Who wrote Faust?"
    """
    if model is None:
        raise ConfigError("--model PATH is required: a checkpoint's folder or a hub id")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: must be auto, cpu or cuda")
    texts = [*(prompts or []), *(read_prompts(prompts_file) if prompts_file else [])]
    if not texts:
        raise ConfigError('nothing to continue; give prompts ("Once upon a time") or a file of them (--prompts FILE)')
    if not all(texts):
        raise ConfigError("a prompt is empty")
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
                                "top_p": top_p, "stop": tuple(stop or ()), "seed": seed}  # fmt: skip

    completions = _complete(model, texts, sampling, chat=chat, device=device)
    for index, (prompt, completion) in enumerate(zip(texts, completions, strict=True)):
        if as_json:
            typer.echo(_as_json(prompt, completion))
        else:
            typer.echo(("\n" if index else "") + _as_text(prompt, completion))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: the lines of a .txt, or the values of `prompt` in a .jsonl; blank lines are skipped.

    Raises:
        DataError: the file does not exist, is of another type, or has a line without a prompt; names file and line.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(f"--prompts {path}: the name must end in .txt or .jsonl")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".txt":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}:{number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise DataError(f'{where}: expected an object with a text "prompt", such as {{"prompt": "Once upon a time"}}')
    return row["prompt"]


def _complete(path: str, prompts: list[str], sampling: dict[str, Any], *, chat: bool, device: str) -> list[Completion]:
    from reallm.experiments.preflight.checks import check_checkpoint

    check_checkpoint("--model", path)

    import torch

    from reallm.engine.real_model import ReaLModel
    from reallm.generation.config import GenerationConfig
    from reallm.hf.checkpoint_folder import resolve_path
    from reallm.hf.conversion.transformers_io import load_tokenizer

    GenerationConfig(**sampling)  # checks the values before a model is loaded
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: PyTorch sees no GPU here; use cpu or auto")
    device = ("cuda" if has_gpu else "cpu") if device == "auto" else device

    folder = resolve_path(path)
    tokenizer = load_tokenizer(folder)
    if chat and not tokenizer.chat_template:
        raise ConfigError(f"--chat: the tokenizer in '{folder}' has no chat template; leave --chat out")
    ids = _chat_ids(tokenizer, prompts) if chat else [tokenizer.encode(prompt) for prompt in prompts]
    # A CPU is fastest in float32; on a GPU the dtype of the checkpoint is kept.
    model = ReaLModel.from_pretrained(folder, dtype=torch.float32 if device == "cpu" else None, device=device)
    return model.generate(ids, tokenizer=tokenizer, **sampling)


def _chat_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """The tokens of each prompt, asked by the user as in training."""
    from reallm.data.chat.template import ChatTemplate
    from reallm.data.rows import Row

    template = ChatTemplate(tokenizer)
    texts = [
        template.prompt([{"role": "user", "content": prompt}], Row(str(number), f"prompt {number}", {}))
        for number, prompt in enumerate(prompts, 1)
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]  # the template has added them


def _as_json(prompt: str, completion: Completion) -> str:
    return json.dumps(
        {
            "prompt": prompt,
            "completion": completion.text,
            "n_tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
        },
        ensure_ascii=False,
    )


def _as_text(prompt: str, completion: Completion) -> str:
    from reallm.errors import counted

    quoted = "\n".join(f"> {line}" for line in prompt.splitlines())
    end = ""
    if completion.finish_reason == "length":
        n_tokens = counted(len(completion.token_ids), "token")
        end = typer.style(f"\n[cut after {n_tokens}; --max-new-tokens N for more]", dim=True)
    return f"{typer.style(quoted, bold=True)}\n{(completion.text or '').strip()}{end}"
