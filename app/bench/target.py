"""The address of the service under measurement."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import SettingError


@dataclass(frozen=True, slots=True)
class Target:
    """The address of all requests, from one URL; redirects are not followed."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    """Path prefix of the service, without a slash at its end."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"

    def tls(self) -> ssl.SSLContext | None:
        """Certificates are checked as browsers check them."""
        return ssl.create_default_context() if self.scheme == "https" else None


def parse_target(url: str) -> Target:
    """Raises `SettingError` if it is not an http:// or https:// URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingError(f"--url cannot be {url!r}: {error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(f"--url cannot be {url!r}: give the service's address, such as http://127.0.0.1:8000.")
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise SettingError(f"--url cannot be {url!r}: give the address alone, without a name, a query or a fragment.")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    return Target(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
