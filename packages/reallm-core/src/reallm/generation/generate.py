"""`generate_tokens`: continues all prompts, on one process or on all ranks of a layout."""

from __future__ import annotations

from collections.abc import Sequence

from reallm.errors import ConfigError, counted
from reallm.generation.config import GenerationConfig
from reallm.generation.data_parallel import make_engine
from reallm.generation.engine import GenerationEngine
from reallm.generation.nonfinite import refuse_nonfinite
from reallm.generation.request import Completion, Request
from reallm.generation.text import TokenDecoder
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh


def generate_tokens(
    network: Transformer,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    decoder: TokenDecoder | None = None,
    default_stop_token_ids: Sequence[int] = (),
    mesh: Mesh | None = None,
    exact: bool = False,
) -> list[Completion]:
    """Continue each prompt (token ids) until a stop token, a stop string or `max_new_tokens`.

    The completion of a prompt depends on the prompt, its index and the seed, not on other prompts or the layout.

    Args:
        network: the whole network, or this rank's part of it.
        prompts: token ids of each prompt.
        config: settings for sampling tokens and for ending a sequence.
        decoder: decodes tokens; None: completions have no text.
        default_stop_token_ids: tokens that end a sequence if `config` names none.
        mesh: the layout over which the network is parallelized: all its ranks make the same call and get the same
            result. None: this process holds the whole network.
        exact: as in `GenerationEngine`.

    Returns:
        The completions of the prompts, in their order, `config.n` of each.

    Raises:
        DataError: an empty prompt, a token that is not in the vocabulary, or a prompt that may outgrow the model's
            learned positions or the cache; names its index.
        NonFiniteError: logits are NaN or infinite; names the first prompt and the step. The same on all ranks.
        ConfigError: `exact` is not possible; says why.
    """
    options = {"decoder": decoder, "default_stop_token_ids": default_stop_token_ids, "exact": exact}
    with make_engine(network, mesh=mesh, **options) as engine:
        return continue_prompts(engine, prompts, config)


def continue_prompts(
    engine: GenerationEngine,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    keys: Sequence[int | str] | None = None,
) -> list[Completion]:
    """Continue each prompt (token ids) with an engine; returns and raises as `generate_tokens`.

    `keys` name the random streams of the prompts; None: their indices.
    """
    add_prompts(engine, prompts, config, keys)
    completions = engine.run()
    names = (f"prompt {index}" for index in range(len(prompts)) for _ in range(config.n))
    refuse_nonfinite(zip(names, completions, strict=True))
    return completions


def add_prompts(
    engine: GenerationEngine,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    keys: Sequence[int | str] | None = None,
) -> None:
    """Add a request for each prompt (token ids) to an engine.

    Args:
        engine: the engine.
        prompts: token ids of each prompt.
        config: settings for all of them.
        keys: name of each prompt's random stream; None: its index.

    Raises:
        DataError: as `generate_tokens`; the prompts before it are added.
        ConfigError: there are not as many keys as prompts.
    """
    if keys is None:
        keys = range(len(prompts))
    if len(keys) != len(prompts):
        raise ConfigError(f"keys has {len(keys)} names for {counted(len(prompts), 'prompt')}; give one for each")
    for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        engine.add(Request(tuple(map(int, prompt)), config, key=key), name=f"prompt {index}")
