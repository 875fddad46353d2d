"""JPEGs on a CUDA card: decoded by nvJPEG through torchvision, cropped and resized with Pillow's pixels."""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DeviceLost, OutOfMemory, SettingError
from ...images.device_images import CropPlan, DeviceImage, Sums
from ...types import Pixels
from .devices import Device
from .faults import Fault, fault_of, first_line
from .precision import plan_device

if TYPE_CHECKING:
    import torch

Read = Callable[["list[torch.Tensor]"], "list[torch.Tensor]"]
"""Files, each uint8 of one dimension on the host, → their pixels `(3, height, width)` uint8 on the device."""

_HALF, _BITS = 1 << 21, 22
# What one step of a pass may take: a byte and a product of four for each tap of each pixel.
_STEP_BYTES, _BYTES_A_TAP = 64_000_000, 5
_REMEMBERED = 128
# torchvision.io.ImageReadMode.RGB
_RGB = 3
# From within torchvision's operator every error comes as a RuntimeError. Torch's has its own words, or with an earlier
# torch only what was called; nvJPEG's is a number, NVJPEG_STATUS_ALLOCATOR_FAILURE. (Of a stream it is CUDA's number.)
_NO_MEMORY = re.compile(r"CUDA out of memory|aten::empty.*API call failed|Failed to (?!synchronize CUDA stream).*: 5\b")


def open_jpegs(device: str) -> TorchJpegs:
    """nvJPEG on the card that the setting `device` means.

    Raises `SettingError` where there is none, or the installed torchvision has no nvJPEG.
    """
    import torch

    from .cuda import CudaDevice

    plan = plan_device(device, "auto")
    if not plan.is_cuda:
        raise SettingError(
            "RESNET_DECODER is gpu, but PyTorch finds no CUDA device. Set RESNET_DECODER to threads, or give the "
            "process a GPU (for containers: docker-compose.gpu.yml and the NVIDIA container toolkit)."
        )
    name = f"{plan.device} ({torch.cuda.get_device_name(plan.device)})"
    return TorchJpegs(CudaDevice(plan.device), nvjpeg(plan.device), name)


def nvjpeg(device: torch.device) -> Read:
    """torchvision's nvJPEG for one card.

    The operator itself and not `torchvision.io.decode_jpeg` around it, which warns at each call that it is deprecated.
    Raises `SettingError` where this torchvision has no such operator.
    """
    import torch

    try:
        importlib.import_module("torchvision.io")  # loads the library that has the operator

        decode = torch.ops.image.decode_jpegs_cuda
    except (ImportError, AttributeError):
        raise SettingError(
            "RESNET_DECODER is gpu, but the torchvision that is installed decodes no JPEGs on CUDA (0.29 does and says "
            "that a later release will not). Set RESNET_DECODER to threads, or install torchvision 0.29 with the "
            "PyTorch that it is built for."
        ) from None
    return lambda files: list(decode(files, _RGB, device))


class TorchJpegs:
    """A `JpegDevice` on one stream of a device.

    A list is read, each image is resized in two passes of whole numbers, and the crops are copied into one pinned
    buffer; the host waits before reading, and once for all at the end.
    """

    def __init__(self, device: Device, read: Read, name: str) -> None:
        self.name = name
        self._device = device
        self._read = read
        self._stream: Any = device.stream()
        self._host: torch.Tensor | None = None
        self._on_device = lru_cache(_REMEMBERED)(self._copied)

    def decode(self, images: Sequence[DeviceImage]) -> list[Pixels | None]:
        return self._guarded(lambda: self._decoded(images))

    def crop(self, pixels: Pixels, plan: CropPlan) -> Pixels:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        [crop] = self._guarded(lambda: self._to_host([self._cropped(self._moved(planes), plan)]))
        if crop is None:
            raise ValueError("These pixels are not what the plan is for.")
        return crop

    def close(self) -> None:
        self._on_device.cache_clear()
        self._host = None
        self._device.free_memory()

    def _guarded(self, work: Callable[[], list[Pixels | None]]) -> list[Pixels | None]:
        """`work` on the stream; its errors as the contract has them."""
        import torch

        with torch.inference_mode(), self._device.on(self._stream):
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                fault = self._fault_of(error)
                if fault is Fault.LOST:
                    raise DeviceLost(f"{self.name} failed: {first_line(error)}") from error
                if fault is Fault.BATCH:
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold what had been decoded
        # What torch's allocator keeps for later is nothing that nvJPEG, which has its own, could use.
        self._device.free_memory()
        raise OutOfMemory(retry_after_seconds=1.0)

    def _fault_of(self, error: BaseException) -> Fault:
        # Not only to see whether the device still answers: what nvJPEG had begun when it failed on another image of the
        # list still writes, into memory that the error has given back and the next list would be given.
        try:
            self._device.drain()
        except RuntimeError:
            return Fault.LOST
        fault = fault_of(error)
        return Fault.OUT_OF_MEMORY if fault is Fault.BATCH and _NO_MEMORY.search(str(error)) else fault

    def _decoded(self, images: Sequence[DeviceImage]) -> list[Pixels | None]:
        # nvJPEG writes on a stream of its own, and its hardware engine does not wait even for that one's work. What it
        # writes to is memory of this stream: such as was given back while kernels and copies that read it were still
        # queued, and is given out again as if they had run (pytorch/vision#9606, meta-pytorch/torchcodec#1634). So
        # nothing may be queued here when it begins. What is on other streams has other memory, and is not waited for.
        self._device.wait(self._stream)
        planes = self._read([_as_tensor(image.data[: image.end]) for image in images])
        if len(planes) != len(images):
            raise RuntimeError(f"{len(planes)} images of {len(images)} were decoded.")
        return self._to_host([self._cropped(each, image.crop) for each, image in zip(planes, images, strict=True)])

    def _cropped(self, planes: torch.Tensor, plan: CropPlan) -> torch.Tensor | None:
        """`(height, width, 3)` uint8; None where the planes are not of the size that the header says."""
        import torch

        width, height = plan.stored
        if planes.shape != (3, height, width) or planes.dtype != torch.uint8:
            return None
        upright = planes.transpose(1, 2) if plan.is_on_its_side else planes
        # Of the rows only those that the second pass reads.
        first, end = int(plan.down.at.min()), int(plan.down.at.max()) + 1
        at, weights = self._on_device(plan.across)
        across = weighted_sums(upright[:, first:end], 2, at, weights)
        at, weights = self._on_device(plan.down)
        return weighted_sums(across, 1, at - first, weights).permute(1, 2, 0).contiguous()

    def _to_host(self, crops: Sequence[torch.Tensor | None]) -> list[Pixels | None]:
        sizes = [0 if crop is None else crop.numel() for crop in crops]
        host = self._host_buffer(sum(sizes))
        ends = np.cumsum(sizes).tolist()
        for crop, size, end in zip(crops, sizes, ends, strict=True):
            if crop is not None:
                self._device.copy(host[end - size : end], crop.reshape(-1))
        self._device.wait(self._stream)
        return [
            None if crop is None else np.array(host[end - size : end].numpy()).reshape(tuple(crop.shape))
            for crop, size, end in zip(crops, sizes, ends, strict=True)
        ]

    def _host_buffer(self, size: int) -> torch.Tensor:
        """Pinned, as large as the largest list so far: to pin memory takes longer than to fill it."""
        import torch

        if self._host is None or len(self._host) < size:
            self._host = self._device.host_buffer((size,), torch.uint8)
        return self._host

    def _copied(self, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        return self._moved(sums.at), self._moved(sums.weights)

    def _moved(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        import torch

        source = torch.from_numpy(array)
        target = self._device.buffer(tuple(source.shape), source.dtype)
        return target.copy_(source)


def weighted_sums(source: torch.Tensor, dim: int, at: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """One pass of `CropPlan` along `dim` of uint8 `source`, in whole numbers: the order of a sum does not matter."""
    import torch

    taps, count = at.shape
    others = source.numel() // source.shape[dim]
    taps_a_step = max(1, _STEP_BYTES // (_BYTES_A_TAP * max(1, others * count)))
    before, behind = source.shape[:dim], source.shape[dim + 1 :]

    def part(step: slice) -> torch.Tensor:
        levels = source.index_select(dim, at[step].reshape(-1)).reshape(*before, -1, count, *behind)
        products = levels * weights[step].reshape(-1, count, *(1 for _ in behind))
        return products.sum(dim, dtype=torch.int32)

    sums = reduce(torch.add, (part(slice(first, first + taps_a_step)) for first in range(0, taps, taps_a_step)))
    return ((sums + _HALF) >> _BITS).clamp_(0, 255).to(torch.uint8)


def _as_tensor(data: bytes) -> torch.Tensor:
    import torch

    # A copy: torch warns of memory that cannot be written to.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
