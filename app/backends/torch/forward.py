"""Pixels or tensors → logits and features: normalisation on the device, then the network."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ...errors import FeaturesNotAvailable
from ...types import Preprocessing
from .pooling import is_global, with_features

if TYPE_CHECKING:
    import torch


class Forward:
    """A network and the arithmetic before and after it. Holds the weights; callable from several threads at once."""

    def __init__(
        self, network: torch.nn.Module, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`network` is moved and changed; it is the caller's no longer."""
        import torch

        self.dtype = dtype
        self._is_bgr = preprocessing.is_bgr
        network = network.eval().to(device=device, dtype=dtype)
        self.network: torch.nn.Module = network.to(memory_format=torch.channels_last)
        # Computed in float32, on the device.
        scale, shift = preprocessing.scale_and_shift()
        self._scale = torch.from_numpy(scale).view(1, 3, 1, 1).to(device)
        self._shift = torch.from_numpy(shift).view(1, 3, 1, 1).to(device)
        self._lock = threading.Lock()
        self._extended: torch.nn.Module | type[FeaturesNotAvailable] | None = None
        self._is_checked = False

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """`(N, classes)` float32 logits, on the device.

        For `(N, H, W, 3)` uint8 RGB, or for `(N, 3, H, W)` float32 that is normalised.
        """
        import torch

        logits: torch.Tensor = self.network(self._inputs(batch))
        return logits.to(torch.float32)

    def trace(self) -> None:
        """Set up `with_features`, once; takes a part of a second. Raises as it does."""
        with self._lock:
            if self._extended is None:
                self._extended = with_features(self.network) or FeaturesNotAvailable
        if isinstance(self._extended, type):
            raise self._extended()

    def with_features(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, features `(N, C)` and feature maps `(N, C, h, w)`, all float32 on the device.

        Raises `FeaturesNotAvailable` where the network has no global average pool.
        """
        import torch

        self.trace()
        assert isinstance(self._extended, torch.nn.Module)
        logits, pooled, maps = (part.to(torch.float32) for part in self._extended(self._inputs(batch)))
        if not self._is_checked:
            if not is_global(maps, pooled):
                self._extended = FeaturesNotAvailable
                raise FeaturesNotAvailable()
            self._is_checked = True
        return logits, pooled.flatten(1), maps

    def _inputs(self, batch: torch.Tensor) -> torch.Tensor:
        import torch

        if batch.dtype != torch.uint8:
            return batch.to(self.dtype, memory_format=torch.channels_last)
        planes = batch.permute(0, 3, 1, 2)
        if self._is_bgr:
            planes = planes.flip(1)
        inputs = (planes.to(torch.float32) * self._scale).add_(self._shift)
        return inputs.to(self.dtype, memory_format=torch.channels_last)
