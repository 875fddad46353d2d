"""timm's resnet50c, d, s and t: torchvision's bottlenecks behind a stem of three 3×3 convolutions."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class DeepStem(NamedTuple):
    widths: tuple[int, int, int]
    is_pooled: bool
    """Whether a projection averages 2×2 points where it has a stride, in place of skipping three of four."""


# timm/models/resnet.py: stem_width, stem_type and avg_down of each.
DEEP_STEMS = {
    "resnet50c": DeepStem((32, 32, 64), is_pooled=False),
    "resnet50d": DeepStem((32, 32, 64), is_pooled=True),
    "resnet50s": DeepStem((64, 64, 128), is_pooled=False),
    "resnet50t": DeepStem((24, 32, 64), is_pooled=True),
}


def create_deep_stem(architecture: str, classes: int) -> nn.Module:
    """The network under timm's names."""
    first, second, width = DEEP_STEMS[architecture].widths
    network: nn.Module = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=classes)
    stem = nn.Sequential(
        nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=True),
        nn.Conv2d(second, width, 3, padding=1, bias=False),
    )
    network.add_module("conv1", stem)
    network.add_module("bn1", nn.BatchNorm2d(width))
    entrance = network.get_submodule("layer1.0")
    entrance.add_module("conv1", nn.Conv2d(width, 64, 1, bias=False))
    projections = {1: (width, 256, 1), 2: (256, 512, 2), 3: (512, 1024, 2), 4: (1024, 2048, 2)}
    for stage, (inputs, outputs, stride) in projections.items():
        block = network.get_submodule(f"layer{stage}.0")
        block.add_module("downsample", _projection(inputs, outputs, stride, DEEP_STEMS[architecture].is_pooled))
    return network


def _projection(inputs: int, outputs: int, stride: int, is_pooled: bool) -> nn.Sequential:
    if not is_pooled:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    pool: nn.Module = nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
