"""The number of processes, and each one's share of the settings' limits for the whole service."""

from __future__ import annotations

import sys
from pathlib import Path

from ..decoding import plan_decoding
from ..errors import SettingError
from ..resources import available_cpus
from ..settings import Settings

_MOST_BY_DEFAULT = 8
_CPUS_EACH = 4
# A GPU answers faster than a few front-ends can decode.
_CPUS_EACH_BESIDE_A_GPU = 2
_NVIDIA = Path("/dev/nvidiactl")


def count_workers(settings: Settings, cpus: int | None = None) -> int:
    """The number of front-ends that the settings ask for. Reads files.

    Raises `SettingError` if the system does not support several.
    """
    if settings.http_workers == "auto":
        if sys.platform != "linux":
            return 1
        cpus = cpus or available_cpus()
        each = _CPUS_EACH_BESIDE_A_GPU if _uses_gpu(settings) else _CPUS_EACH
        return min(max(1, cpus // each), _MOST_BY_DEFAULT, _most(settings))
    if settings.http_workers > 1 and sys.platform != "linux":
        raise SettingError("RESNET_HTTP_WORKERS (--http-workers) can only be 1 here: several processes need Linux.")
    return settings.http_workers


def divide(settings: Settings, workers: int) -> list[Settings]:
    """Each front-end's own settings: decoders, their memory, uploads and received bytes, divided evenly.

    A share of received bytes is never smaller than the largest body: otherwise no front-end could accept one. The queue
    is not divided: the front-ends count their reservations together. Raises `SettingError` if there are fewer decoders
    than front-ends.
    """
    most = _most(settings)
    if workers > most:
        raise SettingError(
            f"RESNET_HTTP_WORKERS (--http-workers) cannot be {workers}: each decodes at least one image at a time, and "
            f"all together decode {most} (RESNET_DECODE_THREADS, RESNET_DECODE_MEMORY_BYTES)."
        )
    if settings.decode_threads == "auto":
        settings = settings.model_copy(update={"decode_threads": max(workers, plan_decoding(settings).slots)})
    plan = plan_decoding(settings)
    largest_body = max(settings.max_body_bytes, settings.max_batch_body_bytes)
    divided = []
    for number in range(workers):
        slots, spare = (_share(whole, number, workers) for whole in (plan.slots, plan.spare))
        divided.append(
            settings.model_copy(
                update={
                    "decode_threads": slots,
                    "decode_memory_bytes": (slots + spare) * plan.slot_bytes,
                    "max_connections": settings.max_connections
                    if settings.max_connections == "auto"
                    else max(1, _share(settings.max_connections, number, workers)),
                    "max_open_uploads": max(1, _share(settings.max_open_uploads, number, workers)),
                    "max_received_bytes": max(largest_body, _share(settings.max_received_bytes, number, workers)),
                }
            )
        )
    return divided


def _most(settings: Settings) -> int:
    """The largest number of front-ends: one for each image that may be decoded at once."""
    plan = plan_decoding(settings)
    return plan.slots if settings.decode_threads != "auto" else plan.slots + plan.spare


def _share(whole: int, number: int, workers: int) -> int:
    return whole // workers + (number < whole % workers)


def _uses_gpu(settings: Settings) -> bool:
    if settings.backend == "null" or settings.device == "cpu":
        return False
    return settings.device.startswith("cuda") or _NVIDIA.exists()
