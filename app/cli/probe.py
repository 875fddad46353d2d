"""resnet-serve probe"""

from __future__ import annotations

import http.client
import json
import os
from typing import Annotated

import typer

from ..errors import SettingError


def probe(
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask /readyz (does it serve?) and not /healthz (is it well?).")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            help="The address that the service listens on. \\[RESNET_HOST; default 127.0.0.1]", show_default=False
        ),
    ] = "",
    port: Annotated[str, typer.Option(help="Its port. \\[RESNET_PORT; default 8000]", show_default=False)] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Ask a running service how it is; exit 0 if well, 1 if not. For health checks of containers."""
    number = port or os.environ.get("RESNET_PORT") or "8000"
    if not number.isdecimal():
        raise SettingError(f"RESNET_PORT (--port) cannot be {number!r}: it is a number from 0 to 65535.")
    asked = host or os.environ.get("RESNET_HOST") or "127.0.0.1"
    # A service that listens on every address answers on the loopback address.
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(asked, asked)
    address = f"[{asked}]" if ":" in asked else asked
    path = "/readyz" if ready else "/healthz"
    connection = http.client.HTTPConnection(asked, int(number), timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        typer.echo(f"No answer from http://{address}:{number}{path}: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        connection.close()
    typer.echo(f"{response.status} {body.get('state', 'unknown')}: {body.get('detail') or body.get('status')}")
    raise typer.Exit(0 if response.status == 200 else 1)
