"""A decoding process: `python -m app.images.worker SOCKET MEMORY OPTIONS`, started and ended by `ProcessDecoder`.

It decodes one image after another until its parent closes the socket. All that it imports is the standard library,
numpy, Pillow, and what of this package decoding needs. What it may use of the machine is limited before the first
image.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ImageTooComplex, Internal, ServiceError
from ..types import Preprocessing
from . import libwebp, wire
from .decode import FORMATS, DecodeLimits, decode
from .exchange import Exchange
from .resample import usable_kernel

_NO_MEMORY = "Decoding this image takes more memory than this server sets aside for one."
_PLUGINS = {"JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp"}


def main(descriptor: str, memory: str, options: str) -> None:
    settings = json.loads(options)
    # Now, so that the limit on memory is for images alone.
    for name in FORMATS:
        importlib.import_module(f"PIL.{_PLUGINS[name]}ImagePlugin")
    usable_kernel()
    libwebp.library()
    exchange = Exchange(int(memory), settings["place_bytes"])
    os.close(int(memory))
    _limit(settings["memory_bytes"])
    with socket.socket(fileno=int(descriptor)) as parent, suppress(EOFError, ConnectionError):
        parent.sendall(wire.READY)
        _decode_all(parent, exchange, settings)


def _decode_all(parent: socket.socket, exchange: Exchange, settings: dict[str, Any]) -> None:
    """Until the parent is gone, which raises `EOFError` or `ConnectionError`."""
    limits = DecodeLimits(**settings["limits"])
    preprocessing: Preprocessing | None = None
    while True:
        kind, place, size = wire.RECORD.unpack(_receive(parent, wire.RECORD.size))
        if kind == wire.PREPROCESSING:
            preprocessing = wire.preprocessing_of(_receive(parent, size))
            continue
        assert preprocessing is not None
        if not exchange.is_wanted(place):
            parent.sendall(wire.RECORD.pack(wire.SKIPPED, place, 0))
            continue
        # A parent that was killed can end nothing: the kernel ends this process instead, also inside a decoder.
        signal.setitimer(signal.ITIMER_REAL, settings["last_resort_seconds"])
        try:
            exchange.put_pixels(place, decode(exchange.get(place, size), preprocessing, limits, settings["mode"]))
            answer = wire.RECORD.pack(wire.PIXELS, place, 0)
        except Exception as error:
            body = wire.error_body(_told(error))
            exchange.put(place, body)
            answer = wire.RECORD.pack(wire.ERROR, place, len(body))
        signal.setitimer(signal.ITIMER_REAL, 0)
        parent.sendall(answer)


def _told(error: Exception) -> ServiceError:
    """What the image's caller is told of it."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, MemoryError):
        return ImageTooComplex(_NO_MEMORY)
    logging.getLogger(__name__).error("Decoding failed unexpectedly.", exc_info=error)
    return Internal()


def _receive(parent: socket.socket, size: int) -> bytes:
    received = parent.recv(size, socket.MSG_WAITALL)
    if len(received) < size:
        raise EOFError
    return received


def _limit(memory_bytes: int) -> None:
    """Of this process: `memory_bytes` more than it has now, no file written, no core file."""
    import resource

    limits = [(resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)]
    pages = Path("/proc/self/statm")
    if pages.exists():  # elsewhere the size now is not told, and the limit is not kept
        limits.append((resource.RLIMIT_AS, int(pages.read_text().split()[0]) * resource.getpagesize() + memory_bytes))
    for kind, most in limits:
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main(*sys.argv[1:])
