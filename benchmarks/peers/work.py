"""The classification that every peer runs: torchvision's transforms, and a ResNet-50 with the weights of one file.

`PEER_WEIGHTS` names that file, a state dict in safetensors. If it is empty the network is left out, and only the
server's own cost remains. Runs in the peer's environment, which shares PyTorch with this project's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import resnet50
from torchvision.transforms import v2

MAX_BATCH_SIZE = 8
MAX_DELAY_SECONDS = 0.01

_transform = v2.Compose(
    [
        v2.Resize(256),
        v2.CenterCrop(224),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def prepare(data: bytes) -> torch.Tensor:
    """An encoded image → `(3, 224, 224)` float32."""
    tensor: torch.Tensor = _transform(Image.open(io.BytesIO(data)).convert("RGB"))
    return tensor


class Network:
    """A ResNet-50 as a user would load it, on all cores."""

    def __init__(self) -> None:
        self._network = None
        if path := os.environ["PEER_WEIGHTS"]:
            network = resnet50()
            network.load_state_dict(load_file(path))
            self._network = network.eval().to(memory_format=torch.channels_last)

    def __call__(self, images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """The five most probable classes of each image."""
        with torch.inference_mode():
            if self._network is None:
                scores = torch.zeros(len(images), 1000)
            else:
                scores = self._network(torch.stack(list(images)).to(memory_format=torch.channels_last))
            best = scores.softmax(1).topk(5)
        return [
            {
                "predictions": [
                    {"class_id": int(c), "probability": float(p)} for c, p in zip(classes, values, strict=True)
                ]
            }
            for classes, values in zip(best.indices, best.values, strict=True)
        ]
