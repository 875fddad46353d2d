"""The decoder that the settings ask for: limits of images, images decoded at once, threads or processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import SettingError
from .images import DecodeLimits, Decoder, decode
from .images.process_decoder import ProcessDecoder
from .images.threads import ThreadDecoder
from .metrics import Metrics
from .resources import available_cpus, available_memory_bytes
from .settings import Settings
from .types import Pixels, Preprocessing

# Peak memory of decoding, measured (docs/decoding.md) and rounded up: 12.2 for a CMYK JPEG that is rotated upright,
# 21.0 for a 16-bit grey PNG, 20.6 for a WebP with transparency, which is drawn over a background.
_JPEG_BYTES_A_PIXEL = 13
_BYTES_A_PIXEL = 24
# Images of the size of screens and most data sets are accepted even on the smallest machine.
_FEWEST_MEGAPIXELS = 2.0


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The number of images decoded at once: slots × the worst image never exceed the memory reserved for it."""

    slots: int
    """Images decoded at once."""
    spare: int
    """Further images that the memory allows: replacements for threads that hang."""
    slot_bytes: int
    """Memory for decoding the worst image within the limits."""


def fit_image_limits(settings: Settings) -> Settings:
    """Lower the image size limits, if the memory for decoding is automatic and too small for the worst image.

    A process that reaches the memory limit of its container or service is killed. To avoid that the size limits are
    lowered, in tenths of a megapixel. Reads files; blocks.
    """
    if settings.decode_memory_bytes != "auto":
        return settings
    memory = available_memory_bytes() // 2
    fitting = {
        name: max(memory // bytes_a_pixel // 100_000 / 10, _FEWEST_MEGAPIXELS)
        for name, bytes_a_pixel in (("max_megapixels_jpeg", _JPEG_BYTES_A_PIXEL), ("max_megapixels", _BYTES_A_PIXEL))
    }
    lower = {name: limit for name, limit in fitting.items() if limit < getattr(settings, name)}
    return settings.model_copy(update=lower) if lower else settings


def describe_fitted_limits(settings: Settings) -> str:
    """The limits that `fit_image_limits` lowered, and the advice for getting the configured ones."""
    worst = max(settings.max_megapixels_jpeg * _JPEG_BYTES_A_PIXEL, settings.max_megapixels * _BYTES_A_PIXEL)
    return (
        f"This process may use {available_memory_bytes() / 1e6:,.0f} MB of memory, and half of it is for decoding: "
        f"JPEGs of over {settings.max_megapixels_jpeg:g} megapixels and other images of over "
        f"{settings.max_megapixels:g} are refused (image_too_large), because decoding one may take more than "
        f"{worst:,.0f} MB. Raise the memory limit (--memory, MemoryMax), or set RESNET_DECODE_MEMORY_BYTES "
        f"(--decode-memory-bytes)."
    )


def plan_decoding(settings: Settings) -> DecodePlan:
    """A slot for each CPU as far as the memory allows, or as many as the settings say. Reads files; blocks.

    Raises `SettingError` if the reserved memory is too small for the configured slots, or for one. With neither
    setting there is always one slot, even if half of the machine's memory is smaller than the worst image
    (`fit_image_limits` lowers the limits in that case).
    """
    worst = max(settings.max_megapixels_jpeg * _JPEG_BYTES_A_PIXEL, settings.max_megapixels * _BYTES_A_PIXEL)
    slot_bytes = int(worst * 1e6)
    automatic = settings.decode_memory_bytes == "auto"
    memory = _count(settings.decode_memory_bytes, available_memory_bytes() // 2)
    fitting = max(memory // slot_bytes, 1 if automatic else 0)
    slots = _count(settings.decode_threads, max(1, min(available_cpus(), fitting)))
    if slots > fitting:
        asked = f"RESNET_DECODE_THREADS (--decode-threads) is {slots}" if settings.decode_threads != "auto" else ""
        raise SettingError(
            f"{asked or 'Not one image can be decoded'}: the largest image that the limits let in takes "
            f"{slot_bytes / 1e6:,.0f} MB while it is decoded, and the {memory / 1e6:,.0f} MB set aside "
            f"{'(half of what the service may use) ' if automatic else ''}hold {fitting or 'none'}. "
            f"{f'Set at most {fitting}, or set' if fitting else 'Set'} {slots * slot_bytes:,} bytes or more aside with "
            "RESNET_DECODE_MEMORY_BYTES (--decode-memory-bytes), or lower RESNET_MAX_MEGAPIXELS_JPEG and "
            "RESNET_MAX_MEGAPIXELS."
        )
    return DecodePlan(slots, fitting - slots, slot_bytes)


def _count(setting: int | str, automatic: int) -> int:
    return automatic if isinstance(setting, str) else setting


def decode_limits(settings: Settings) -> DecodeLimits:
    """The limits on an image before it is decoded, from the settings."""
    return DecodeLimits(
        max_pixels_jpeg=int(settings.max_megapixels_jpeg * 1e6),
        max_pixels=int(settings.max_megapixels * 1e6),
        max_side=settings.max_side,
        max_jpeg_scans=settings.max_jpeg_scans,
        max_jpeg_megapixel_scans=settings.max_jpeg_megapixel_scans,
    )


def decode_as_served(settings: Settings) -> Callable[[bytes, Preprocessing], Pixels]:
    """Decoding with these settings, as a blocking call without a decoder."""
    limits = decode_limits(settings)
    return lambda data, preprocessing: decode(data, preprocessing, limits, settings.decode)


def build_decoder(settings: Settings, metrics: Metrics) -> Decoder:
    """The decoder with the settings' slots and limits, not started yet. Raises as `plan_decoding`."""
    plan = plan_decoding(settings)
    limits = decode_limits(settings)

    def observe(image_format: str, seconds: float) -> None:
        metrics.decode_seconds.labels(image_format).observe(seconds)

    if settings.decoder == "processes":
        largest_file = max(settings.max_body_bytes, settings.max_batch_body_bytes)
        return ProcessDecoder(
            limits,
            slots=plan.slots,
            memory_bytes=plan.slot_bytes + largest_file,
            buffer_bytes=largest_file,
            max_waiting=settings.max_queue,
            timeout_seconds=settings.decode_timeout_seconds,
            mode=settings.decode,
            observe=observe,
        )
    return ThreadDecoder(
        limits,
        slots=plan.slots,
        spare=plan.spare,
        max_waiting=settings.max_queue,
        timeout_seconds=settings.decode_timeout_seconds,
        mode=settings.decode,
        observe=observe,
    )
