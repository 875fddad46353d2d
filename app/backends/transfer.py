"""What bringing a batch to the device costs, alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..types import Pixels


def batch_copy(device: str, images: list[Pixels]) -> Callable[[], None]:
    """A call that makes one batch of the images and brings it to where `device` reads it; it returns when it is there.

    On CPU that is the copy into one array. On CUDA the array lies in pinned memory, and is copied over from there.
    """
    batch = np.empty((len(images), *images[0].shape), np.uint8)
    if not device.startswith("cuda"):
        return lambda: _fill(batch, images)
    import torch

    where = torch.device(device.split()[0])
    pinned = torch.from_numpy(batch).pin_memory()
    there = torch.empty_like(pinned, device=where)

    def copy() -> None:
        _fill(pinned.numpy(), images)
        there.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize(where)

    return copy


def _fill(batch: Pixels, images: list[Pixels]) -> None:
    np.stack(images, out=batch)
