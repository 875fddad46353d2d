"""The contract of a backend: what runs a network on a device."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from ..types import InputSpec, Outputs, Pixels, Tensor, Want

Batch = Pixels | Tensor
"""`(N, H, W, 3)` uint8 or `(N, 3, H, W)` float32: the dtype tells which `InputSpec` it is."""


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a backend is to run, as the settings of the same names say."""

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    """Threads on CPU; None leaves the choice to the backend."""


class Backend(Protocol):
    """A network on a device. It knows nothing of requests or queues.

    `infer` is called from up to `concurrency` threads at once and never with more than `max_batch_size` images. It may
    not keep or change the batch after it returned.
    """

    name: str
    device: str
    """Where it runs, for a person: "cpu", "cuda:0 (NVIDIA …)"."""
    concurrency: int
    """Batches it can work on at once."""
    max_batch_size: int
    """The largest batch it takes; what the caller plans with may be smaller."""

    @property
    def input_specs(self) -> Set[InputSpec]:
        """The kinds of input that it takes: pixels always. May block for a moment at the first call."""
        ...

    @property
    def wants(self) -> Want:
        """The outputs that it can compute: scores always. May block for a moment at the first call."""
        ...

    def prepare(self, spec: InputSpec, want: Want) -> None:
        """Set up what this combination needs beside pixels and scores, once. Blocks; may run beside `infer`.

        Raises `TensorsNotAvailable` or `FeaturesNotAvailable` where this model cannot do it.
        """
        ...

    def infer(self, batch: Batch, want: Want) -> Outputs:
        """Scores, and what else is wanted, in the order of the batch. Blocks.

        Raises `OutOfMemory` where a smaller batch may fit, `DeviceLost` where only a restart helps, what `prepare`
        raises, and anything else for a batch that failed.
        """
        ...

    def warm_up(self, batch_size: int) -> None:
        """Run pixels → scores once at `batch_size`, so that no request pays for a first time. Blocks.

        After a larger size, what only that needed may be given back.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back. Nothing may be called afterwards."""
        ...
