"""The bound on open connections, and the requests that are answered beyond it."""

from __future__ import annotations

from collections.abc import Sized

from ..batching import retry_after_seconds
from ..errors import Overloaded
from ..resources import open_file_limit
from ..settings import Settings
from .open_files import Shortage

# Connections above the bound whose request is still read, because it may be a health check.
SPARE_CONNECTIONS = 64
_FEWEST_CONNECTIONS, _MOST_CONNECTIONS, _OTHER_FILES = 16, 10_000, 256
_ALWAYS_ANSWERED = (b"/healthz", b"/readyz", b"/metrics")
_EXTRA_HEAD_SHARE = 0.1
_RETRY_SECONDS = 1.0
_CROWDED = "More connections are open than this server takes. Try again, or use one that is open already."


def most_connections(settings: Settings) -> int:
    """The number of connections that may be open at once; by default most of the files that may be open."""
    if settings.max_connections != "auto":
        return settings.max_connections
    files = open_file_limit()
    # Reserved for listening sockets, decoders, files that are read, and connections that are being refused.
    others = min(_OTHER_FILES, files // 4) + SPARE_CONNECTIONS
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, files - others))


class Crowding:
    """Whether a connection was opened when too many were open, or too few file descriptors were left."""

    def __init__(self, connections: Sized, most: int, shortage: Shortage) -> None:
        """`connections` are all open ones, with this one; `shortage` is that of files when this one was opened."""
        self._connections = connections
        self._most = most
        self._shortage = shortage
        self.is_extra = self._is_over(0)
        """Only health checks are answered on it, unless the number has fallen when its request arrives."""
        self.is_refused = self._is_over(SPARE_CONNECTIONS)
        """It is refused without reading its request."""

    @property
    def head_share(self) -> float:
        """The share of the usual deadline for the first head.

        It is small on extra connections, because silent ones would keep out health checks.
        """
        return _EXTRA_HEAD_SHARE if self.is_extra else 1.0

    def refuses(self, url: bytes) -> bool:
        """Whether a request for `url` is refused now."""
        return self.is_extra and self._is_over(0) and url.partition(b"?")[0] not in _ALWAYS_ANSWERED

    def _is_over(self, spare: int) -> bool:
        shortage = Shortage.FEW_LEFT if spare else Shortage.NONE
        return len(self._connections) > self._most + spare or self._shortage > shortage


def crowded() -> Overloaded:
    """The error of a refused connection."""
    return Overloaded(_CROWDED, retry_after_seconds(_RETRY_SECONDS))
