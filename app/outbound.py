"""Outgoing HTTP requests: the proxies and certificates that the environment names.

httpx reads the same variables, but as a whole and before its first request: one entry that it cannot read ends all of
them in an error that names none. Here a variable is read when a request needs it, and a wrong one is named.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# In the order of their weight: OpenSSL's own, then those of requests and curl, which many machines have instead.
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
INSTALL_SOCKS = "pip install 'httpx[socks]'"
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_SOCKS = ("socks4", "socks4a", "socks5", "socks5h")


class OutboundError(Exception):
    """A variable of the environment that no request can be sent with. The message names it, on one line."""


@dataclass(frozen=True, slots=True)
class Proxy:
    variable: str
    url: str

    def __str__(self) -> str:
        return f"{self.variable} ({redacted(self.url)})"


def redacted(url: str) -> str:
    """`url`, which may be no good one, without a user's name and password, and without a query."""
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    # A password may have any sign in it, also "/" and "?": all before the last "@" goes.
    user, at, place = rest.rpartition("@")
    if re.search(r"[?#]", user) and not _is_user(user):
        # That "@" may be one of a query, and what is behind it a part of a token.
        begin = re.split(r"[?#]", rest, maxsplit=1)[0]
        return f"{scheme}{separator}{'***' if '@' in begin or ':' in begin else begin}"
    place = re.split(r"[?#]", place if at else rest, maxsplit=1)[0]
    return f"{scheme}{separator}{'***@' if at else ''}{place}"


def _is_user(text: str) -> bool:
    """Whether it can only be a name and a password: in front of the first "/", "?" or "#" is no host with its port."""
    begin = re.split(r"[/?#]", text, maxsplit=1)[0]
    return "@" not in begin and ":" in begin and not begin.rpartition(":")[2].isdigit()


def is_web_address(url: str) -> bool:
    """Whether a request can be sent there, as far as that shows in the address itself."""
    import httpx

    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def variable(name: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """A proxy's variable as it is written, in lower case first, and its value; None where it is unset or empty."""
    for each in (name.lower(), name):
        if each in environment:
            return (each, environment[each].strip()) if environment[each].strip() else None
    return None


def proxy_for(scheme: str, host: str, port: int | None, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy for a request to there, if any. Raises `OutboundError` for one that cannot be used."""
    given = variable(f"{scheme.upper()}_PROXY", environment) or variable("ALL_PROXY", environment)
    if given is None or is_excepted(host, port, (variable("NO_PROXY", environment) or ("", ""))[1]):
        return None
    return checked_proxy(*given)


def checked_proxy(name: str, value: str) -> Proxy:
    """The proxy that the variable `name` gives. Raises `OutboundError`."""
    import httpx

    url = value if "://" in value else f"http://{value}"
    scheme = url.partition("://")[0].lower()
    shown = f"{name} is {redacted(value)}"
    if scheme not in _PROXY_SCHEMES and scheme not in _SOCKS:
        raise OutboundError(f"{shown}, and a proxy's address begins with http://, https:// or socks5://")
    if scheme in _SOCKS and (scheme not in _PROXY_SCHEMES or find_spec("socksio") is None):
        cure = INSTALL_SOCKS if scheme in _PROXY_SCHEMES else "use socks5://"
        raise OutboundError(f"{shown}, a SOCKS proxy, which cannot be used here without more: {cure}")
    try:
        host = httpx.URL(url).host
        host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):  # their words may have a part of the password
        raise OutboundError(f"{shown}, which is no address: it is written http://HOST:PORT") from None
    if not host:
        raise OutboundError(f"{shown}, which names no host: it is written http://HOST:PORT")
    return Proxy(name, url)


def is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    """Whether NO_PROXY has this host: by name or a domain's end, as an address or a network of them, or all with *."""
    host = host.strip("[]").lower().rstrip(".")
    for entry in exceptions.replace(" ", ",").split(","):
        name, its_port = _split_port(entry.strip().lower().rpartition("://")[2])
        if not name or (its_port is not None and its_port != port):
            continue
        if name == "*":
            return True
        name = name.removeprefix("*").strip(".") or "."
        if host == name or host.endswith(f".{name}") or _is_in_network(host, name):
            return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    """The name or address, without the brackets of IPv6, and its port if there is one."""
    match = re.fullmatch(r"\[(.*)\](?::(\d+))?|([^:]*):(\d+)", entry)
    if match is None:
        return entry.strip("[]"), None
    port = match[2] or match[4]
    return match[1] or match[3] or "", int(port) if port else None


def _is_in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def certificates(environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """The variable that names the certificates to trust, and its value; None where those of certifi are."""
    return next(((name, environment[name]) for name in CERTIFICATES if environment.get(name)), None)


def ssl_context(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """What a server's certificate is checked with. Raises `OutboundError`."""
    given = certificates(environment)
    if given is None:
        import certifi

        return ssl.create_default_context(cafile=certifi.where())
    name, value = given
    shown = f"{name} is {value}"
    path = Path(value)
    kind = "folder" if name == "SSL_CERT_DIR" or (name != "SSL_CERT_FILE" and path.is_dir()) else "file"
    cure = f"unset it, or name a {kind} of certificates"
    try:
        if kind == "folder":
            next(path.iterdir(), None)
            return ssl.create_default_context(capath=value)
        path.open("rb").close()
        return ssl.create_default_context(cafile=value)
    except ssl.SSLError:
        raise OutboundError(f"{shown}, which holds no certificates: {cure}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutboundError(f"{shown}, which cannot be read ({reason}): {cure}") from None


def wrong_in(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each of these variables that a request would fail with."""
    wrong = []
    for name in PROXIES:
        if given := variable(name, environment):
            try:
                checked_proxy(*given)
            except OutboundError as error:
                wrong.append(str(error))
    try:
        ssl_context(environment)
    except OutboundError as error:
        wrong.append(str(error))
    return wrong


def client(timeout: httpx.Timeout) -> httpx.Client:
    """An HTTP client that follows redirects, each through the proxy that is meant for it.

    A request raises `OutboundError` where the environment is wrong in what it needs.
    """
    import httpx

    class Routes(httpx.BaseTransport):
        def __init__(self) -> None:
            self._made: dict[tuple[str, bool], httpx.HTTPTransport] = {}

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            url = request.url
            proxy = proxy_for(url.scheme, url.host, url.port)
            is_secure = url.scheme == "https" or (proxy is not None and proxy.url.lower().startswith("https"))
            route = (proxy.url if proxy else "", is_secure)
            if route not in self._made:
                # A route without TLS has no certificates to check, and needs none that can be read.
                self._made[route] = httpx.HTTPTransport(
                    verify=ssl_context() if is_secure else False,
                    trust_env=False,
                    proxy=_as_httpx(proxy) if proxy else None,
                )
            return self._made[route].handle_request(request)

        def close(self) -> None:
            for transport in self._made.values():
                transport.close()

    return httpx.Client(transport=Routes(), trust_env=False, timeout=timeout, follow_redirects=True)


def async_client(url: str, timeout_seconds: float) -> httpx.AsyncClient:
    """An HTTP client for the one server at `url`. Raises `OutboundError`."""
    import httpx

    parsed = httpx.URL(url)
    proxy = proxy_for(parsed.scheme, parsed.host, parsed.port)
    return httpx.AsyncClient(
        base_url=url,
        timeout=timeout_seconds,
        trust_env=False,
        verify=ssl_context() if parsed.scheme == "https" else False,
        proxy=_as_httpx(proxy) if proxy else None,
    )


def _as_httpx(proxy: Proxy) -> httpx.Proxy:
    import httpx

    return httpx.Proxy(proxy.url, ssl_context=ssl_context() if proxy.url.lower().startswith("https") else None)
