"""Pixels → logits: normalisation on the device, then the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...types import Preprocessing

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

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(N, classes)` float32 logits for `(N, H, W, 3)` uint8 RGB on the device."""
        import torch

        planes = pixels.permute(0, 3, 1, 2)
        if self._is_bgr:
            planes = planes.flip(1)
        inputs = (planes.to(torch.float32) * self._scale).add_(self._shift)
        logits: torch.Tensor = self.network(inputs.to(self.dtype, memory_format=torch.channels_last))
        return logits.to(torch.float32)
