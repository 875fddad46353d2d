"""Files that run out: health checks and what is served go on, the rest is refused or waits, and a line says so."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from app.server.open_files import OpenFiles, Shortage
from tests.photos import make_jpeg
from tests.raw_http import post
from tests.running import START_SECONDS, ServiceProcess, service_process, wait_until

LIMIT = 64
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
PREDICT = post(make_jpeg(1, (64, 48))).replace(b"Connection: close\r\n", b"")
LINE = "Files run out"


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    """One that may open 64 files. The parameter is its deadline for headers, in seconds."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}));"
        "from app.cli import main; main()"
    )
    flags = ("--backend", "null", "--header-timeout-seconds", str(getattr(request, "param", 100)))
    with service_process(*flags, folder=tmp_path, program=program) as service:
        service.wait_for("Ready:", START_SECONDS)
        yield service


def connect(service: ServiceProcess) -> socket.socket:
    line = next(line for line in service.lines if "Listening on" in line)
    port = int(line.partition("127.0.0.1:")[2].partition(";")[0])
    return socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)


def status(connection: socket.socket, request: bytes) -> int:
    """Of the answer; 0 where there is none."""
    try:
        connection.sendall(request)
        return int(connection.recv(65_536)[9:12] or 0)
    except ConnectionError:
        return 0


def cpu_seconds(service: ServiceProcess) -> float:
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(service: ServiceProcess) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


def test_many_connections_leave_files_for_what_must_go_on(service: ServiceProcess) -> None:
    """Of more idle connections than there are files, the last are refused in words, and a new one is asked for its
    health; who was served is served on; when they are gone all is as before; and one line says it."""
    with ExitStack() as sockets:
        served = sockets.enter_context(connect(service))
        assert status(served, PREDICT) == 200
        idle = [sockets.enter_context(connect(service)) for _ in range(3 * LIMIT)]
        # Each is held, or has its refusal: no file is taken beyond those that are kept.
        last = idle[-1]
        assert b"HTTP/1.1 503" in last.recv(65_536)
        assert open_files(service) < LIMIT
        assert status(served, PREDICT) == 200
        assert status(served, HEALTH) == 200
        for connection in idle:
            connection.setblocking(False)
        refused = 0
        for connection in idle[:-1]:
            with suppress(BlockingIOError):
                refused += b"503" in connection.recv(65_536)
        assert refused > LIMIT
        # One of those that are only read for a health check leaves its place.
        held = [each for each in idle[:-1] if not is_closed(each)]
        held[-1].close()
        wait_until(lambda: probe(service) == 200)
    wait_until(lambda: ask_anew(service) == 200)
    assert len([line for line in service.lines if LINE in line]) == 1
    assert f"this process may have {LIMIT} open" in next(line for line in service.lines if LINE in line)
    assert service.stop() == 0


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def probe(service: ServiceProcess) -> int:
    with connect(service) as connection:
        return status(connection, HEALTH)


def ask_anew(service: ServiceProcess) -> int:
    with connect(service) as connection:
        return status(connection, PREDICT)


@pytest.mark.parametrize("service", [30], indirect=True)
def test_silent_connections_do_not_keep_health_checks_out(service: ServiceProcess) -> None:
    """Silent connections on the last files are closed long before the others: new health checks are answered."""
    with ExitStack() as sockets:
        silent = [sockets.enter_context(connect(service)) for _ in range(3 * LIMIT)]
        assert b"HTTP/1.1 503" in silent[-1].recv(65_536)

        def is_answered() -> bool:
            with connect(service) as connection:
                return status(connection, HEALTH) == 200

        wait_until(is_answered)
        silent[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[0].recv(1)


def test_without_any_file_connections_wait_and_cost_nothing(service: ServiceProcess) -> None:
    """Where not one more can be opened, what is open is served on and no core is kept busy; what waits meanwhile is
    answered once files are there again."""
    with ExitStack() as sockets:
        served = sockets.enter_context(connect(service))
        assert status(served, HEALTH) == 200
        pid = service.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        waiting = [sockets.enter_context(connect(service)) for _ in range(10)]
        service.wait_for(LINE, START_SECONDS)
        before = cpu_seconds(service)
        waiting[0].settimeout(2.0)
        with pytest.raises(TimeoutError):
            waiting[0].recv(1)
        # Of two seconds, of which accepting again and again would take each.
        assert cpu_seconds(service) - before < 0.5
        assert status(served, PREDICT) == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for connection in waiting:
            connection.settimeout(START_SECONDS)
            assert status(connection, HEALTH) == 200
        assert ask_anew(service) == 200
    assert service.stop() == 0


def test_a_stop_while_files_are_out_is_in_good_order(service: ServiceProcess) -> None:
    """A service that accepts nothing for want of files still ends when it is told to."""
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)

    def are_out() -> bool:
        # Again and again: a file that was open for a moment leaves room when it closes.
        taken = {int(number) for number in os.listdir(f"/proc/{service.process.pid}/fd")}
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (free, limits[1]))
        return any(LINE in line for line in service.lines)

    wait_until(are_out, START_SECONDS)
    assert service.stop() == 0


class Transport:
    def __init__(self, number: int) -> None:
        self.number = number

    def get_extra_info(self, name: str) -> Transport:
        return self

    def fileno(self) -> int:
        return self.number


@pytest.mark.parametrize(
    ("limit", "number", "shortage"),
    [
        (64, 47, Shortage.NONE),
        (64, 48, Shortage.FEW_LEFT),
        (64, 55, Shortage.FEW_LEFT),
        (64, 56, Shortage.LAST),
        (1024, 959, Shortage.NONE),
        (1024, 960, Shortage.FEW_LEFT),
        (1024, 1000, Shortage.LAST),
        (1 << 62, 1_000_000, Shortage.NONE),
        (3, 20, Shortage.LAST),
    ],
)
def test_the_number_of_a_file_tells_how_many_are_left(limit: int, number: int, shortage: Shortage) -> None:
    """A quarter of the files is kept, up to 64 of them, and of these a half for refusals."""
    files = OpenFiles(lambda: limit)
    assert files.shortage(cast("Any", Transport(number))) is shortage


def test_one_line_in_half_a_minute_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """However many connections come, the log has one line of them every 30 seconds."""
    times = iter((0.0, 0.0, 0.0, 1.0, 29.0, 31.0, 31.0, 31.5))
    files = OpenFiles(lambda: 64, lambda: next(times))
    for _ in range(5):
        files.shortage(cast("Any", Transport(60)))
    assert [LINE in record.getMessage() for record in caplog.records] == [True, True]
