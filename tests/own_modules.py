"""Modules of a user's own, of which a checkpoint may hold pickles or code. It needs torch: tests import it lazily."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from app.checkpoints.presets import PRESETS


class SqueezeAndExcitation(nn.Module):
    """An attention of one's own."""


class Clamp(nn.Module):
    """An activation of one's own: what its code does is not known from its layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, 0, 0.5)


class Bespoke(nn.Module):
    """One dense layer under a class that nothing knows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 3)


class BackboneAndHead(nn.Module):
    """As people write them."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(network.children())[:-2])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return result


class Around(nn.Module):
    """A network within a class whose `forward` is given; it has ImageNet's mean and deviation as buffers."""

    def __init__(self, net: nn.Module, forward: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.net = net
        self.own = forward
        preset = PRESETS["torchvision-v1"]
        self.register_buffer("mean", torch.tensor(preset.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preset.std).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> Any:
        return self.own(self, image)


class Loud(nn.Module):
    """Computes with numbers as large as `level` on the way to modest logits."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level), requires_grad=False)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = planes.mean((2, 3))
        return means * self.level / self.level


class Synchronising(nn.Module):
    """Looks at a value on the host, which no CUDA graph's capture allows."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = planes.mean((2, 3))
        return means * (2.0 if float(means.sum()) > -1e30 else 1.0)


class Small(nn.Module):
    """A pool of its own kind and a head of two layers, the first of which changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6))
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Linear(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(x).mean([2, 3]))
        return scores
