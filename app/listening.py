"""The listening socket and its address."""

from __future__ import annotations

import os
import socket

from .errors import SettingError
from .settings import Settings

BACKLOG = 2048


def listen(settings: Settings) -> socket.socket:
    """The listening socket, bound before anything is loaded: a taken port is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        # create_server adds the address to the message; a failed look-up of the host has a code of its own.
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error
        raise SettingError(
            f"Cannot listen on {settings.host}:{settings.port}: {reason}. Choose another address with --host and "
            f"--port (RESNET_HOST, RESNET_PORT), or stop what uses this one."
        ) from None


def address_of(settings: Settings, listener: socket.socket) -> str:
    """An address that a person on this machine can paste."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"
