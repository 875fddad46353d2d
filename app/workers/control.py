"""What the supervisor and its children say to each other: small JSON objects, and descriptors beside them.

    to an engine           start (settings), attach (a front-end's connection and memory), retire, stop
    to a front-end         start (settings), engine (a connection, its memory, what the model is, the engine's board),
                           retire (a model), signal, failed
    from an engine         step, warn, downloading (what loading does), loaded (the model's facts), ready, failed
    from a front-end       up (it answers, and can decode), ready (it serves a model)

A message and its descriptors come whole or not at all (SOCK_SEQPACKET). That the other end is gone is told too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_LARGEST_BYTES = 65_536
_MOST_DESCRIPTORS = 4
_PATIENCE_SECONDS = 5.0


@dataclass(slots=True)
class Message:
    kind: str
    fields: dict[str, Any]
    descriptors: list[int] = field(default_factory=list)
    """The receiver's, to close."""


class Control:
    """One end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: Callable[[Message], None] = lambda message: None
        connection.settimeout(_PATIENCE_SECONDS)

    @classmethod
    def pair(cls) -> tuple[Control, socket.socket]:
        """This process's end, and the other one for a child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def send(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """The descriptors are copied: the caller's stay its own. Raises `OSError` where nobody reads."""
        data = json.dumps({"kind": kind, **fields}).encode()
        socket.send_fds(self._connection, [data], list(descriptors))

    def tell(self, kind: str, **fields: Any) -> None:
        """As `send`, of what need not arrive."""
        with contextlib.suppress(OSError):
            self.send(kind, **fields)

    def receive(self) -> Message | None:
        """The next message; None where the other end is gone. Raises `OSError` where there is none."""
        data, descriptors, flags, _ = socket.recv_fds(
            self._connection, _LARGEST_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise OSError("A message between the service's processes was cut short.")
        fields = json.loads(data)
        return Message(fields.pop("kind"), fields, descriptors)

    def listen(self, on_message: Callable[[Message], None], on_gone: Callable[[], None] = lambda: None) -> None:
        """Call back, on the running event loop, for each message, and once when the other end is gone."""
        loop = asyncio.get_running_loop()
        self._on_message = on_message

        def readable() -> None:
            try:
                message = self.receive()
            except OSError:
                message = None
            if message is None:
                self.stop_listening()
                on_gone()
            else:
                on_message(message)

        self._loop = loop
        loop.add_reader(self._connection.fileno(), readable)

    def stop_listening(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._connection.fileno())
            self._loop = None

    def close(self) -> None:
        """The other end has ended: what it said last is still told."""
        self.stop_listening()
        self._connection.settimeout(0)
        with contextlib.suppress(OSError):
            while (message := self.receive()) is not None:
                self._on_message(message)
        self._connection.close()


def put_in_memory(data: bytes) -> int:
    """The descriptor of a memfd that holds `data`: what is too large for a message; the caller closes it."""
    descriptor = os.memfd_create("resnet-facts", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    return descriptor


def take_from_memory(descriptor: int) -> bytes:
    """What `put_in_memory` was given. Whoever shares the descriptor may read it too."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
