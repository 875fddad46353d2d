"""ResNet-50 with the activation before the convolution (He et al., 2016), as Keras's ResNet50V2 has it.

Names, which `checkpoints.families` maps Keras's to: `stem`; `layer{1…4}.{block}.` with `preact, reduce, reduce_bn,
spatial, spatial_bn, expand` and, in a stage's first block, `shortcut`; `norm`; `fc`. The stem, `expand` and `shortcut`
have biases: what comes behind them is a sum, or a pool, and no normalisation that could take the bias up.
"""

from __future__ import annotations

import torch
from torch import nn

EPSILON = 1.001e-5  # keras/applications/resnet.py
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class _Block(nn.Module):
    """`x + expand(spatial(reduce(preact(x))))`; a projection starts from preact(x), an identity from x."""

    def __init__(self, inputs: int, width: int, stride: int, is_first: bool) -> None:
        super().__init__()
        outputs = 4 * width
        self.preact = nn.BatchNorm2d(inputs, EPSILON)
        self.reduce = nn.Conv2d(inputs, width, 1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(width, EPSILON)
        self.spatial = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.spatial_bn = nn.BatchNorm2d(width, EPSILON)
        self.expand = nn.Conv2d(width, outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if is_first else None
        # Keras skips points with a 1×1 pool where the stride is.
        self.skip = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.preact(x))
        x = self.skip(x) if self.shortcut is None else self.shortcut(y)
        y = torch.relu(self.reduce_bn(self.reduce(y)))
        y = torch.relu(self.spatial_bn(self.spatial(y)))
        total: torch.Tensor = x + self.expand(y)
        return total


class ResNet50V2(nn.Module):
    """`(N, 3, H, W)` → `(N, classes)` logits."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        # Zeros around the pool and not minus infinity: nothing has cut off what is below zero yet.
        self.pool = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, stride=2))
        inputs = 64
        for number, (width, blocks) in enumerate(_STAGES, start=1):
            # The stride stands in a stage's last block; the last stage has none.
            stride = 2 if number < len(_STAGES) else 1
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(_Block(inputs, width, stride if block == blocks - 1 else 1, is_first=block == 0))
                inputs = 4 * width
            self.add_module(f"layer{number}", stage)
        self.norm = nn.BatchNorm2d(inputs, EPSILON)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        scores: torch.Tensor = self.fc(torch.relu(self.norm(x)).mean((2, 3)))
        return scores
