"""What a slot asks of a device. The CPU answers at once; `cuda.py` is the same on streams, pinned memory and graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Program = Callable[[], None]
"""Computes one bucket: from a slot's input buffer into its output buffer."""


class Device(Protocol):
    """Streams, buffers, copies and captures. What a slot computes and copies is within `on(its stream)`."""

    warm_runs: int
    """How often a program runs before it is captured: what chooses its algorithms must have chosen."""
    timed_runs: int
    """How often it is run, without a pause, to learn what it takes."""

    def stream(self) -> Any:
        """A queue of its own: what is on it runs in order, and beside what is on others."""
        ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Everything within goes onto `stream`."""
        ...

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the device, its contents undefined."""
        ...

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host that `copy` takes from and to without waiting."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Put a copy onto the stream. The host's side may be touched again only after `wait`."""
        ...

    def pool(self) -> Any:
        """A pool of memory for programs that are captured for one stream; they never run at once, so they share it."""
        ...

    def capture(self, program: Program, stream: Any, pool: Any) -> Program:
        """The same work as one call, without allocating anything when it is called."""
        ...

    def wait(self, stream: Any) -> None:
        """Until everything on `stream` is done. The waiting thread leaves the CPU to others."""
        ...

    def drain(self) -> None:
        """Until everything on every stream is done. Raises `RuntimeError` where the device is beyond repair."""
        ...

    def free_memory(self) -> None:
        """Give back what is held for later use and not used now."""
        ...


class CpuDevice:
    """Runs everything at once, in order: the slots' reference, and what their tests run on."""

    warm_runs = 1
    timed_runs = 1

    def stream(self) -> Any:
        return None

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=dtype)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self.buffer(shape, dtype)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def pool(self) -> Any:
        return None

    def capture(self, program: Program, stream: Any, pool: Any) -> Program:
        return program

    def wait(self, stream: Any) -> None:
        pass

    def drain(self) -> None:
        pass

    def free_memory(self) -> None:
        pass
