"""A decoding process: `python -m app.images.worker SOCKET OPTIONS`, started and ended by `ProcessDecoder`.

It decodes one image after another until its parent closes the socket. All that it imports is the standard library,
numpy, Pillow, and what of this package decoding needs. What it may use of the machine is limited before the first
image.
"""

from __future__ import annotations

import importlib
import json
import logging
import signal
import socket
import sys
from pathlib import Path

from ..errors import ImageTooComplex, Internal, ServiceError
from ..types import DecodeMode
from . import wire
from .decode import FORMATS, DecodeLimits, decode
from .resample import usable_kernel

_NO_MEMORY = "Decoding this image takes more memory than this server sets aside for one."
_PLUGINS = {"JPEG": ("Jpeg", "Mpo"), "PNG": ("Png",), "WEBP": ("WebP",), "GIF": ("Gif",), "BMP": ("Bmp",)}


def main(descriptor: str, options: str) -> None:
    settings = json.loads(options)
    limits = DecodeLimits(**settings["limits"])
    # Now, so that the limit on memory is for images alone.
    for name in FORMATS:
        for plugin in _PLUGINS[name]:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    usable_kernel()
    _limit(settings["memory_bytes"])
    with socket.socket(fileno=int(descriptor)) as parent:
        parent.sendall(wire.READY)
        while head := _receive(parent, wire.REQUEST.size):
            sizes = wire.REQUEST.unpack(head)
            # A parent that was killed can end nothing: the kernel ends this process instead, also inside a decoder.
            signal.setitimer(signal.ITIMER_REAL, settings["last_resort_seconds"])
            try:
                kind, body = _answer(_receive(parent, sizes[0]), _receive(parent, sizes[1]), limits, settings["mode"])
                parent.sendall(wire.ANSWER.pack(kind, len(body)))
                parent.sendall(body)
            except (EOFError, ConnectionError):
                return
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(document: bytes, data: bytes, limits: DecodeLimits, mode: DecodeMode) -> tuple[int, bytes]:
    try:
        return wire.PIXELS, decode(data, wire.preprocessing_of(document), limits, mode).tobytes()
    except ServiceError as error:
        return wire.ERROR, wire.error_body(error)
    except MemoryError:
        return wire.ERROR, wire.error_body(ImageTooComplex(_NO_MEMORY))
    except Exception:
        logging.getLogger(__name__).exception("Decoding failed unexpectedly.")
        return wire.ERROR, wire.error_body(Internal())


def _receive(parent: socket.socket, size: int) -> bytes:
    """`size` bytes; none where the parent has closed the socket."""
    received = parent.recv(size, socket.MSG_WAITALL) if size else b""
    if 0 < len(received) < size:
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
