"""Batching: a bounded queue that becomes batches. Knows no HTTP, no images and no torch; it calls a given function."""

from .batcher import Batcher
from .forecast import DeviceForecast
from .latency import LatencyModel
from .queue import Batched
from .runs import Events
from .schedule import Announcement, Reservation, Schedule, SharedReservations, Shed
from .shedding import retry_after_seconds

__all__ = [
    "Announcement",
    "Batched",
    "Batcher",
    "DeviceForecast",
    "Events",
    "LatencyModel",
    "Reservation",
    "Schedule",
    "SharedReservations",
    "Shed",
    "retry_after_seconds",
]
