"""The surroundings of the process: its address, its cache folder and its network."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

from .. import outbound
from ..errors import SettingError
from ..server.listening import address_of, listen
from ..settings import Settings
from .report import Report

_LITTLE_ROOM_BYTES = 300_000_000
_ANSWER_SECONDS = 3.0


def see_network(report: Report) -> None:
    """Report the proxies and certificates of downloads. No request is sent."""
    for name in outbound.PROXIES:
        given = outbound.variable(name)
        report.add("network", given[0] if given else name, outbound.redacted(given[1]) if given else "unset")
    report.add("network", "NO_PROXY", (outbound.variable("NO_PROXY") or ("", "unset"))[1])
    trusted = outbound.certificates()
    report.add("network", "certificates", " ".join(trusted) if trusted else "certifi's")
    for line in outbound.wrong_in():
        report.problem(f"{line}. Downloads fail with it.")


def see_address(settings: Settings, report: Report) -> None:
    """Report whether the address is free, or this service already answers there."""
    report.add("address", "host and port", f"{settings.host} {settings.port}")
    try:
        with listen(settings) as listener:
            if settings.port:
                report.add("address", "free", f"yes: {address_of(settings, listener)}")
    except SettingError as error:
        cause = error.__context__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE and (state := _state_at(settings)):
            report.add("address", "free", f"no: this service answers there ({state})")
            return
        report.add("address", "free", "no")
        report.problem(str(error))


def _state_at(settings: Settings) -> str | None:
    """The state that this service reports at the address; None if another program listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/healthz")
        document = json.loads(connection.getresponse().read(1 << 20))
        return str(document["state"]) if "ready" in document else None
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, socket.gaierror):
        return None
    finally:
        connection.close()


def see_cache(settings: Settings, report: Report) -> None:
    """Report whether exports and downloads can be stored."""
    folder = settings.cache_dir
    report.add("cache", "folder", folder)
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    cure = "Give RESNET_CACHE_DIR a folder with room that the service's user may write to"
    reason = _why_not_writable(nearest)
    if reason is not None:
        report.add("cache", "writable", f"no: {reason}")
        report.problem(
            f"Nothing can be written to the cache folder {folder} ({reason}): each start makes its export again, and "
            f"downloads fail. {cure}."
        )
        return
    report.add("cache", "writable", "yes" if nearest == folder else "yes, once it is made")
    free = shutil.disk_usage(nearest).free
    report.add("cache", "free", f"{free / 1e6:,.0f} MB")
    if free < _LITTLE_ROOM_BYTES:
        report.problem(
            f"The disk of the cache folder {folder} has {free / 1e6:,.0f} MB of room, and a ResNet-50's download and "
            f"export take 200. Free some, or: {cure}."
        )


def _why_not_writable(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"{folder} is no folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None
