"""The contract of an engine: batches images and runs the network on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..batching import DeviceForecast
from ..errors import DeviceLost
from ..types import Outputs, Pixels, Tensor, Want


@dataclass(frozen=True, slots=True)
class EngineState:
    """Whether work is taken, why not, and what the device does now."""

    ready: bool
    reason: str | None
    """None where it is ready; "warming", "restarting", "closed" or "lost", which only a restart cures."""
    device: DeviceForecast


@dataclass(frozen=True, slots=True)
class Scored:
    """One image's outputs, rows without a batch axis, and how they came about; times in seconds."""

    outputs: Outputs
    batch_size: int
    queue_seconds: float
    inference_seconds: float


class Engine(Protocol):
    """Batches images and runs the network on them."""

    async def start(self) -> None:
        """Warm up and take work from then on."""
        ...

    async def run(self, item: Pixels | Tensor, want: Want, deadline: float) -> Scored:
        """What is wanted of one image, at the model's size; cancelling the call takes it out of the queue.

        `deadline` is an absolute monotonic time. Raises `Overloaded`, `DeadlineExceeded`, `OutOfMemory`,
        `EngineUnavailable` or `Internal`, and where the model cannot do it `TensorsNotAvailable` or
        `FeaturesNotAvailable`.
        """
        ...

    def state(self) -> EngineState: ...

    async def until_lost(self) -> DeviceLost:
        """Wait until the engine is beyond repair, and say why: for ever, if all goes well."""
        ...

    async def close(self) -> None:
        """Finish what runs, fail what waits, and give the device back."""
        ...
