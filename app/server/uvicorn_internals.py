"""Every name of uvicorn and httptools that this service uses, public or not; no other module imports either.

`INTERNALS` lists the members that are not part of uvicorn's documented interface: overridden methods, and attributes
that are read or set. `tests/test_uvicorn_contract.py` checks each one against the installed version, and that nothing
outside the list is used. `pyproject.toml` bounds the versions for which this holds.
"""

from __future__ import annotations

from collections.abc import Mapping

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Config
from uvicorn import Server as UvicornServer
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

__all__ = [
    "HIGH_WATER_LIMIT",
    "INTERNALS",
    "STATUS_LINE",
    "Config",
    "FlowControl",
    "HttpParserError",
    "HttpParserUpgrade",
    "HttpRequestParser",
    "HttpToolsProtocol",
    "ProxyHeadersMiddleware",
    "RequestResponseCycle",
    "ServerState",
    "UvicornServer",
]

INTERNALS: Mapping[type, frozenset[str]] = {
    HttpToolsProtocol: frozenset(
        {
            # Overridden, and called by uvicorn or the parser.
            *("connection_made", "connection_lost", "data_received", "eof_received", "shutdown"),
            *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
            *("on_response_complete", "send_400_response"),
            # Called or passed on.
            *("_unset_keepalive_if_required", "timeout_keep_alive_handler"),
            # Read.
            *("loop", "flow", "transport", "connections", "server_state", "root_path", "url", "headers", "scope"),
            *("cycle", "pipeline", "timeout_keep_alive"),
            # Set.
            *("client", "parser", "expect_100_continue", "timeout_keep_alive_task"),
        }
    ),
    RequestResponseCycle: frozenset(
        {
            # Read.
            *("scope", "response_started", "response_complete", "more_body", "message_event"),
            # Set.
            *("transport", "body", "keep_alive", "disconnected"),
        }
    ),
    FlowControl: frozenset({"pause_reading", "resume_reading", "read_paused", "write_paused"}),
    ServerState: frozenset({"connections", "default_headers", "total_requests"}),
    UvicornServer: frozenset(
        {
            # Overridden.
            *("capture_signals", "handle_exit", "on_tick", "startup", "shutdown"),
            # Read or set.
            *("config", "server_state", "servers", "lifespan", "should_exit"),
        }
    ),
    Config: frozenset({"encoded_headers", "http_protocol_class"}),
}
