"""Settings of the server process: address, workers, proxy, shutdown and log."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from .group import Group

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_USUAL_PORTS = {"http": "80", "https": "443"}


class AddressSettings(Group):
    """Where the service listens."""

    title: ClassVar[str] = "Address"

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")


class DeploymentSettings(Group):
    """Processes, proxies and browsers, and how the service stops."""

    title: ClassVar[str] = "Deployment"

    http_workers: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto",
        description=(
            "Processes that take requests and decode images. 1: the whole service is one process; else the model has "
            "one more, of its own. auto: one for every four CPUs, with a GPU for every two, up to 8."
        ),
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, separated by commas. Unset: none."
    )
    root_path: str = Field("", pattern=r"^(/.*[^/])?$", description="Path prefix that a reverse proxy strips.")
    forwarded_allow_ips: str = Field(
        "127.0.0.1",
        description="Addresses of proxies whose X-Forwarded-* headers are believed, separated by commas.",
    )
    shutdown_linger_seconds: float = Field(
        2.0,
        ge=0,
        description="How long requests are still taken after SIGTERM, while /readyz already says draining.",
    )
    shutdown_grace_seconds: float = Field(
        15.0,
        ge=0,
        description="How long accepted requests may take to finish after that.",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(each) for each in origins)


class LogSettings(Group):
    """Which log lines are written, and how."""

    title: ClassVar[str] = "Log"

    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log lines as JSON objects or as text. auto: text on a terminal, else JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )


def _origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454): scheme, lower-case host, and the port unless it is the default one.

    Raises `ValueError` for a text that is not an origin and would match no page.
    """
    if text in ("*", "null"):
        return text
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        raise ValueError(
            f"{text!r} is no origin: an origin is a scheme, a host and perhaps a port, without a path or a slash at "
            "the end, such as https://www.example.com or http://localhost:3000; * allows all"
        )
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and _USUAL_PORTS.get(scheme) != port else "")
