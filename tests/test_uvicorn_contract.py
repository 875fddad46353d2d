"""What this service relies on in uvicorn and httptools: one check for each name, so that an upgrade fails here."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from app.server import uvicorn_internals
from app.server.lifecycle import Server
from app.server.protocol import HttpProtocol
from app.server.uvicorn_internals import (
    HIGH_WATER_LIMIT,
    INTERNALS,
    STATUS_LINE,
    Config,
    FlowControl,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpToolsProtocol,
    ProxyHeadersMiddleware,
    RequestResponseCycle,
    ServerState,
    UvicornServer,
)

# The parameters of each method that is overridden or called, without `self`.
PARAMETERS: dict[type, dict[str, str]] = {
    HttpToolsProtocol: {
        **dict.fromkeys(("on_message_begin", "on_headers_complete", "on_message_complete", "on_response_complete"), ""),
        **dict.fromkeys(("eof_received", "shutdown", "_unset_keepalive_if_required", "timeout_keep_alive_handler"), ""),
        "connection_made": "transport",
        "connection_lost": "exc",
        "data_received": "data",
        "on_url": "url",
        "on_header": "name, value",
        "on_body": "body",
        "send_400_response": "msg",
    },
    FlowControl: {"pause_reading": "", "resume_reading": ""},
    UvicornServer: {
        "capture_signals": "",
        "handle_exit": "sig, frame",
        "on_tick": "counter",
        "startup": "sockets",
        "shutdown": "sockets",
    },
}
MEMBERS = [(owner, name) for owner, names in INTERNALS.items() for name in sorted(names)]
SERVER_FOLDER = Path(uvicorn_internals.__file__).parent
# How our modules call an object whose attributes are uvicorn's → the class of it.
CALLED = {
    "cycle": RequestResponseCycle,
    "faulty": RequestResponseCycle,
    "running": RequestResponseCycle,
    "_running": RequestResponseCycle,
    "flow": FlowControl,
    "_flow": FlowControl,
    "server_state": ServerState,
    "config": Config,
}
OURS: dict[str, tuple[type, type]] = {
    "protocol.py": (HttpProtocol, HttpToolsProtocol),
    "reading.py": (HttpProtocol, HttpToolsProtocol),
    "lifecycle.py": (Server, UvicornServer),
}
GET = b"GET /there HTTP/1.1\r\nHost: t\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answers any request with two bytes."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def config(app: Any = answer) -> Config:
    return Config(app, http=HttpToolsProtocol, ws="none", lifespan="off", log_config=None, server_header=False)


class Connection:
    """One connection of uvicorn's own protocol class, driven without a socket."""

    def __init__(self, app: Any = answer) -> None:
        self.transport = Transport()
        self.state = ServerState()
        self.protocol = HttpToolsProtocol(config=config(app), server_state=self.state, app_state={})
        self.protocol.connection_made(self.transport)

    async def run_tasks(self) -> None:
        await asyncio.gather(*self.state.tasks)


@pytest.fixture
async def connection() -> Connection:
    return Connection()


# --- each name is there


@pytest.mark.anyio
@pytest.mark.parametrize(("owner", "name"), MEMBERS, ids=[f"{owner.__name__}.{name}" for owner, name in MEMBERS])
async def test_a_member_is_there(owner: type, name: str, connection: Connection) -> None:
    """A member that this service overrides, calls, reads or sets exists, a method with the parameters that it had."""
    connection.protocol.data_received(GET)
    await connection.run_tasks()
    server = UvicornServer(connection.protocol.config)
    objects = {
        HttpToolsProtocol: connection.protocol,
        RequestResponseCycle: connection.protocol.cycle,
        FlowControl: connection.protocol.flow,
        ServerState: connection.state,
        UvicornServer: server,
        Config: connection.protocol.config,
    }
    if (expected := PARAMETERS.get(owner, {}).get(name)) is not None:
        parameters = list(inspect.signature(getattr(owner, name)).parameters)
        assert parameters == ["self", *(expected.split(", ") if expected else [])]
    elif (owner, name) not in ((UvicornServer, "servers"), (UvicornServer, "lifespan")):  # set while it starts
        assert hasattr(objects[owner], name)


@pytest.mark.parametrize("path", sorted(SERVER_FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_other_member_is_used(path: Path) -> None:
    """Every attribute of uvicorn's objects that a module uses is in the list of internals."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value = node.value
            name = value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""
            if name in CALLED:
                used.add((CALLED[name].__name__, node.attr))
            elif name == "self" and path.name in OURS:
                own, base = OURS[path.name]
                if node.attr not in _members_of(own, base):
                    used.add((base.__name__, node.attr))
    listed = {(owner.__name__, name) for owner, name in MEMBERS}
    assert used <= listed


def test_each_member_in_the_list_is_used() -> None:
    """The list names nothing that no module uses."""
    files = [path for path in SERVER_FOLDER.glob("*.py") if path.name != "uvicorn_internals.py"]
    used = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in files)))
    assert {name for _, name in MEMBERS} <= used


def _members_of(own: type, base: type) -> set[str]:
    """The names that a class and its own bases define or set, up to uvicorn's `base`."""
    ours = own.__mro__[: own.__mro__.index(base)]
    names = {name for each in ours for name in (*vars(each), *vars(each).get("__annotations__", ()))}
    return names | {
        name for each in ours for name in re.findall(r"self\.(_\w+)(?:: [^=\n]+)? = ", inspect.getsource(each))
    }


# --- and does what it did: the connection


@pytest.mark.anyio
async def test_a_request_is_started_after_its_headers(connection: Connection) -> None:
    """The app's task begins later than `on_headers_complete` ends: what that adds to the cycle and its scope counts."""
    protocol = connection.protocol
    protocol.data_received(GET)
    assert connection.transport.calls == []
    assert protocol.cycle.scope is protocol.scope
    assert protocol.scope["path"] == "/there"
    protocol.cycle.transport = other = Transport()
    await connection.run_tasks()
    head, body = other.calls
    assert isinstance(head, bytes)
    assert head.startswith(STATUS_LINE[200])
    assert body == b"ok"


@pytest.mark.anyio
async def test_keep_alive_false_closes_after_the_answer(connection: Connection) -> None:
    """`cycle.keep_alive` may be set until the answer begins."""
    connection.protocol.data_received(GET)
    connection.protocol.cycle.keep_alive = False
    await connection.run_tasks()
    head, _, end = connection.transport.calls
    assert isinstance(head, bytes)
    assert b"connection: close\r\n" in head
    assert end == "close"
    assert connection.protocol.cycle.response_complete


@pytest.mark.anyio
async def test_a_body_reaches_the_app_by_its_event() -> None:
    """What is added to `cycle.body` is received once `message_event` is set, and the cycle counts what it has begun."""
    received: list[Any] = []
    first = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        first.set()
        received.append(await receive())

    connection = Connection(app)
    protocol = connection.protocol
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\n")
    cycle = protocol.cycle
    assert cycle.more_body
    assert not cycle.response_started
    cycle.body += b"ab"
    cycle.message_event.set()
    await first.wait()
    cycle.disconnected = True
    cycle.message_event.set()
    await connection.run_tasks()
    assert received == [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.disconnect"}]


@pytest.mark.anyio
async def test_pipelined_requests_wait_in_the_pipeline(connection: Connection) -> None:
    """`cycle` is the newest, `pipeline[-1][0]` the next, and reading pauses while one waits."""
    protocol = connection.protocol
    protocol.data_received(GET)
    first = protocol.cycle
    protocol.data_received(GET)
    second = protocol.cycle
    protocol.data_received(GET)
    assert [each for each, _ in protocol.pipeline] == [protocol.cycle, second]
    assert protocol.flow.read_paused
    while connection.state.tasks:
        await connection.run_tasks()
    assert first.response_complete
    assert second.response_complete
    assert connection.state.total_requests == 3


@pytest.mark.anyio
async def test_an_idle_connection_has_a_timer(connection: Connection) -> None:
    """After an answer `timeout_keep_alive_task` runs; it can be taken back, and its handler closes the connection."""
    protocol = connection.protocol
    protocol.data_received(GET)
    await connection.run_tasks()
    assert protocol.timeout_keep_alive_task is not None
    assert protocol.timeout_keep_alive > 0
    protocol._unset_keepalive_if_required()
    assert protocol.timeout_keep_alive_task is None
    protocol.timeout_keep_alive_handler()
    assert connection.transport.calls[-1] == "close"


@pytest.mark.anyio
async def test_shutdown_closes_an_idle_connection_and_ends_a_busy_one(connection: Connection) -> None:
    """`shutdown` closes at once where nothing is being answered, else after the answer."""
    connection.protocol.data_received(GET)
    connection.protocol.shutdown()
    assert not connection.transport.is_closing()
    await connection.run_tasks()
    assert connection.transport.is_closing()
    idle = Connection()
    idle.protocol.shutdown()
    assert idle.transport.is_closing()


@pytest.mark.anyio
async def test_default_headers_are_those_of_the_moment(connection: Connection) -> None:
    """An answer has the headers that `server_state.default_headers` held when its request came."""
    connection.state.default_headers = [(b"x-one", b"1")]
    connection.protocol.data_received(GET)
    await connection.run_tasks()
    assert b"\r\nx-one: 1\r\n" in connection.transport.calls[0]  # type: ignore[operator]


@pytest.mark.anyio
async def test_connections_are_listed_while_they_are_open(connection: Connection) -> None:
    """`server_state.connections` has each connection from `connection_made` to `connection_lost`."""
    assert connection.state.connections == {connection.protocol}
    connection.protocol.data_received(GET)
    await connection.run_tasks()
    connection.protocol.connection_lost(None)
    assert connection.state.connections == set()


@pytest.mark.anyio
async def test_flow_control_pauses_once(connection: Connection) -> None:
    """Pausing and resuming twice is once; `write_paused` follows the transport."""
    flow = connection.protocol.flow
    flow.pause_reading()
    flow.pause_reading()
    assert flow.read_paused
    flow.resume_reading()
    flow.resume_reading()
    assert connection.transport.calls == ["pause", "resume"]
    connection.protocol.pause_writing()
    assert flow.write_paused


# --- the parser


class Callbacks:
    """Keeps what the parser calls; raises where it is told to."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.url = b""
        self.pieces: list[bytes] = []
        self.ended = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_headers_complete(self) -> None:
        if self.fail:
            raise RuntimeError("no more")

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.ended = True


def test_the_parser_says_what_a_request_is() -> None:
    """Method, version and whether the connection stays are known when the headers are complete."""
    callbacks = Callbacks()
    parser = HttpRequestParser(callbacks)
    parser.feed_data(b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\nab")
    assert (parser.get_method(), parser.get_http_version()) == (b"POST", "1.1")
    assert parser.should_keep_alive()
    assert not parser.should_upgrade()
    assert (callbacks.url, callbacks.pieces, callbacks.ended) == (b"/x", [b"ab"], True)


@pytest.mark.parametrize("fail", [False, True], ids=["bytes", "a callback"])
def test_the_parser_fails_by_one_error(fail: bool) -> None:
    """Bytes that are not HTTP, and a callback that raises, end the parsing with `HttpParserError`."""
    parser = HttpRequestParser(Callbacks(fail))
    with pytest.raises(HttpParserError):
        parser.feed_data(GET if fail else b"\0\0\r\n\r\n")


def test_an_upgrade_ends_the_parsing_behind_the_head() -> None:
    """`HttpParserUpgrade` says at which byte, and `should_upgrade` that it is one."""
    parser = HttpRequestParser(Callbacks())
    head = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with pytest.raises(HttpParserUpgrade) as raised:
        parser.feed_data(head + b"behind")
    assert raised.value.args[0] == len(head)
    assert parser.should_upgrade()


@pytest.mark.parametrize("length", [b"x", b"-1", b"1, 1", b"+1", b"0x1", b"1 1"])
def test_the_parser_refuses_a_length_that_is_none(length: bytes) -> None:
    """A Content-Length that is no number never reaches the app."""
    with pytest.raises(HttpParserError):
        HttpRequestParser(Callbacks()).feed_data(b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n")


# --- the server


@pytest.mark.anyio
async def test_the_default_headers_are_renewed_by_ticks() -> None:
    """Each tenth tick makes them of the date and `config.encoded_headers`; a tick says whether to exit."""
    server = UvicornServer(config())
    server.config.load()
    server.config.encoded_headers.append((b"connection", b"close"))
    assert await server.on_tick(0) is False
    assert [name for name, _ in server.server_state.default_headers] == [b"date", b"connection"]
    server.should_exit = True
    assert await server.on_tick(1) is True


@pytest.mark.anyio
async def test_startup_listens_on_each_socket_and_shutdown_closes_them() -> None:
    """`servers` has one entry for each socket, `lifespan.state` what the app yielded; `shutdown` ends both."""
    server = UvicornServer(config())
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.startup([listener])
    assert len(server.servers) == 1
    assert server.lifespan.state == {}
    protocol = server.config.http_protocol_class(  # type: ignore[call-arg]
        config=server.config, server_state=server.server_state, app_state=server.lifespan.state
    )
    assert isinstance(protocol, HttpToolsProtocol)
    transport = Transport()
    protocol.connection_made(transport)
    asyncio.get_running_loop().call_soon(protocol.connection_lost, None)
    await server.shutdown([listener])
    assert transport.is_closing()
    assert listener.fileno() == -1


def test_a_signal_sets_should_exit() -> None:
    """`handle_exit` is what uvicorn does about a signal."""
    server = UvicornServer(config())
    server.handle_exit(15, None)
    assert server.should_exit


# --- and the rest


def test_status_lines_and_the_high_water_mark() -> None:
    """A status line is bytes with its line end, for every status; reading pauses at 64 KiB."""
    assert STATUS_LINE[503] == b"HTTP/1.1 503 Service Unavailable\r\n"
    assert set(range(200, 600)) <= set(STATUS_LINE)
    assert HIGH_WATER_LIMIT == 65536


def test_the_proxy_middleware_finds_the_client_in_one_step() -> None:
    """It sets `scope["client"]` before it awaits anything."""

    async def nothing(*_: object) -> None:
        pass

    scope: dict[str, Any] = {
        "type": "http",
        "scheme": "http",
        "client": ("10.0.0.1", 1),
        "headers": [(b"x-forwarded-for", b"203.0.113.7")],
    }
    asked = ProxyHeadersMiddleware(nothing, "10.0.0.0/8")(scope, nothing, nothing)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        asked.send(None)
    assert scope["client"] == ("203.0.113.7", 0)
