"""A process that decodes images for a `ProcessDecoder`, which starts and ends it.

It decodes one image after another until its parent closes the socket. It imports the standard library, numpy, Pillow,
and the decoding code of this package. Before the first image its memory is limited, and it can write no file.
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
from typing import Any

from ..errors import ImageTooComplex, Internal, ServiceError
from ..processes.limits import limit, with_growth
from ..types import Preprocessing
from . import decoding_messages as messages
from . import libwebp
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
    exchange = Exchange(int(memory), settings["buffer_bytes"])
    os.close(int(memory))
    limit(memory_bytes=with_growth("VmSize", settings["memory_bytes"]))
    with socket.socket(fileno=int(descriptor)) as parent, suppress(EOFError, ConnectionError):
        parent.sendall(messages.READY)
        _decode_all(parent, exchange, settings)


def _decode_all(parent: socket.socket, exchange: Exchange, settings: dict[str, Any]) -> None:
    """Until the parent has ended, which raises `EOFError` or `ConnectionError`."""
    limits = DecodeLimits(**settings["limits"])
    preprocessing: Preprocessing | None = None
    while True:
        kind, buffer, size = messages.RECORD.unpack(_receive(parent, messages.RECORD.size))
        if kind == messages.PREPROCESSING:
            preprocessing = messages.preprocessing_of(_receive(parent, size))
            continue
        assert preprocessing is not None
        if not exchange.is_wanted(buffer):
            parent.sendall(messages.RECORD.pack(messages.SKIPPED, buffer, 0))
            continue
        # A parent that was killed can end nothing: then the kernel ends this process, also inside a decoder.
        signal.setitimer(signal.ITIMER_REAL, settings["last_resort_seconds"])
        try:
            exchange.put_pixels(buffer, decode(exchange.get(buffer, size), preprocessing, limits, settings["mode"]))
            answer = messages.RECORD.pack(messages.PIXELS, buffer, 0)
        except Exception as error:
            body = messages.error_body(_service_error(error))
            exchange.put(buffer, body)
            answer = messages.RECORD.pack(messages.ERROR, buffer, len(body))
        signal.setitimer(signal.ITIMER_REAL, 0)
        parent.sendall(answer)


def _service_error(error: Exception) -> ServiceError:
    """The error that the client is answered with."""
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


if __name__ == "__main__":
    main(*sys.argv[1:])
