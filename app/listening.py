"""Closing a listening socket so that no connection is lost in the moment between the last accept and the close."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress

# Linux, include/uapi/asm-generic/socket.h; Python does not name it.
_SO_ATTACH_FILTER = 26
# A classic BPF program of (operation, jump if true, jump if false, operand), from include/uapi/linux/bpf_common.h. What
# it sees begins at the TCP header, whose flags are its 14th byte: a SYN without ACK is dropped, all else passes.
_SYN, _ACK = 0x02, 0x10
_NO_NEW_CONNECTION = (
    (0x30, 0, 0, 13),  # load the byte at 13
    (0x54, 0, 0, _SYN | _ACK),  # and
    (0x15, 0, 1, _SYN),  # if it equals SYN go on, else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # let through
)


def admit_no_more(listener: socket.socket) -> None:
    """From now on `listener` gets no new connection; those whose handshake has begun still arrive.

    A client that tries hears nothing, and is refused at its next attempt, a second later, once the socket is closed.
    Closing alone would reset connections that were made a moment before: the kernel makes them, not the one who
    accepts. Where the kernel does not offer this, nothing changes.
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
