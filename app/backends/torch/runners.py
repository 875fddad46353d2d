"""What runs a batch: as it comes, or in a slot (`slots.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np

from ...types import FeatureMaps, Features, Pixels, Scores, Want
from ..base import Batch
from .forward import Forward

if TYPE_CHECKING:
    import torch


class Rows(NamedTuple):
    """A batch's outputs on the host; None where they are not wanted."""

    scores: Scores
    features: Features | None
    feature_maps: FeatureMaps | None

    @classmethod
    def of(cls, parts: Sequence[torch.Tensor | None]) -> Rows:
        """Copies of tensors that lie on the host."""
        scores, features, maps = (None if part is None else np.array(part.numpy(), order="C") for part in parts)
        return cls(cast("Scores", scores), features, maps)


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

    def run_further(self, batch: Batch, want: Want) -> Rows:
        """As `run`, for tensors too, and with what else is wanted. Raises `FeaturesNotAvailable`."""
        ...

    def close(self) -> None:
        """Let everything go. Nothing may be called afterwards."""
        ...


def further(forward: Forward, batch: torch.Tensor, want: Want) -> list[torch.Tensor | None]:
    """Scores, features and feature maps, those that are wanted, on the device of `batch`."""
    if want == Want.SCORES:
        return [forward(batch), None, None]
    scores, features, maps = forward.with_features(batch)
    return [scores, features if Want.FEATURES in want else None, maps if Want.FEATURE_MAPS in want else None]


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

    def run_further(self, batch: Batch, want: Want) -> Rows:
        import torch

        if self._forward is None:
            raise RuntimeError("The runner is closed.")
        with torch.inference_mode():
            parts = further(self._forward, torch.from_numpy(np.ascontiguousarray(batch)), want)
        return Rows.of(parts)

    def close(self) -> None:
        self._forward = None
