"""torchvision's bottleneck with three activations, where a checkpoint states different ones."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

ACTIVATIONS = ("act1", "act2", "act3")


class SeparateActivations(Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """An activation behind each of a bottleneck's normalisations, the last one behind the sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        result: torch.Tensor = self.act3(self.bn3(self.conv3(out)) + identity)
        return result


def set_activation(network: nn.Module, block: str, part: str, activation: nn.Module) -> None:
    """Make `part` (act1, act2 or act3) of the bottleneck `block` the module `activation`."""
    module = network.get_submodule(block)
    if not isinstance(module, SeparateActivations):
        for name in ACTIVATIONS:
            module.add_module(name, module.get_submodule("relu"))
        module.__class__ = SeparateActivations
    module.add_module(part, activation)
