"""What runs a batch: as it comes, or in a slot (`slots.py`)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...types import Pixels, Scores
from .forward import Forward


class Runner(Protocol):
    """Computes one batch at a time; several runners of one backend compute at once."""

    capacity: int
    """The largest batch that it takes."""

    def prepare(self, batch_size: int) -> None:
        """Do once what batches up to `batch_size` need. Raises `OutOfMemory` where not even one image fits."""
        ...

    def run(self, batch: Pixels) -> Scores:
        """Scores `(N, classes)` float32 for `(N, H, W, 3)` uint8. Blocks until they are there."""
        ...

    def close(self) -> None:
        """Let everything go. Nothing may be called afterwards."""
        ...


class EagerRunner:
    """Runs a batch of whatever size as it is, on CPU: nothing to capture, to stage or to wait for."""

    def __init__(self, forward: Forward, capacity: int) -> None:
        self.capacity = capacity
        self._forward: Forward | None = forward

    def prepare(self, batch_size: int) -> None:
        pass

    def run(self, batch: Pixels) -> Scores:
        import torch

        if self._forward is None:
            raise RuntimeError("The runner is closed.")
        with torch.inference_mode():
            scores = self._forward(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
        return np.ascontiguousarray(scores)

    def close(self) -> None:
        self._forward = None
