"""What bringing a batch to the device costs, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..types import Pixels


def batch_copy(device: str, images: list[Pixels]) -> Callable[[], Any]:
    """A call that makes one batch of the images, brings it to where `device` reads it, and returns it when it is there.

    On CPU that is the copy into one array. On CUDA the array lies in pinned memory, and is copied over from there.
    """
    batch = np.empty((len(images), *images[0].shape), np.uint8)
    if not device.startswith("cuda"):
        return lambda: _fill(batch, images)
    import torch

    where = torch.device(device.split()[0])
    pinned = torch.from_numpy(batch).pin_memory()
    there = torch.empty_like(pinned, device=where)

    def copy() -> torch.Tensor:
        _fill(pinned.numpy(), images)
        there.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize(where)
        return there

    return copy


def _fill(batch: Pixels, images: list[Pixels]) -> Pixels:
    return np.stack(images, out=batch)
