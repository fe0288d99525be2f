"""The trainable part of a backbone.

- all: every parameter
- norm: the norm layers' affine parameters (HPT-BN, Reed et al., 2021)
- last-K: the last K blocks of a transformer or stages of a convolutional network, and all layers
  that follow them
- lora-R: low-rank additions of rank R to a ViT's linear layers (Hu et al., 2021); `lora` is lora-8
- none: no parameter; statistics of the norms are set to those of the data
"""

import re
from collections.abc import Iterator
from typing import Any

import timm.layers
from timm.models import group_parameters
from torch import Tensor, nn

from selftaught.errors import UserError

CHOICES = "all, norm, none, last-K (as last-1) or lora-R (as lora-8)"
RANK = 8  # of `lora` without a number

# timm's own normalisations that are not subclasses of torch's; older timm lacks some of them.
_TIMM_NORMS = ("RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d")
_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    *(getattr(timm.layers, name) for name in _TIMM_NORMS if hasattr(timm.layers, name)),
)


def parse(what: str) -> tuple[str, int]:
    """Parse a choice: `last-2` is ("last", 2), `lora` is ("lora", RANK), others have number 0.

    Raises UserError for an unknown choice.
    """
    match = re.fullmatch(r"(all|norm|none)|(last)-([1-9]\d*)|(lora)(?:-([1-9]\d*))?", what)
    if match is None:
        raise UserError(f'--trainable must be {CHOICES}, not "{what}".')
    plain, last, count, lora, rank = match.groups()
    if plain:
        return plain, 0
    return (last, int(count)) if last else (lora, int(rank or RANK))


def set_trainable(backbone: nn.Module, what: str, keep_statistics: bool = False) -> None:
    """Make the part `what` of a backbone trainable, and freeze the rest.

    Call it before the backbone is copied, because lora adds parameters. Batch norm that none,
    last-K or lora freeze stays in evaluation mode, so its running statistics do not change either.
    With norm, batch norm is trained and updates its statistics. `keep_statistics`: every batch norm
    stays in evaluation mode; its affine parameters are trained as `what` says.
    """
    kind, number = parse(what)
    network = getattr(backbone, "network", backbone)
    parameters = _select_parameters(network, kind, number)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    frozen_parts = frozenset(
        name
        for name, norm in network.named_modules()
        if getattr(norm, "running_mean", None) is not None
        and (keep_statistics or (kind not in ("all", "norm") and not _is_trained(norm)))
    )
    if hasattr(backbone, "frozen_parts"):
        # pyrefly: ignore[bad-argument-type]
        backbone.frozen_parts = frozen_parts
        backbone.train(backbone.training)


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The affine parameters of every norm layer: batch, instance, group, layer and RMS norms."""
    norms = [part for part in module.modules() if isinstance(part, _NORMS)]
    # Not recursive: a norm-and-activation layer of timm may contain a PReLU, whose slope is no
    # affine parameter.
    return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


def group_by_stage(network: Any) -> list[list[str]]:
    """Group the names of the parameters by stem and block (or stage), in forward order.

    Layers behind the last block, such as a final norm, belong to it.
    """
    groups = group_parameters(
        network, network.group_matcher(coarse=not hasattr(network, "patch_embed"))
    )
    ordered = [groups[key] for key in sorted(groups)]
    kinds = [re.split(r"\d", names[0])[0] for names in ordered]  # layer, blocks., stages.
    if len(ordered) > 2 and kinds[-1] != kinds[-2]:
        ordered[-2:] = [ordered[-2] + ordered[-1]]
    return ordered


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict under timm's names, with low-rank additions merged into the weights."""
    state = network.state_dict()
    for name, layer in _low_rank_layers(network):
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        base = layer.get_base_layer()
        added = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        state[f"{name}.weight"] = (base.weight + added).detach()
        if base.bias is not None:
            state[f"{name}.bias"] = base.bias.detach()
    return state


def _low_rank_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    return (
        (name, part) for name, part in network.named_modules() if hasattr(part, "get_delta_weight")
    )


def _select_parameters(network: nn.Module, kind: str, number: int) -> list[nn.Parameter]:
    if kind == "norm":
        affine = norm_parameters(network)
        if not affine:
            raise UserError("This backbone has no norm layer with parameters: train all of it.")
        return affine
    if kind == "last":
        return _select_last(network, number)
    if kind == "lora":
        return _add_low_rank(network, number)
    return list(network.parameters()) if kind == "all" else []


def _select_last(network: nn.Module, count: int) -> list[nn.Parameter]:
    if not hasattr(network, "group_matcher"):
        raise UserError(
            "timm does not define the stages of this backbone: train all of it, or its norm layers."
        )
    _, *stages = group_by_stage(network)
    if count > len(stages):
        raise UserError(
            f"--trainable last-{count} is more than this backbone has: last-{len(stages)} is all"
            " but its stem."
        )
    return [network.get_parameter(name) for stage in stages[-count:] for name in stage]


def _add_low_rank(network: Any, rank: int) -> list[nn.Parameter]:
    try:
        import peft
    except ImportError:
        raise UserError(
            '--trainable lora needs the package peft: pip install "selftaught[lora]".'
        ) from None
    if any(True for _ in _low_rank_layers(network)):
        raise UserError("This backbone has low-rank additions already.")
    blocks = getattr(network, "blocks", None)
    if blocks is None or not hasattr(network, "patch_embed"):
        raise UserError("--trainable lora is for ViTs: choose last-K or norm for this backbone.")
    linear = [
        f"blocks.{name}" for name, part in blocks.named_modules() if isinstance(part, nn.Linear)
    ]
    before = {id(parameter) for parameter in network.parameters()}
    # alpha = rank gives a scale of 1, so one learning rate suits every rank.
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=linear), network
    )
    return [parameter for parameter in network.parameters() if id(parameter) not in before]


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
