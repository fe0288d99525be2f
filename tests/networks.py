"""Small networks and what tests of them share."""

import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

# timm's own tiny networks: milliseconds instead of seconds.
RESNET, VIT = "test_resnet", "test_vit"


def pixels(size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """In evaluation mode, without the gradient; the mode is left as it was found."""
    training = network.training
    with torch.no_grad():
        result = network.eval()(images)
    network.train(training)
    return result


def lived_in(network: nn.Module) -> nn.Module:
    """Give every vector (norm statistics, affine parameters) other values than a fresh network
    has.
    """
    generator = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network


def normalised(
    images: torch.Tensor, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
) -> torch.Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


State = dict[str, torch.Tensor]


def at(prefix: str, state: State) -> State:
    """A state dict whose names begin with a prefix."""
    return {prefix + key: value for key, value in state.items()}


def write(path: Path, content: Any) -> Path:
    """A file of safetensors, or else of torch."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def replace_all(text: str, names: dict[str, str]) -> str:
    """Replace regular expressions, one after the other."""
    for pattern, name in names.items():
        text = re.sub(pattern, name, text)
    return text


def words(text: str) -> list[str]:
    return text.split()
