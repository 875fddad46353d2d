"""The listening socket: opened before anything else, and closed without losing connections."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from contextlib import suppress

from ..errors import SettingError
from ..settings import Settings

BACKLOG = 2048
# Linux, include/uapi/asm-generic/socket.h; Python has no name for it.
_SO_ATTACH_FILTER = 26
# A classic BPF program of (operation, jump if true, jump if false, operand), from include/uapi/linux/bpf_common.h. Its
# input begins at the TCP header, whose 14th byte has the flags: a SYN without ACK is dropped, the rest passes.
_SYN, _ACK = 0x02, 0x10
_NO_NEW_CONNECTION = (
    (0x30, 0, 0, 13),  # load the byte at 13
    (0x54, 0, 0, _SYN | _ACK),  # and
    (0x15, 0, 1, _SYN),  # if it equals SYN go on, else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # let through
)


def listen(settings: Settings) -> socket.socket:
    """The listening socket, bound before anything is loaded, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return _server(settings.host, settings.port, family)
    except OSError as error:
        # create_server adds the address to the message; a failed look-up of the host has its own error codes.
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error
        raise SettingError(
            f"Cannot listen on {settings.host}:{settings.port}: {reason}. Choose another address with --host and "
            f"--port (RESNET_HOST, RESNET_PORT), or stop what uses this one."
        ) from None


def _server(host: str, port: int, family: int, reuse_port: bool = False) -> socket.socket:
    # A socket for all IPv6 addresses can also take IPv4, which Python turns off by default.
    is_both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port, dualstack_ipv6=is_both
    )


def listen_together(settings: Settings, count: int) -> list[socket.socket]:
    """`count` listening sockets on one address; the kernel distributes new connections evenly and at random.

    One socket shared by the processes would not do: a process that is awake accepts all waiting connections (16 of 16
    when measured). Raises `SettingError` like `listen`.
    """
    # First a socket without SO_REUSEPORT: sockets that share a port would also share it with a service already there.
    with listen(settings) as alone:
        family, port = alone.family, alone.getsockname()[1]
    try:
        return [_server(settings.host, port, family, reuse_port=True) for _ in range(count)]
    except OSError as error:
        raise SettingError(f"Cannot listen on {settings.host}:{port} in several processes: {error}.") from None


def address_of(settings: Settings, listener: socket.socket) -> str:
    """The service's URL for a client on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"


def admit_no_more(listener: socket.socket) -> None:
    """From now on `listener` gets no new connections; those whose handshake has begun still arrive.

    A new client gets no reply, and is refused at its retry a second later, when the socket is closed. Closing alone
    would reset connections established a moment before, because the kernel establishes them before they are accepted.
    If the kernel does not support the filter, nothing changes.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("@HBBI", *step) for step in _NO_NEW_CONNECTION)
    held = ctypes.create_string_buffer(program, len(program))
    with suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(_NO_NEW_CONNECTION), ctypes.addressof(held)),
        )
