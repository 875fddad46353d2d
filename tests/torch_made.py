"""Networks and files of torch's, made for tests: weights that discriminate, and what reads or runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.checkpoints import Contents, Decisions, decide, read_checkpoint
from app.networks import build_network
from app.networks.layers import set_altered, set_head
from app.networks.resnet50 import set_switches
from app.opening import Examined, examine
from app.settings import Settings
from tests.lazy import torch, torchvision
from tests.parity.patterns import inputs

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


def thin() -> torch.nn.Module:
    """A ResNet-50 with a sixteenth of its channels: its layers and names, in files of some 300 kB."""
    return discriminating(_thin())


def _thin() -> torch.nn.Module:
    resnet = torchvision.models.resnet

    class Thin(resnet.ResNet):  # type: ignore[misc, name-defined]  # torchvision has no types
        def _make_layer(self, block: type, planes: int, *options: Any, **named: Any) -> torch.nn.Sequential:
            self.inplanes = 4 if planes == 64 else self.inplanes
            return super()._make_layer(block, planes // 16, *options, **named)

    network = Thin(resnet.Bottleneck, [3, 4, 6, 3])
    network.conv1 = torch.nn.Conv2d(3, 4, 7, 2, 3, bias=False)
    network.bn1 = torch.nn.BatchNorm2d(4)
    network.fc = torch.nn.Linear(128, 10)
    network.__class__ = resnet.ResNet
    return network


@dataclass(frozen=True)
class Served:
    """A thin network's file as it would be served."""

    contents: Contents
    decisions: Decisions
    network: torch.nn.Module

    def logits(self, images: torch.Tensor) -> np.ndarray:
        return own_logits(self.network, images)

    def answers(self, images: torch.Tensor) -> np.ndarray:
        """What is served, before a softmax that nothing in the file states."""
        scores = torch.from_numpy(self.logits(images))
        activation = self.decisions.activation
        if activation.source == "the usual way" or activation.value == "none":
            return scores.numpy()
        return (scores.softmax(1) if activation.value == "softmax" else scores.sigmoid()).numpy()


def opened_thin(path: Path, **settings: Any) -> Served:
    """A thin network's file, read and decided as any, in a network that has a ResNet-50's layers and these shapes."""
    contents = read_checkpoint(path)
    decisions = decide(Settings(**settings), contents)
    network = _thin()
    set_switches(network, decisions.switches)
    set_altered(network, decisions.switches.altered)
    if decisions.switches.head:
        set_head(network, decisions.switches.head, contents.weights, "resnet50")
    else:
        network.fc = torch.nn.Linear(*contents.weights["fc.weight"].shape[::-1])
    state = network.state_dict()
    assert contents.weights.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    state |= {name: torch.tensor(values) for name, values in contents.weights.items()}
    network.load_state_dict(state)
    return Served(contents, decisions, network.eval())


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
