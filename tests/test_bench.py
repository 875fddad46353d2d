"""`resnet-serve bench` on real servers: what it counts, what it writes, and what it says where it cannot measure."""

from __future__ import annotations

import asyncio
import http.server
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from app.backends.null import NullBackend
from app.backends.transfer import batch_copy
from app.bench import generator
from app.bench import photos as bench_photos
from app.bench.answers import Answer
from app.bench.bodies import write_bodies
from app.bench.clients import Clients, prepare
from app.bench.loops import closed_loop, open_loop
from app.bench.photos import find_photos, smallest_image
from app.bench.picture import check_matplotlib
from app.bench.processes import cpu_seconds, family, open_files, rss_bytes
from app.bench.report import Report
from app.bench.run import prepare_photos
from app.bench.search import Highest
from app.bench.serving import environment_of, null_settings, reached
from app.bench.steps import Step
from app.bench.target import Target, parse_target
from app.bench.text import render
from app.cli import bench as bench_command
from app.errors import SettingError, StartError
from app.settings import ModelSettings, Settings, load_settings
from tests.certificates import self_signed
from tests.pace import within
from tests.photos import LIMITS, make_jpeg, null_classes
from tests.running import CACHE_DIR, RunningServer, clean_environment, wait_until

IMAGES = [make_jpeg(seed) for seed in range(3)]
CLASSES = [null_classes(image) for image in IMAGES]
TINY = ("--quick", "--seconds", "0.2", "--step-requests", "20", "--p99-ms", "100")


def clients_of(server: RunningServer, expected: list[tuple[int, int]] | None = None) -> Clients:
    target = parse_target(server.address)
    return Clients(target, [prepare(target, *each) for each in zip(IMAGES, expected or CLASSES, strict=True)])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "app", "bench", *arguments]


def environment(**more: str) -> dict[str, str]:
    return clean_environment() | {"PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "200"} | more


def bench(*arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=110
    )


def test_loops_count_what_a_real_server_answered(null_server: RunningServer, client: httpx.Client) -> None:
    """Closed and open loop: every request is one that the server answered, rightly, with its stages and batch."""

    def served() -> float:
        found = re.search(
            r'^resnet_requests_total\{.*"/predict".*\} ([\d.]+)$', client.get("/metrics").text, re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    async def main() -> list[Step]:
        clients = clients_of(null_server)
        steps = [
            await closed_loop(clients.ask, clients=3, requests=60, target_ms=5000),
            await open_loop(clients.ask, rate=100, requests=50, target_ms=5000),
        ]
        clients.close()
        return steps

    before = served()
    steps = asyncio.run(main())
    assert served() - before == 110
    for step, requests in zip(steps, (60, 50), strict=True):
        assert (step.requests, step.good, step.in_time, step.wrong, step.unanswered) == (
            requests,
            requests,
            requests,
            0,
            0,
        )
        assert step.statuses == {"200": requests}
        assert step.connection_errors == {}
        assert sum(step.batch_sizes.values()) == requests
        assert set(step.stages_ms) == {"decode", "queue", "inference", "other"}
        assert min(step.stages_ms.values()) >= 0
        assert step.latency_ms is not None
        assert 0 < step.latency_ms.p50 <= step.latency_ms.p99 <= step.latency_ms.max


def test_an_answer_for_another_image_is_wrong(null_server: RunningServer) -> None:
    """The null backend's answers name their image: one that names another is counted as wrong."""

    async def main() -> Step:
        clients = clients_of(null_server, [CLASSES[1], CLASSES[1], CLASSES[2]])
        step = await closed_loop(clients.ask, clients=1, requests=30, target_ms=5000)
        clients.close()
        return step

    step = asyncio.run(main())
    assert (step.requests, step.good, step.wrong) == (30, 20, 10)
    assert not step.keeps_target


def test_refusals_and_broken_connections_are_counted(null_server: RunningServer) -> None:
    """A refused body has its status and code, and where nobody listens each request is an error of its own."""

    async def main() -> tuple[Step, Step]:
        target = parse_target(null_server.address)
        refused = Clients(target, [prepare(target, b"no image")])
        nowhere = Clients(Target("http", "127.0.0.1", 9), [prepare(target, b"")])
        steps = (
            await closed_loop(refused.ask, clients=2, requests=10, target_ms=100),
            await open_loop(nowhere.ask, rate=100, requests=10, target_ms=100),
        )
        refused.close()
        return steps

    refused, nowhere = asyncio.run(main())
    assert refused.statuses == {"415": 10}
    assert refused.codes == {"unsupported_image_format": 10}
    assert nowhere.connection_errors == {"refused": 10}
    assert refused.good == nowhere.good == nowhere.unanswered == 0


def test_a_real_stall_is_in_the_latencies_of_all_that_were_due(
    null_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is held for half a second: whoever was due meanwhile has waited for its end."""
    gate = threading.Event()
    gate.set()
    infer = NullBackend.infer

    def gated(*arguments: object) -> object:
        gate.wait(30)
        return infer(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(NullBackend, "infer", gated)

    async def main() -> Step:
        clients = clients_of(null_server)

        async def ask(number: int) -> Answer:
            if number == 10:
                gate.clear()
                asyncio.get_running_loop().call_later(0.5, gate.set)
            return await clients.ask(number)

        step = await open_loop(ask, rate=50, requests=60, target_ms=100, arrivals="steady", give_up_seconds=30)
        clients.close()
        return step

    step = asyncio.run(main())
    assert step.good == 60
    # Due at 20 ms from each other, those of the first 0.4 s of the stall have more than 100 ms to wait.
    assert 60 - step.in_time >= 20
    assert step.latency_ms is not None
    assert step.latency_ms.max >= 450


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos, and what is none."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "photos").mkdir()
    for number, image in enumerate(IMAGES):
        (folder / "photos" / f"{number}.jpg").write_bytes(image)
    (folder / "photos" / "bad.jpg").write_bytes(b"no image")
    (folder / "photos" / "notes.txt").write_text("no image either")
    return folder


@pytest.fixture(scope="module")
def standard(folder: Path) -> tuple[subprocess.CompletedProcess[str], Report]:
    """A whole run of the command, as short as it can be, on a server that it starts."""
    done = bench(*TINY, "--photos", "photos", "--", "--backend", "null", "--max-batch-size", "4", folder=folder)
    assert done.returncode == 0, done.stderr
    return done, Report.model_validate_json((folder / "bench.json").read_text(encoding="utf-8"))


def test_the_command_measures_each_part_and_the_whole(
    standard: tuple[subprocess.CompletedProcess[str], Report],
) -> None:
    """Every roofline is positive, the shares of a request sum to 1, and every answer was right."""
    _, report = standard
    (measured,) = report.rounds
    for name in ("decode", "decode_alone", "smallest", "model", "model_alone", "transfer"):
        pace = getattr(measured, name)
        assert pace.rate > 0, name
        assert pace.call_ms > 0, name
    assert measured.decode.cpu_seconds_an_image > measured.smallest.cpu_seconds_an_image > 0
    assert measured.http_cpu_seconds > 0
    assert report.costs is not None
    assert sum(report.costs.shares.values()) == pytest.approx(1)
    assert report.costs.bottleneck in report.costs.shares
    assert report.costs.possible_rate > 0
    assert report.server.planned_batch == 4
    assert report.server.settings == {"backend": "null", "max_batch_size": "4", "cache_dir": os.environ[CACHE_DIR]}
    assert (report.server.backend, report.server.model) == ("null", "null")
    assert report.server.ready_seconds is not None
    assert report.photos.count == 3
    assert report.photos.smallest_bytes == min(map(len, IMAGES))
    assert report.machine.usable_cpus >= 1
    assert report.versions["resnet-serve"] == report.server.version
    assert report.highest is not None
    assert report.closed.clients == 16
    assert [step.offered_rate for step in report.curve] == sorted(step.offered_rate or 0 for step in report.curve)
    assert all(step.good > 0 and step.wrong == 0 for step in report.all_steps)
    assert report.memory is not None
    assert report.memory.peak_bytes >= report.memory.before_bytes > 10_000_000
    assert report.memory.files_peak > 5


def test_the_command_says_what_it_found(
    standard: tuple[subprocess.CompletedProcess[str], Report], folder: Path
) -> None:
    """stdout has machine, versions, command, photos, stages and load; stderr what is being done."""
    done, report = standard
    for text in (report.machine.cpu, "--max-batch-size 4", "3 files of photos", "Bottleneck:", "16 clients, closed"):
        assert text in done.stdout, text
    assert "Not sent: bad.jpg: The body is not an image" in done.stdout
    assert "a hint only" in done.stdout
    for text in ("Starting the service", "decode only", "model only", "HTTP only", "Open loop at"):
        assert text in done.stderr, text
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.png", "photos"]


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_rate_that_was_not_confirmed_is_no_headline(
    standard: tuple[subprocess.CompletedProcess[str], Report], confirmed: bool
) -> None:
    """The text says so beside the rate, which is bold only where it was kept twice."""
    _, report = standard
    highest = Highest(123.0, confirmed, "A reason.", ())
    console = Console(width=200, record=True, file=io.StringIO(), highlight=False)
    console.print(render(report.model_copy(update={"highest": highest})))
    (line,) = [line for line in console.export_text(styles=True).splitlines() if "Highest rate" in line]
    assert ("123.0/s, not confirmed. A reason." in line) is not confirmed
    assert ("\x1b[1m123.0/s\x1b[0m" in line) is confirmed


def test_the_report_is_one_known_document(
    standard: tuple[subprocess.CompletedProcess[str], Report], folder: Path
) -> None:
    """The JSON has exactly the report's fields: one more, or one less, is refused."""
    document = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert set(document) == set(Report.model_fields)
    with pytest.raises(ValueError, match="extra"):
        Report.model_validate(document | {"more": 1})
    del document["closed"]
    with pytest.raises(ValueError, match="closed"):
        Report.model_validate(document)


def test_the_picture_shows_something(standard: tuple[subprocess.CompletedProcess[str], Report], folder: Path) -> None:
    """A PNG of a readable size with the colours of its lines and bars on white."""
    with Image.open(folder / "bench.png") as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    # Decoding's blue, and p99's red: a bar and a line.
    for colour, least in (((0x3B, 0x76, 0xAF), 2000), ((0xC1, 0x54, 0x3E), 200)):
        assert counts[(colours == colour).all(axis=1)].sum() > least


def test_a_service_at_a_url(null_server: RunningServer, folder: Path) -> None:
    """Load alone is measured, and each answer is held against what the service said to that image alone."""
    done = bench(
        *TINY, "--photos", "photos", "--url", null_server.address, "--no-picture", "--output", "url.json", folder=folder
    )
    assert done.returncode == 0, done.stderr
    report = Report.model_validate_json((folder / "url.json").read_text(encoding="utf-8"))
    # Nothing is known of the server's machine but what its health says.
    assert re.search(r"│ load from +│", done.stdout)
    assert re.search(r"│ its versions +│", done.stdout)
    (folder / "url.json").unlink()
    assert report.server.url == null_server.address
    assert not report.server.was_started
    assert (report.rounds, report.costs, report.memory) == ((), None, None)
    assert "was not started by this run" in str(report.rooflines_missing)
    assert "Rooflines: none" in done.stdout
    assert report.single is not None
    assert report.highest is not None
    assert report.all_steps == [report.closed, report.single, *report.curve]
    assert all(step.good > 0 and step.wrong == 0 for step in report.all_steps)


def test_a_soak_counts_its_requests_and_watches_memory(folder: Path) -> None:
    """So many requests and no more; memory and open files over time are in the report and in the picture."""
    done = bench(
        "--requests", "400", "--photos", "photos", "--output", "soak.json", folder=folder, RESNET_BACKEND="null"
    )
    assert done.returncode == 0, done.stderr
    report = Report.model_validate_json((folder / "soak.json").read_text(encoding="utf-8"))
    assert (folder / "soak.png").stat().st_size > 10_000
    (folder / "soak.json").unlink()
    (folder / "soak.png").unlink()
    assert (report.kind, report.closed.requests, report.closed.good) == ("soak", 400, 400)
    assert report.server.settings == {"backend": "null", "cache_dir": os.environ[CACHE_DIR]}
    assert report.memory is not None
    assert len(report.memory.samples) >= 2
    assert "Server's memory (RSS)" in done.stdout


@contextmanager
def long_soak(folder: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """The command with more requests than a test has time for; whatever of it still runs at the end is killed."""
    # Of what a shell runs in its background SIGINT is ignored, and a process has that from its parent.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(
            [*before, *command("--requests", "1000000", "--no-picture", "--", "--backend", "null")],
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, inherited)
    with started as process:
        try:
            yield process
        finally:
            for each in family(process.pid) if process.poll() is None else []:
                os.kill(each, signal.SIGKILL)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_was_started_ends_with_the_run(tmp_path: Path, told: signal.Signals) -> None:
    """In the middle of a load: the load, the server and every other process of the run end, and soon."""
    with long_soak(tmp_path) as process:
        wait_until(lambda: running(process.pid, "generator"))
        (generator_pid,) = running(process.pid, "generator")
        # It has begun to send: its clients' connections are open.
        wait_until(lambda: open_files(generator_pid) > 16)
        started = family(process.pid)[1:]
        assert len(started) >= 2
        process.send_signal(told)
        # A generator that finished its load, or was waited for, would take ten seconds alone.
        with within(8):
            assert process.wait(60) == 128 + told
        for each in started:
            wait_until(lambda pid=each: not Path(f"/proc/{pid}").exists())
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_a_terminal_may_close(tmp_path: Path) -> None:
    """SIGHUP is left ignored where it was, and SIGTERM still ends the run."""
    with long_soak(tmp_path, "nohup") as process:
        wait_until(lambda: running(process.pid, "generator"))
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        ignored = re.search(r"^SigIgn:\s+([0-9a-f]+)$", status, re.MULTILINE)
        assert ignored
        assert int(ignored[1], 16) >> (signal.SIGHUP - 1) & 1
        process.send_signal(signal.SIGTERM)
        with within(8):
            assert process.wait(60) == 128 + signal.SIGTERM


def test_a_server_that_dies_during_a_soak_ends_it(tmp_path: Path) -> None:
    """Killed under load: the run says so at once, with its status, and does not ask on where nobody listens."""
    with long_soak(tmp_path) as process:
        wait_until(lambda: running(process.pid, "serve") and running(process.pid, "generator"))
        (server,) = running(process.pid, "serve")
        wait_until(lambda: cpu_seconds(server) > 4)
        os.kill(server, signal.SIGKILL)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: The server ended with status -9 during the run." in told, told
    assert list(tmp_path.iterdir()) == []


def running(pid: int, word: str) -> list[int]:
    """The processes that `pid` started which have `word` in their command line."""
    found = []
    for each in family(pid)[1:]:
        with suppress(OSError):
            if word in Path(f"/proc/{each}/cmdline").read_text(encoding="utf-8"):
                found.append(each)
    return found


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from app.bench.serving import started
from app.errors import StartError
from app.settings import load_settings

async def main(what):
    async with started(load_settings(backend="null"), "server", Path("."), 60) as serving:
        if what == "killed":
            os.kill(serving.pid, signal.SIGKILL)
        else:
            asyncio.current_task().cancel()
        await asyncio.Event().wait()  # what ends this, ends it from without

try:
    asyncio.run(main(sys.argv[1]))
except (StartError, asyncio.CancelledError) as error:
    print(repr(error))
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [("killed", r"StartError\('The server ended with status -9 during the run\."), ("cancelled", r"CancelledError\(")],
)
def test_a_server_that_ends_while_it_is_measured_is_told(tmp_path: Path, what: str, told: str) -> None:
    """Whatever is awaited meanwhile ends; who cancels the run itself is not told of the server."""
    program = [sys.executable, "-c", _KILLED, what]
    done = subprocess.run(program, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert re.match(told, done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize("unanswered", [0, 1])
def test_what_a_soak_did_not_get_fails_it(
    standard: tuple[subprocess.CompletedProcess[str], Report], unanswered: int
) -> None:
    """A soak in which one request was refused is a failed one; a measurement under too much load is none."""
    _, report = standard
    closed = replace(report.closed, requests=report.closed.good + unanswered, codes={"overloaded": unanswered})
    assert report.model_copy(update={"closed": closed}).failures == []
    told = report.model_copy(update={"closed": closed, "kind": "soak"}).failures
    assert len(told) == unanswered
    assert all("1 × overloaded" in each for each in told)


def test_a_soak_without_a_right_answer_is_an_error(folder: Path) -> None:
    """A service that refuses every photo: nothing is written, and the exit status is not 0."""
    soak = ("--requests", "20", "--photos", "photos", "--output", "none.json", "--no-picture")
    done = bench(*soak, "--", "--backend", "null", "--max-received-bytes", "1", folder=folder)
    assert done.returncode == 1
    assert "gave no right answer in a closed loop: " in done.stderr, done.stderr
    assert not (folder / "none.json").exists()


@contextmanager
def silent() -> Iterator[Target]:
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Target("http", "127.0.0.1", listener.getsockname()[1])


def test_a_server_that_answers_nothing_does_not_hold_the_generator(tmp_path: Path) -> None:
    """What an image's answer is cannot be learnt from it, and after three images it is said; a soak counts them."""
    write_bodies(tmp_path / "photos", [b"x"] * 8)
    with silent() as target:
        told = {"target": asdict(target), "bodies": str(tmp_path / "photos"), "give_up_seconds": 0.1}
        with pytest.raises(StartError, match=r"3 images were not answered within 0\.1 s each"):
            generator.learn(dict(told), lambda done: None)
        step = generator.run_step(
            told | {"loop": "closed", "clients": 2, "requests": 4, "target_ms": 100}, lambda done: None
        )
    assert (step["requests"], step["good"], step["connection_errors"]) == (4, 0, {"no answer": 4})


@contextmanager
def answering(status: int, body: bytes, certificate: Path | None = None, **headers: str) -> Iterator[Target]:
    """A server that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trusted.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
            server.socket = trusted.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Target("http" if certificate is None else "https", "127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b"<html>", "is not resnet-serve: GET /readyz gave 200"),
        (200, b'{"status": "ok"}', "is not resnet-serve"),
        (404, b"{}", "is not resnet-serve: GET /readyz gave 404"),
        (302, b"", "answers with a redirect to 'http://elsewhere.test/', which is not followed"),
        (
            503,
            b'{"state": "loading", "detail": "The model is still loading."}',
            "not ready after 0.2 s: The model is still",
        ),
    ],
)
def test_who_answers_at_a_url_is_looked_at(status: int, body: bytes, told: str) -> None:
    """Another service, a redirect and one that does not get ready are told apart, each with what was seen."""
    with (
        answering(status, body, Location="http://elsewhere.test/") as target,
        pytest.raises(SettingError, match=re.escape(told)),
    ):
        asyncio.run(reached(target, 0.2))


def test_https_is_trusted_for_readiness_as_it_is_for_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that this system trusts is enough for both; one that it does not trust is refused by name."""
    health = b'{"state": "ready", "ready": true, "version": "1"}'
    with answering(200, health, self_signed(tmp_path)) as target:
        with pytest.raises(SettingError, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(reached(target, 5))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
        assert asyncio.run(reached(target, 5)).health["ready"] is True


def test_mistakes_are_told_before_anything_is_measured(folder: Path, tmp_path: Path) -> None:
    """Nobody at the URL, a flag that serve does not have, an --output that is no file: told without a trace."""
    for arguments, told in (
        (("--url", "http://127.0.0.1:9"), "http://127.0.0.1:9 cannot be reached"),
        (("--", "--no-such-flag", "1"), "No such option: --no-such-flag"),
        (("--output", "."), "--output: . is a folder; name the report's file in it, such as bench.json"),
        (("--output", str(folder)), f"--output: {folder} is a folder"),
        (("--output", "report.png"), "report.png is where the picture goes; name the report, such as report.json"),
    ):
        done = bench(*arguments, folder=tmp_path)
        assert done.returncode != 0
        assert told in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """Its last line is told."""
    done = bench("--requests", "10", "--no-picture", "--", "--weights", str(tmp_path / "none.pth"), folder=tmp_path)
    assert done.returncode == 1
    assert re.search(r"Error: The server ended with status 1\. It said last: .*none\.pth", done.stderr), done.stderr


def decode_for_service(data: bytes) -> np.ndarray:
    from app.backends import null_checkpoint
    from app.images import decode

    return decode(data, null_checkpoint().preprocessing, LIMITS)


def test_photos_are_the_users_or_at_hand_or_synthetic(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's good images by name; without one scikit-image's, else synthetic ones; the source says which."""
    (folder / "photos" / "album.jpg").mkdir()
    (folder / "photos" / "lost.jpg").symlink_to("nowhere")
    own = find_photos(folder / "photos", decode_for_service)
    (folder / "photos" / "album.jpg").rmdir()
    (folder / "photos" / "lost.jpg").unlink()
    assert own.bodies == tuple(IMAGES)
    assert [each.partition(":")[0] for each in own.skipped] == ["bad.jpg", "lost.jpg"]
    for empty, told in ((tmp_path, "holds no image"), (tmp_path / "nowhere", "cannot be read: No such file")):
        with pytest.raises(SettingError, match=told):
            find_photos(empty, decode_for_service)
    carried = find_photos(None, decode_for_service)
    assert "scikit-image" in carried.source
    monkeypatch.setattr(bench_photos, "_carried", lambda: None)
    made = find_photos(None, decode_for_service)
    assert "no photos" in made.source
    assert len({null_classes(body) for body in made.bodies}) == len(made.bodies)
    for body in (*carried.bodies, *made.bodies):
        assert 40_000 < len(body) < 200_000


def test_photos_that_are_too_large_a_body_are_not_sent(tmp_path: Path) -> None:
    """The service's own limit on a body holds for what it is sent: each such photo would be a refusal, not a load."""
    (tmp_path / "photos").mkdir()
    for name, image in (("fits.jpg", IMAGES[0]), ("large.jpg", IMAGES[1] + bytes(len(IMAGES[0])))):
        (tmp_path / "photos" / name).write_bytes(image)
    settings = load_settings(backend="null", max_body_bytes=str(len(IMAGES[0])))
    photos = prepare_photos(tmp_path, settings, tmp_path / "photos")
    assert photos.bodies == (IMAGES[0],)
    assert re.fullmatch(r"large\.jpg: The request body is over the limit of [\d,]+ bytes\.", *photos.skipped)


def test_the_smallest_image_is_as_large_as_a_photo_and_costs_nothing() -> None:
    """A picture of one pixel that the service decodes, with bytes behind it that it does not read."""
    data = smallest_image(padded_to_bytes=100_000)
    assert len(data) == 100_000
    assert np.ptp(decode_for_service(data), axis=(0, 1)).max() == 0


def test_copies_to_the_device_arrive() -> None:
    """On CPU a batch is made of the images; a later call copies what they are then."""
    images = [np.full((4, 4, 3), value, np.uint8) for value in (1, 2)]
    copy = batch_copy("cpu (2 threads)", images)
    assert np.array_equal(copy(), np.stack(images))
    images[1][:] = 3
    assert np.array_equal(copy(), np.stack(images))


def test_a_process_is_read_from_proc() -> None:
    """This process has memory, open files and CPU time, and its children are part of its family."""
    before = open_files(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in family(os.getpid())
        assert open_files(os.getpid()) > before
        assert child.stdin is not None
        child.stdin.close()
    assert child.pid not in family(os.getpid())
    assert rss_bytes(os.getpid()) > 20_000_000
    assert cpu_seconds(os.getpid()) > 0
    assert cpu_seconds(2**22 + 1) == rss_bytes(2**22 + 1) == open_files(2**22 + 1) == 0


def test_settings_reach_other_processes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set is in their environment and nothing else is; the null service drops what is said of the model."""
    monkeypatch.setenv("RESNET_BACKEND", "torch")
    monkeypatch.setenv("RESNET_LOG_LEVEL", "error")
    settings = load_settings(
        cors_origins="http://a.test,http://b.test", weights="x.pth", max_batch_size="4", pool="ceil"
    )
    given = {name: value for name, value in environment_of(settings).items() if name.startswith("RESNET_")}
    assert given == {
        "RESNET_BACKEND": "torch",
        "RESNET_LOG_LEVEL": "error",
        "RESNET_CORS_ORIGINS": "http://a.test,http://b.test",
        "RESNET_WEIGHTS": "x.pth",
        "RESNET_POOL": "ceil",
        "RESNET_MAX_BATCH_SIZE": "4",
        CACHE_DIR: os.environ[CACHE_DIR],
    }
    null = null_settings(settings)
    assert isinstance(null, Settings)
    assert (null.backend, null.weights, null.max_batch_size, null.log_level) == ("null", None, 4, "error")
    assert null.model_fields_set & ModelSettings.model_fields.keys() == {"backend"}
    assert "RESNET_WEIGHTS" not in environment_of(null)


def test_without_matplotlib_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before minutes of measuring, with the command that installs it and the flag that does without."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'resnet-serve\[pictures\]'.*--no-picture"):
        check_matplotlib()


def test_the_bar_of_a_timed_loop_follows_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests fill the bar where they are counted, and leave it alone where seconds are."""
    monkeypatch.setattr(bench_command, "stderr", Console(file=io.StringIO()))
    for seconds, total, completed in ((5.0, None, 0), (5.0, 100, 40)):
        progress = bench_command._TerminalProgress()
        progress.begin("something", seconds, total)
        progress.done(40)
        (task,) = progress._bars.tasks
        assert (task.completed, task.total) == (completed, total or seconds)
