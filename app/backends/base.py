"""The contract of a backend, whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..types import InputSpec, Outputs, Pixels, Want


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a backend is to run, as the settings of the same names say."""

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    """Threads on CPU; None leaves the choice to the backend."""


class Backend(Protocol):
    """A network on a device. It is given pixels and answers with scores; it knows nothing of requests or queues.

    `infer` is called from up to `concurrency` threads at once and never with more than `max_batch_size` images. It may
    not keep or change the batch after it returned.
    """

    name: str
    device: str
    """Where it runs, for a person: "cpu", "cuda:0 (NVIDIA …)"."""
    input_specs: frozenset[InputSpec]
    """What it takes. For `PIXELS_U8`: `(N, H, W, 3)` uint8 RGB at the model's size; normalisation is the backend's."""
    concurrency: int
    """Batches it can work on at once."""
    max_batch_size: int
    """The largest batch it takes; what the caller plans with may be smaller."""

    def infer(self, batch: Pixels, want: Want) -> Outputs:
        """Scores `(N, classes)` float32 for `(N, H, W, 3)` uint8, in the order of the batch. Blocks.

        Raises `OutOfMemory` where a smaller batch may fit, `DeviceLost` where only a restart helps, and anything else
        for a batch that failed.
        """
        ...

    def warm_up(self, batch_size: int) -> None:
        """Run once at `batch_size`, so that no request pays for a first time. Blocks.

        After a larger size, what only that needed may be given back.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back. Nothing may be called afterwards."""
        ...
