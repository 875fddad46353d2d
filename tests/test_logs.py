"""Log lines: one each whatever is in them, and never waited for."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from app import logs
from app.logs import BackgroundHandler, TextFormatter, dropped_lines, printable, set_up_logging
from tests.pace import within
from tests.photos import make_jpeg
from tests.running import clean_environment, wait_until

NASTY = 'a\r\n2026-01-01 ERROR forged\x1b[2J\x00\u2028\u202e"}\\'


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level


def record(message: str, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord("app.test", level, "file.py", 1, "%s", (message,), None)


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_line_stays_a_line(capfd: pytest.CaptureFixture[str], log_format: str) -> None:
    """Line breaks, terminals' sequences and quotes in a message, an extra or an error's text end no line."""
    set_up_logging("info", log_format)  # type: ignore[arg-type]
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("app.test").exception("Message %s", NASTY, extra={"path": NASTY})
    lines = capfd.readouterr().err.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    if log_format == "json":
        (line,) = lines
        document = json.loads(line)
        assert (document["level"], document["logger"], document["path"]) == ("ERROR", "app.test", NASTY)
        assert document["message"] == f"Message {NASTY}"
        assert "ValueError" in document["traceback"]
        assert document["time"].endswith("+00:00")
    else:
        # The trace follows, each of its lines indented: no line of it can pass for another record.
        assert all(line.startswith("    ") for line in lines[1:])
        assert "Message a\\r\\n" in lines[0]


def test_ordinary_text_is_left_alone() -> None:
    """Letters of any language, and punctuation, are printable."""
    assert printable("Köln, 東京 – 3×3 …") == "Köln, 東京 – 3×3 …"
    assert printable("a\tb") == "a\\tb"
    line = TextFormatter().format(record("hello"))
    assert line.endswith("ERROR   hello")
    assert line[:20].count("-") == 2


class Held:
    """A target that writes nothing until it is let go."""

    def __init__(self) -> None:
        self.failed = 0
        self.let_go = threading.Event()
        self.bursts: list[list[str]] = []
        self.asked = 0

    def emit_all(self, records: Sequence[logging.LogRecord]) -> None:
        self.asked += 1
        self.let_go.wait(30)
        self.bursts.append([record.getMessage() for record in records])

    @property
    def lines(self) -> list[str]:
        return [line for burst in self.bursts for line in burst]


def test_a_reader_that_has_stopped_holds_up_nobody() -> None:
    """Lines that find no room are dropped and counted, and closing waits no longer than it may."""
    target = Held()
    handler = BackgroundHandler(target, most_waiting=10)
    handler.emit(record("first"))
    wait_until(lambda: target.asked == 1)
    with within(5):
        for number in range(100):
            handler.emit(record(str(number)))
    assert handler.dropped == 90
    with within(5):
        handler.close()
    target.let_go.set()
    wait_until(lambda: target.lines == ["first", *map(str, range(10))])
    assert len(target.bursts) == 2  # what waited is written together


def test_only_an_ordinary_line_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is written at once, and so is everything when the handler closes."""
    monkeypatch.setattr(logs, "_GATHER_SECONDS", 3600.0)
    target = Held()
    target.let_go.set()
    handler = BackgroundHandler(target)
    handler.emit(record("error"))
    wait_until(lambda: target.lines == ["error"])
    handler.emit(record("ordinary", level=logging.INFO))
    handler.emit(record("another", level=logging.INFO))
    handler.close()
    assert target.lines == ["error", "ordinary", "another"]


@pytest.mark.usefixtures("restored_logging")
def test_a_line_that_cannot_be_written_takes_no_other_along(capfd: pytest.CaptureFixture[str]) -> None:
    """A message whose arguments do not fit is counted as lost; its neighbours are written."""
    set_up_logging("info", "text", in_background=True)
    for message, argument in (("before", ()), ("%d", ("no number",)), ("after", ())):
        logging.getLogger("app.test").info(message, *argument)
    logging.getLogger().handlers[0].close()
    assert [line.split()[-1] for line in capfd.readouterr().err.splitlines()] == ["before", "after"]
    assert dropped_lines() == 1


@pytest.mark.usefixtures("restored_logging")
def test_lines_are_written_before_the_process_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """What was logged is written when the handler closes, in its order."""
    set_up_logging("info", "json", in_background=True)
    for number in range(200):
        logging.getLogger("app.test").info("line %d", number)
    logging.getLogger().handlers[0].close()
    lines = capfd.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in lines] == [f"line {number}" for number in range(200)]
    assert dropped_lines() == 0


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("where", ["a full disk", "a closed stream", "a pipe that nobody reads"])
def test_requests_go_on_where_no_log_can_be_written(tmp_path: Path, where: str) -> None:
    """The service starts, answers and stops with status 0; the lines it lost are counted in its metrics."""
    port = free_port()
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "app", "serve", "--backend", "null", "--port", str(port)]
    shell = {"a full disk": "2>/dev/full", "a closed stream": "2>&-", "a pipe that nobody reads": ""}[where]
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *command],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        stderr=writer,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def is_ready() -> bool:
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(is_ready, 60)
            image = make_jpeg(1, (64, 48))
            # 400 lines of about 700 bytes: more than a pipe holds.
            for _ in range(400):
                assert client.post("/predict", content=image, headers={"User-Agent": "u" * 256}).status_code == 200
            metrics = client.get("/metrics").text
        if where == "a full disk":
            dropped = float(metrics.split("\nresnet_log_lines_dropped ")[1].split("\n")[0])
            assert dropped > 100
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)
