"""CUDA behind the device contract: everything here needs a GPU, and nothing else in this package does."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .devices import Program

if TYPE_CHECKING:
    import torch

# One capture at a time in a process, and while it lasts nobody waits for the whole device or gives memory back: CUDA
# and torch's allocator forbid both.
_capturing = threading.Lock()


class CudaDevice:
    """Streams, pinned buffers and graphs of one GPU."""

    # torch's own number for captures ("CUDA semantics", notes on CUDA graphs); cuDNN chooses in the first.
    warm_runs = 3
    timed_runs = 8

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: dict[Any, Any] = {}

    def stream(self) -> Any:
        import torch

        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # Blocking: a waiting thread sleeps, so that the threads that decode have the CPU. It costs some microseconds.
        self._events[stream] = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        return stream

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        import torch

        return torch.cuda.stream(stream)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=dtype, device=self._device)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def pool(self) -> Any:
        import torch

        return torch.cuda.graph_pool_handle()

    def capture(self, program: Program, stream: Any, pool: Any) -> Program:
        import torch

        graph = torch.cuda.CUDAGraph()
        # thread_local: another model's batches may run, and allocate, on threads of theirs meanwhile.
        with _capturing, torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            program()
        return graph.replay

    def wait(self, stream: Any) -> None:
        event = self._events[stream]
        event.record(stream)
        event.synchronize()

    def drain(self) -> None:
        import torch

        with _capturing:
            torch.cuda.synchronize(self._device)

    def free_memory(self) -> None:
        import torch

        with _capturing:
            torch.cuda.empty_cache()
