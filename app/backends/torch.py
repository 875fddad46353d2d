"""PyTorch: the reference on CPU and the default on CUDA."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints import Checkpoint
from ..errors import DeviceLost, OutOfMemory, SettingError
from ..networks import build_network
from ..types import InputSpec, Outputs, Pixels, Preprocessing, Want
from .base import BackendOptions

if TYPE_CHECKING:
    import torch

_MAX_BATCH_SIZE = {"cpu": 32, "cuda": 128}
_CUDA_SLOTS = 2
_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
# Tensor cores came with compute capability 7.0 (CUDA C++ Programming Guide, "Compute Capabilities").
_TENSOR_CORES_SINCE = (7, 0)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where the network runs and in which number format."""

    device: torch.device
    dtype: torch.dtype
    slots: int
    """Batches in flight: one computes while the other's transfer and answer overlap with it."""
    staged: bool
    """Whether batches leave through a buffer that each slot keeps; on CUDA it is pinned, so transfers do not block."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def create_torch_backend(checkpoint: Checkpoint, options: BackendOptions) -> TorchBackend:
    """Build the network of `checkpoint` on the device that `options` names.

    Raises `SettingError` where that device is not to be had, `CheckpointError` where the weights do not fit.
    """
    import torch

    if checkpoint.graph is not None:
        raise SettingError(f"RESNET_BACKEND is torch, but {checkpoint.source} is an ONNX file. Set it to auto or onnx.")
    plan = plan_device(options.device, options.precision)
    if not plan.is_cuda and options.threads is not None:
        torch.set_num_threads(options.threads)
    return TorchBackend(
        build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches), checkpoint.preprocessing, plan
    )


def plan_device(device: str, precision: str) -> DevicePlan:
    """Resolve "auto" and check that the device is there. Half precision is the default where tensor cores make it fast.

    float16 and not bfloat16: its 10 bits of mantissa keep probabilities within about 5e-3 of float32, and a normalised
    network's activations are far from its range.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if available else 0
        chosen = torch.device(device)
        if not available or (chosen.index or 0) >= count:
            raise SettingError(
                f"RESNET_DEVICE is {device}, but PyTorch finds {count} CUDA devices. Set RESNET_DEVICE=cpu, or give "
                f"the process a GPU (for containers: docker-compose.gpu.yml and the NVIDIA container toolkit)."
            )
        chosen = torch.device("cuda", chosen.index or 0)
        if precision == "auto":
            fast = torch.cuda.get_device_capability(chosen) >= _TENSOR_CORES_SINCE
            precision = "float16" if fast else "float32"
        return DevicePlan(chosen, getattr(torch, precision), _CUDA_SLOTS, staged=True)
    dtype = getattr(torch, "float32" if precision == "auto" else precision)
    return DevicePlan(torch.device("cpu"), dtype, 1, staged=False)


class TorchBackend:
    """A torch module behind the backend contract.

    The batch crosses to the device as uint8, a quarter of float32's bytes, and is normalised there. On CUDA each slot
    (a thread that calls `infer`) has a stream and a pinned buffer of its own.
    """

    name = "torch"
    input_specs = frozenset({InputSpec.PIXELS_U8})

    def __init__(self, network: torch.nn.Module, preprocessing: Preprocessing, plan: DevicePlan) -> None:
        import torch

        self._torch = torch
        self._plan = plan
        self._crop = preprocessing.crop
        self._is_bgr = preprocessing.is_bgr
        self.concurrency = plan.slots
        self.max_batch_size = _MAX_BATCH_SIZE[plan.device.type]
        self.device = _device_name(plan)
        network = network.eval().to(device=plan.device, dtype=plan.dtype)
        self._network: torch.nn.Module | None = network.to(memory_format=torch.channels_last)
        # (pixel / 255 - mean) / std as one multiplication and one addition, computed in float32 on the device.
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, 3, 1, 1)
        self._scale = (1 / (255 * std)).to(plan.device, torch.float32)
        self._shift = (-mean / std).to(plan.device, torch.float32)
        self._slots = threading.local()

    def infer(self, batch: Pixels, want: Want) -> Outputs:
        try:
            return self._infer(batch)
        except RuntimeError as error:
            raise self._told_apart(error) from error

    def _told_apart(self, error: RuntimeError) -> Exception:
        """Out of memory, beyond repair, or what it was."""
        torch = self._torch
        if isinstance(error, torch.OutOfMemoryError) or _CPU_OUT_OF_MEMORY in str(error):
            if self._plan.is_cuda:
                torch.cuda.empty_cache()
            return OutOfMemory(retry_after_seconds=1.0)
        # After such an error every further call in this process fails too (CUDA runtime API: "sticky" errors).
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            return DeviceLost(f"{self.device} failed: {str(error).splitlines()[0][:200]}")
        return error

    def _infer(self, batch: Pixels) -> Outputs:
        torch = self._torch
        assert self._network is not None
        slot = self._own_slot()
        with torch.inference_mode(), slot.stream():
            pixels = slot.to_device(batch)
            planes = pixels.permute(0, 3, 1, 2)
            if self._is_bgr:
                planes = planes.flip(1)
            inputs = (planes.to(torch.float32) * self._scale).add_(self._shift)
            logits = self._network(inputs.to(self._plan.dtype, memory_format=torch.channels_last))
            # `.cpu()` waits for this slot's stream alone.
            scores = logits.to(torch.float32).cpu().numpy()
        return Outputs(np.ascontiguousarray(scores), "logits")

    def warm_up(self, batch_size: int) -> None:
        # Grey noise and not zeros: denormals and dead paths would time differently.
        noise = np.random.default_rng(0).integers(0, 256, (batch_size, *self._crop, 3), dtype=np.uint8)
        self.infer(noise, Want.SCORES)

    def close(self) -> None:
        self._network = None
        if self._plan.is_cuda:
            self._torch.cuda.empty_cache()

    def _own_slot(self) -> _Slot:
        slot: _Slot | None = getattr(self._slots, "slot", None)
        if slot is None:
            slot = self._slots.slot = _Slot(self._plan, (self.max_batch_size, *self._crop, 3))
        return slot


class _Slot:
    """What one thread that calls `infer` has to itself: a stream, and a pinned buffer that batches leave from."""

    def __init__(self, plan: DevicePlan, largest: tuple[int, ...]) -> None:
        import torch

        self._plan = plan
        self._stream = torch.cuda.Stream(plan.device) if plan.is_cuda else None  # type: ignore[no-untyped-call]
        self._staging: torch.Tensor | None = None
        if plan.staged:
            self._staging = torch.empty(largest, dtype=torch.uint8, pin_memory=plan.is_cuda)

    def stream(self) -> AbstractContextManager[Any]:
        """Everything within runs on this slot's stream."""
        import torch

        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def to_device(self, batch: Pixels) -> torch.Tensor:
        """`(N, H, W, 3)` uint8 on the device, without waiting for the transfer."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(batch))
        if self._staging is not None:
            # The slot's previous batch has left the buffer: `infer` returned only when its stream was done.
            pixels = self._staging[: len(batch)].copy_(pixels)
        return pixels.to(self._plan.device, non_blocking=True)


def _device_name(plan: DevicePlan) -> str:
    import torch

    if not plan.is_cuda:
        return f"cpu ({torch.get_num_threads()} threads, {str(plan.dtype).removeprefix('torch.')})"
    card = torch.cuda.get_device_name(plan.device)
    return f"{plan.device} ({card}, {str(plan.dtype).removeprefix('torch.')})"
