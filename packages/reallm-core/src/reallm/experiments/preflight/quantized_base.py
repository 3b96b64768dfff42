"""Checks of models whose base is to be held in 4 bits, before they are loaded."""

from __future__ import annotations

from typing import Any

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import given_layouts
from reallm.config.args import ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.parallel import ParallelArgs
from reallm.config.schema import in_group
from reallm.config.training import call_args_of, model_args
from reallm.errors import ConfigError


def check_quantized_base(role: str, args: ModelArgs) -> None:
    """Check that the base of a role's model can be quantized on its device, if it is to be.

    Raises:
        ConfigError: it cannot; names the key.
    """
    if args.lora.quantize_base is None:
        return
    from reallm.experiments.preflight.device import choose_device, choose_dtype  # imports torch
    from reallm.model.products import nf4

    device = choose_device(args.device)
    try:
        nf4.nf4_quantizer(device, choose_dtype(args.dtype, device))
    except ConfigError as error:
        raise ConfigError(in_group(f"{role}.lora", LoRAArgs, error)) from error


def check_quantized_calls(config: Any, graph: Graph) -> None:
    """Check that models with a quantized base are called by one process, and stay where they are.

    Raises:
        ConfigError: a call has a layout of several processes, or offloads its model; names the key.
    """
    given, parallel = given_layouts(config, graph), getattr(config, "parallel", ParallelArgs())
    for call in graph.calls:
        if call.kind == "reward" or model_args(config, call.role).lora.quantize_base is None:
            continue
        layout, args = given.get(call.name, parallel.smallest_layout), call_args_of(config).get(call.name)
        key = f"{call.role}.lora.quantize_base"
        if layout.size > 1:
            where = f"{call.name}.layout" if call.name in given else "parallel.*"
            raise ConfigError(
                f"{key}: a base model in 4 bits is held whole by one process, and {where} is {layout.short}; leave one "
                "of the two out"
            )
        if args is not None and args.offload:
            raise ConfigError(f"{call.name}.offload=true does not work with {key}; leave one of the two out")
