"""Whether this process is about to run out of file descriptors; each connection takes one.

The event loop accepts connections by itself, and without a free descriptor it can only close them. Therefore the last
descriptors are kept for health checks and for the service itself. The number of a new connection's descriptor shows
how many are in use: the system assigns the lowest free one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable
from enum import IntEnum

from ..resources import open_file_limit

logger = logging.getLogger(__name__)

# Kept for health checks, for the service's own files, and for connections that are being refused.
_KEPT, _FEWEST_KEPT = 64, 8
_SECONDS_BETWEEN_LINES = 30.0


class Shortage(IntEnum):
    """How few file descriptors are left when a connection is accepted."""

    NONE = 0
    FEW_LEFT = 1
    """Only health checks are answered on the connection."""
    LAST = 2
    """The connection is refused at once."""


class OpenFiles:
    """Watches this process's file descriptors, and logs when they run out, at most every half minute."""

    def __init__(self, limit: Callable[[], int] = open_file_limit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._say_at = clock()

    def shortage(self, transport: asyncio.BaseTransport) -> Shortage:
        """The shortage when this connection was accepted."""
        connection = transport.get_extra_info("socket")
        if connection is None:
            return Shortage.NONE
        # Read each time, in less than a microsecond: the limit can be changed from outside.
        limit = self._limit()
        kept = min(_KEPT, max(_FEWEST_KEPT, limit // 4))
        free = limit - connection.fileno() - 1
        if free >= kept:
            return Shortage.NONE
        self._say(limit)
        return Shortage.FEW_LEFT if free >= kept // 2 else Shortage.LAST

    def are_out(self) -> bool:
        """Whether no file can be opened, by the limit of this process or of the system. Does not block."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._say(self._limit())
                return True
        return False

    def _say(self, limit: int) -> None:
        if self._clock() < self._say_at:
            return
        self._say_at = self._clock() + _SECONDS_BETWEEN_LINES
        logger.warning(
            "Files run out: this process may have %d open (RLIMIT_NOFILE), and nearly all are. New connections are "
            "refused with 503, but for health checks, or wait. Raise the limit (ulimit -n, LimitNOFILE=, "
            "--ulimit nofile=), or set RESNET_MAX_CONNECTIONS lower.",
            limit,
        )
