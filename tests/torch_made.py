"""Networks and files of torch's, made for tests: weights that discriminate, and what reads or runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models

from app.checkpoints import Contents
from app.networks import build_network
from app.opening import Examined, examine
from app.settings import Settings
from tests.parity.patterns import inputs

torch.set_num_threads(1)
PARITY = 1e-4


def discriminating(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`network` with seeded weights among whose logits a wrong stride, padding or epsilon shows (see patterns.py)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(*((0.05, 0.4) if name.endswith("bn3") else (0.8, 1.2)))
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.2)
                module.bias.normal_(0, 0.02)
    return network.eval()


def caffe_like() -> torch.nn.Module:
    """A torchvision ResNet-50 with every switch turned: stride in the 1×1, epsilon 1e-3, pool at the end."""
    network = torchvision.models.resnet50(num_classes=10)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    network.maxpool = torch.nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    return discriminating(network)


def photos() -> torch.Tensor:
    """`(3, 3, 224, 224)`: three photos as a network takes them."""
    return torch.from_numpy(inputs().transpose(0, 3, 1, 2).copy())


def opened(path: Path, **settings: Any) -> Examined:
    return examine(Settings(**settings), path)


def logits_of(examined: Examined, images: torch.Tensor) -> np.ndarray:
    checkpoint = examined.checkpoint
    network = build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches).eval()
    with torch.inference_mode():
        return np.asarray(network(images).numpy())


def own_logits(network: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(network(images).numpy())


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def told_switches(contents: Contents) -> tuple[Any, ...]:
    told = contents.told
    decisions = (told.stride_in, told.stem, told.pool, told.epsilon)
    return tuple(decision.value if decision else None for decision in decisions)
