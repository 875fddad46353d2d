"""Networks and files of torch's, made for tests: weights that discriminate, and what reads or runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision.models
from torchvision.models.resnet import Bottleneck, ResNet

from app.checkpoints import Contents, Decisions, decide_all, read_checkpoint
from app.networks import build_network, write_graph
from app.networks.alterations import with_altered, with_head
from app.networks.build import module_of
from app.networks.description import Description
from app.networks.fitting import check_fit
from app.networks.resnet import ResNet as DescribedResNet
from app.networks.resnet import describe_resnet
from app.settings import Settings
from tests.examined import Examined, examine
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


class Thin(ResNet):  # type: ignore[misc]  # torchvision has no types
    """A ResNet-50 with a sixteenth of its channels: its layers and names, in files of some 300 kB."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.conv1 = torch.nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(128, 10)

    def _make_layer(self, block: type, planes: int, *options: Any, **named: Any) -> torch.nn.Sequential:
        self.inplanes = 4 if planes == 64 else self.inplanes
        layer: torch.nn.Sequential = super()._make_layer(block, planes // 16, *options, **named)
        return layer


def thin() -> torch.nn.Module:
    """The same under torchvision's own class, with weights that discriminate."""
    network: torch.nn.Module = discriminating(Thin())
    network.__class__ = ResNet
    return network


@dataclass(frozen=True)
class Served:
    """A thin network's file as it would be served."""

    contents: Contents
    decisions: Decisions
    description: Description

    def logits(self, images: torch.Tensor) -> np.ndarray:
        """The torch module's; the ONNX graph of the same description must have them too."""
        found = own_logits(module_of(self.description, self.contents.weights).eval(), images)
        _, _, height, width = images.shape
        graph = write_graph(self.description, self.contents.weights, (height, width), None)
        session = onnxruntime.InferenceSession(b"".join(graph.pieces()), providers=["CPUExecutionProvider"])
        (others,) = session.run(["logits"], {"planes": images.numpy()})
        assert distance(found, others) <= PARITY
        return found

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
    decisions = decide_all(Settings(**settings), contents)
    switches, weights = decisions.switches, contents.weights
    classes = len(weights["fc.weight"]) if "fc.weight" in weights else 1
    description = describe_resnet(DescribedResNet((3, 4, 6, 3), width=4), classes, switches)
    description = with_altered(description, switches.altered)
    if switches.head:
        description = with_head(description, switches.head, weights, "resnet50")
    check_fit("resnet50", description.shapes(), weights)
    return Served(contents, decisions, description)


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
