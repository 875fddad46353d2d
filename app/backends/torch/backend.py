"""The torch backend: runners behind the backend contract."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ...checkpoints import Checkpoint
from ...errors import DeviceLost, FeaturesNotAvailable, OutOfMemory, SettingError, first_line
from ...networks import build_network
from ...types import Activation, InputSpec, Outputs, Pixels, Preprocessing, Want, is_pixels
from ..base import BackendOptions, Batch
from .devices import CpuDevice, Device
from .faults import Fault, fault_of
from .forward import Forward
from .precision import DevicePlan, place_network, plan_device
from .runners import EagerRunner, Runner
from .slots import Slot

if TYPE_CHECKING:
    import torch

_MAX_BATCH_SIZE = {"cpu": 32, "cuda": 128}


def create_torch_backend(checkpoint: Checkpoint, options: BackendOptions) -> TorchBackend:
    """Build the network of `checkpoint` on the device that `options` names.

    Raises `SettingError` where that device is not to be had or does not hold the network, `CheckpointError` where the
    weights do not fit.
    """
    try:
        import torch
    except ImportError:
        raise SettingError(
            "The torch backend needs PyTorch, which is not installed: pip install torch torchvision. On a CPU, "
            "RESNET_BACKEND=onnx serves a ResNet without it."
        ) from None
    if checkpoint.graph is not None:
        raise SettingError(f"RESNET_BACKEND is torch, but {checkpoint.source} is an ONNX file. Set it to auto or onnx.")
    plan = plan_device(options.device, options.precision)
    if not plan.is_cuda and options.threads is not None:
        torch.set_num_threads(options.threads)
    network = build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches)
    return TorchBackend(network, checkpoint.preprocessing, plan, activation=checkpoint.activation)


class TorchBackend:
    """A torch module behind the backend contract.

    Each batch leases one of `concurrency` runners. They share the weights and nothing else. The batch crosses to the
    device as uint8, a quarter of float32's bytes, and is normalised there.
    """

    name = "torch"
    input_specs = frozenset(InputSpec)

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Preprocessing,
        plan: DevicePlan,
        device: Device | None = None,
        activation: Activation = "softmax",
    ) -> None:
        """`network` is the backend's from here on. `device` is the plan's own unless a test gives another.

        Raises `SettingError` where the device does not hold the network and a batch of one.
        """
        self.concurrency = plan.slots
        self._activation: Activation = activation
        self._crop = preprocessing.crop
        self._device = device or _device(plan)
        self._preparing = threading.Lock()
        self._free: queue.SimpleQueue[Runner] = queue.SimpleQueue()
        self.device = str(plan.device)
        try:
            self._forward: Forward | None
            self._forward, self._runners = self._create_runners(network, preprocessing, plan)
            dtype = self._forward.dtype
        except RuntimeError as error:
            fault = self._fault_of(error)
            if fault is Fault.BATCH:
                raise
            raise self._cannot_start(fault, error) from error
        self.max_batch_size = min(runner.capacity for runner in self._runners)
        self.device = _device_name(plan, dtype)
        for runner in self._runners:
            self._free.put(runner)

    @property
    def wants(self) -> Want:
        every = ~Want(0)
        try:
            self.prepare(InputSpec.PIXELS_U8, every)
        except FeaturesNotAvailable:
            return Want.SCORES
        return every

    def prepare(self, spec: InputSpec, want: Want) -> None:
        if want != Want.SCORES and self._forward is not None:
            # Beside the batches that run, for it takes as long as several of them.
            self._forward.trace()
            self.infer(self._noise(1), want)

    def infer(self, batch: Batch, want: Want) -> Outputs:
        if not self._runners:
            raise RuntimeError("The backend is closed.")
        runner = self._free.get()
        try:
            if want == Want.SCORES and is_pixels(batch):
                return Outputs(runner.run(batch), self._activation)
            scores, features, maps = runner.run_further(batch, want)
            return Outputs(scores, self._activation, features, maps)
        except RuntimeError as error:
            fault = self._fault_of(error)
            if fault is Fault.BATCH:
                raise
            if fault is Fault.LOST:
                raise self._lost(error) from error
            self._free_memory_after(error)
        finally:
            self._free.put(runner)
        raise OutOfMemory(retry_after_seconds=1.0)

    def warm_up(self, batch_size: int) -> None:
        """Prepare every runner for sizes up to `batch_size`, then run once."""
        try:
            with self._all_runners() as runners:
                for runner in runners:
                    runner.prepare(batch_size)
        except OutOfMemory as error:
            raise self._cannot_start(Fault.OUT_OF_MEMORY, error) from error
        except RuntimeError as error:
            if self._fault_of(error) is not Fault.LOST:
                raise
            raise self._lost(error) from error
        self.infer(self._noise(batch_size), Want.SCORES)

    def close(self) -> None:
        with self._all_runners() as runners:
            for runner in runners:
                runner.close()
            self._runners = []
            self._forward = None
        self._device.free_memory()

    def _noise(self, batch_size: int) -> Pixels:
        # Not zeros: denormals and dead paths would time differently. One image for all rows, because making noise for
        # a full batch takes longer than a fast GPU needs for it.
        noise = np.random.default_rng(0).integers(0, 256, (*self._crop, 3), dtype=np.uint8)
        return np.repeat(noise[None], batch_size, axis=0)

    @contextmanager
    def _all_runners(self) -> Iterator[list[Runner]]:
        """Every runner, when none of them runs a batch."""
        with self._preparing:
            leased = [self._free.get() for _ in self._runners]
            try:
                yield leased
            finally:
                for runner in leased:
                    self._free.put(runner)

    def _create_runners(
        self, network: torch.nn.Module, preprocessing: Preprocessing, plan: DevicePlan
    ) -> tuple[Forward, list[Runner]]:
        import torch

        if plan.is_cuda:
            make_float32_exact()
        forward = place_network(network, preprocessing, plan)
        most = _MAX_BATCH_SIZE[plan.device.type]
        if not plan.staged:
            return forward, [EagerRunner(forward, most) for _ in range(plan.slots)]
        with torch.inference_mode():
            classes = forward(torch.zeros((1, *self._crop, 3), dtype=torch.uint8, device=plan.device)).shape[1]
        # The weights came on another stream than the slots', which do not wait for it.
        self._device.drain()
        seconds: dict[int, float] = {}
        runners: list[Runner] = []
        for _ in range(plan.slots):
            slot = Slot(self._device, forward, self._crop, classes, most, graphs=plan.graphs, seconds=seconds)
            runners.append(slot)
            most = slot.capacity
        if plan.is_cuda:
            _choose_algorithms_by_trial()
        return forward, runners

    def _fault_of(self, error: BaseException) -> Fault:
        return fault_of(error, self._device.drain)

    def _free_memory_after(self, error: BaseException) -> None:
        # Its frames hold what had been computed when the memory ran out.
        traceback.clear_frames(error.__traceback__)
        self._device.free_memory()

    def _lost(self, error: BaseException) -> DeviceLost:
        return DeviceLost(f"{self.device} failed: {first_line(error)}")

    def _cannot_start(self, fault: Fault, error: BaseException) -> SettingError:
        is_full = fault is Fault.OUT_OF_MEMORY
        return SettingError(
            f"{self.device} {'has no memory for this network and one image' if is_full else 'does not work'}: "
            f"{first_line(error).rstrip('.')}. {'Free some' if is_full else 'Look at nvidia-smi'}, or set "
            "RESNET_DEVICE to another device or to cpu."
        )


def _device(plan: DevicePlan) -> Device:
    if not plan.is_cuda:
        return CpuDevice()
    from .cuda import CudaDevice

    return CudaDevice(plan.device)


def make_float32_exact() -> None:
    """In this process float32 is float32, for the network and for what half formats are held to.

    By default PyTorch lets convolutions in float32 round their inputs to TF32's 10 bits of mantissa. Whoever wants
    that accuracy has float16, at twice the speed.
    """
    import torch

    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def _choose_algorithms_by_trial() -> None:
    """In this process cuDNN tries its algorithms once for each shape, of which buckets leave few."""
    import torch

    torch.backends.cudnn.benchmark = True


def _device_name(plan: DevicePlan, dtype: torch.dtype) -> str:
    import torch

    numbers = str(dtype).removeprefix("torch.")
    if not plan.is_cuda:
        return f"cpu ({torch.get_num_threads()} threads, {numbers})"
    return f"{plan.device} ({torch.cuda.get_device_name(plan.device)}, {numbers})"
