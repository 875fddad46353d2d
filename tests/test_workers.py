"""One service as several processes: whichever answers, it is the same service."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from app.decoding import plan_decoding
from app.errors import SettingError
from app.settings import Settings
from app.workers.division import count_workers, divide
from app.workers.restarts import Restarts
from tests.photos import make_jpeg, null_classes
from tests.running import service_process, wait_until
from tests.several_processes import REPOSITORY, Several, ask_all, several_processes, statuses
from tests.test_shutdown import Load

ANSWERED = 'resnet_requests_total{code="",route="/predict",status="200"}'
MAX_QUEUE, MAX_BATCH_SIZE = 8, 2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    flags = ("--max-queue", str(MAX_QUEUE), "--max-batch-size", str(MAX_BATCH_SIZE))
    with several_processes(tmp_path_factory.mktemp("service"), *flags) as service:
        yield service


def test_it_is_two_front_ends_and_one_engine(service: Several) -> None:
    """The processes are as told, and ready is said once, when all of them are."""
    assert len(service.pids("front-end")) == 2
    assert len(service.pids("engine")) == 1
    assert sum("Ready:" in line for line in service.service.lines) == 1
    assert service.readiness() == (200, "ready")


def test_its_processes_share_a_session_and_no_process_group(service: Several) -> None:
    """Front-ends and the engine are in the supervisor's session, each in a process group of its own."""
    pids = [*service.pids("front-end"), *service.pids("engine")]
    assert {os.getsid(pid) for pid in pids} == {os.getsid(service.service.process.pid)}
    assert [os.getpgid(pid) for pid in pids] == pids


def test_many_clients_get_their_own_answers(service: Several) -> None:
    """Clients with connections of their own are answered right, and whichever front-end is asked counts all answers."""
    images = [make_jpeg(seed) for seed in range(16)]
    expected = [null_classes(image) for image in images]
    before = service.metric(ANSWERED)
    clients = [httpx.Client(base_url=service.address, timeout=30) for _ in range(8)]

    def one_client(number: int) -> None:
        for turn in range(10):
            own = (number + turn) % len(images)
            answer = clients[number].post("/predict", content=images[own])
            assert answer.status_code == 200
            best = [prediction["class_id"] for prediction in answer.json()["predictions"][:2]]
            assert tuple(best) == expected[own]

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(one_client, range(len(clients))))
    for client in clients:
        client.close()
    # Whoever is asked counts for all.
    assert {service.metric(ANSWERED) for _ in range(8)} == {before + 80}


def test_both_front_ends_take_connections(service: Several) -> None:
    """Of connections that come in a row, each front-end is given some."""
    host, port = service.address.removeprefix("http://").split(":")
    front_ends = service.pids("front-end")
    before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in front_ends]
    with ExitStack() as open_ones:

        def both_have_some() -> bool:
            open_ones.enter_context(socket.create_connection((host, int(port))))
            now = [len(os.listdir(f"/proc/{pid}/fd")) for pid in front_ends]
            return all(more > fewer for more, fewer in zip(now, before, strict=True))

        wait_until(both_have_some)


def test_the_queue_is_bounded_over_all_front_ends(service: Several) -> None:
    """With the device held, as many images are taken as one process would take; all others are refused at once."""
    service.hold()
    with ThreadPoolExecutor(40) as pool:
        try:
            asking = ask_all(service, pool, range(40))
            room = MAX_QUEUE + MAX_BATCH_SIZE
            wait_until(lambda: sum(each.done() for each in asking) >= 40 - room - 1)
            refused = [each.result() for each in asking if each.done()]
            for answer in refused:
                assert isinstance(answer, httpx.Response)
                assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
                assert int(answer.headers["Retry-After"]) >= 1
        finally:
            service.release()
        answers = statuses(asking)
    # Two front-ends may let in one each for a last place that both saw; the engine's own bound is behind them.
    assert room - 1 <= answers.count(200) <= room + 1
    assert answers.count(503) == 40 - answers.count(200)


def test_a_client_that_leaves_takes_its_image_out_of_the_engine(service: Several) -> None:
    """Clients that go while their images wait in the engine's process free the place; the device never sees them."""
    gone = 'resnet_dropped_total{reason="client_gone"}'
    before = service.metric(gone)
    service.hold()
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(service.post, 300)
            wait_until(lambda: service.entered == [1])
            leavers = [service.raw_post(301 + number) for number in range(4)]
            wait_until(lambda: service.metric('resnet_queue_depth{stage="device"}') == 4)
            for leaver in leavers:
                leaver.close()
            wait_until(lambda: service.metric(gone) == before + 4)
        finally:
            service.release()
        assert statuses([first]) == [200]
    assert service.entered == [1]


def test_every_log_line_is_whole(service: Several) -> None:
    """Lines of all processes come one after another, each an object, also those that are longer than a pipe's page."""
    agent = "a" * 250
    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=service.address, timeout=30) as client:
        path = "/" + "x" * 200
        list(pool.map(lambda number: client.get(f"{path}?{number}", headers={"User-Agent": agent}), range(200)))
    wait_until(lambda: sum(path in line for line in service.service.lines) == 200)
    for line in service.service.lines:
        assert json.loads(line)["message"]


def test_sigterm_under_full_load_loses_nothing(tmp_path: Path) -> None:
    """Every request on every connection that was made is answered, by whichever front-end, and the status is 0."""
    flags = ("--max-batch-size", "4", "--max-queue", "8", "--shutdown-linger-seconds", "0.3")
    with several_processes(tmp_path, *flags) as several:
        host, port = several.address.removeprefix("http://").split(":")
        load = Load(host, int(port), signal_after=150)
        # Made, and connected, before the load takes the cores: the listener is closed a moment after the signal.
        with ThreadPoolExecutor(32) as pool, httpx.Client(base_url=several.address, timeout=30) as probe:
            assert probe.get("/readyz").status_code == 200
            running = [pool.submit(load.client, number) for number in range(32)]
            assert load.due.wait(60)
            several.service.process.send_signal(signal.SIGTERM)
            with suppress(httpx.TransportError):  # nobody listens any more
                while probe.get("/readyz").status_code == 200:
                    pass
            for client_run in running:
                client_run.result()
        assert several.service.ended() == 0
    assert load.lost == []
    assert set(load.statuses) <= {(200, ""), (503, "overloaded"), (503, "draining")}


def test_a_second_signal_skips_the_linger(tmp_path: Path) -> None:
    """SIGINT after SIGTERM ends a linger that would last a minute."""
    with several_processes(tmp_path, "--shutdown-linger-seconds", "60") as several:
        several.service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: several.readiness() == (503, "draining"))
        assert several.service.stop(signal.SIGINT) == 0
    assert "Stopped." in several.service.lines[-1]


def test_one_process_has_the_weights(tmp_path: Path, example_jpeg: bytes) -> None:
    """Of a real model the engine's process alone has the weights and what runs them; front-ends stay small."""
    with several_processes(tmp_path, backend=("--weights", "offline-demo")) as several:
        with several.client() as client:
            answers = [client.post("/predict", content=example_jpeg).json() for _ in range(4)]
        assert "clock" in answers[0]["predictions"][0]["label"]
        assert all(answer == answers[0] for answer in answers)
        (engine,) = several.pids("engine")
        runs = re.compile(r"libtorch|onnxruntime")
        assert runs.search(Path(f"/proc/{engine}/maps").read_text())
        for front_end in several.pids("front-end"):
            assert not runs.search(Path(f"/proc/{front_end}/maps").read_text())
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{front_end}/status").read_text())
            assert resident
            assert int(resident[1]) < 200_000
        assert several.service.stop() == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--weights", "nowhere.pth"), ["nowhere.pth", "no such file"]),
        (
            ("--backend", "null", "--decode-threads", "1"),
            ["RESNET_HTTP_WORKERS (--http-workers) cannot be 2"],
        ),
        (("--backend", "null", "--max-batch-size", "65"), ["RESNET_MAX_BATCH_SIZE", "1 to 64"]),
    ],
)
def test_a_start_that_fails_says_why_and_ends(tmp_path: Path, flags: tuple[str, ...], expected: list[str]) -> None:
    """What is wrong is one message, whichever process found it; the status is 1, and no process is left."""
    with service_process(*flags, "--http-workers", "2", folder=tmp_path) as service:
        assert service.ended() == 1
        said = service.wait_for("Error:")
    assert all(part in said for part in expected), said
    assert not any("Traceback" in line for line in service.lines)


def test_a_start_without_room_for_metrics_leaves_nothing_behind(tmp_path: Path) -> None:
    """Where the files that the processes share cannot be written, the start says what to do, and takes its own away."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    program = f"{limit}; from app.cli import main; main()"
    flags = ("--backend", "null", "--http-workers", "2")
    with service_process(*flags, folder=tmp_path, environment={"TMPDIR": str(tmp_path)}, program=program) as service:
        assert service.ended() == 1
        assert "Set TMPDIR to a folder with some megabytes of room" in service.wait_for("Error:")
    assert not list(tmp_path.glob("resnet-serve-*"))


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_anything_runs_is_a_stop_like_any_other(
    tmp_path: Path, workers: str, number: signal.Signals
) -> None:
    """Told to stop while its first files are made, the service ends with status 0 and takes them away."""
    program = f"""
import os, tempfile
from app.server import listening
from app.cli import main

def told(made):
    def making(*given, **named):
        result = made(*given, **named)
        os.kill(os.getpid(), {int(number)})
        return result
    return making

listening.address_of = told(listening.address_of)
tempfile.mkdtemp = told(tempfile.mkdtemp)
main()
"""
    flags = ("--backend", "null", "--http-workers", workers)
    with service_process(*flags, folder=tmp_path, environment={"TMPDIR": str(tmp_path)}, program=program) as service:
        assert service.ended() == 0, service.lines
        assert service.wait_for("Stopped.")
    assert not list(tmp_path.glob("resnet-serve-*"))


def test_a_taken_port_is_told_at_once(service: Several, tmp_path: Path) -> None:
    """A second service on the port of one that has several sockets there is told so, and takes none of its clients."""
    port = service.address.rpartition(":")[2]
    flags = ("--backend", "null", "--http-workers", "2", "--port", port)
    with service_process(*flags, folder=tmp_path) as second:
        assert second.ended() == 1
        assert "--port" in second.wait_for("Cannot listen")


def test_front_ends_that_never_start_end_the_service(tmp_path: Path) -> None:
    """Where every attempt to start a front-end fails, the service says so after the third and ends with status 1."""
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'front-end' in sys.orig_argv: os._exit(3)\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    flags = ("--backend", "null", "--http-workers", "2")
    with service_process(*flags, folder=tmp_path, environment=environment) as service:
        assert service.ended() == 1
        assert "do not start; the last one ended with exit status 3" in service.wait_for("Error:")


def test_front_ends_that_cannot_decode_end_the_service(tmp_path: Path) -> None:
    """Where no decoding process starts, front-ends are not replaced for ever: the service ends with status 1."""
    fault = "import os, sys\nif 'app.images.decoding_process' in sys.orig_argv: os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(fault)
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    flags = ("--backend", "null", "--http-workers", "2", "--decoder", "processes", "--decode-threads", "2")
    with service_process(*flags, folder=tmp_path, environment=environment) as service:
        assert service.ended() == 1
        assert "do not start; the last one ended with exit status 1" in service.wait_for("Error:")


def test_it_can_be_stopped_while_it_loads(tmp_path: Path) -> None:
    """A signal during loading ends all processes with status 0 and no trace."""
    flags = ("--weights", "offline-demo", "--http-workers", "2", "--cache-dir", str(tmp_path))
    with service_process(*flags, folder=tmp_path) as service:
        service.wait_for("Reading")
        assert service.stop() == 0
    assert not any("Traceback" in line for line in service.lines)


def test_shares_add_up() -> None:
    """Decoders, their memory and uploads are divided without loss; received bytes always hold the largest body."""
    settings = Settings(
        decode_threads=7, decode_memory_bytes=20_000_000_000, max_open_uploads=10, max_received_bytes=200_000_000
    )
    whole = plan_decoding(settings)
    shares = divide(settings, 4)
    plans = [plan_decoding(share) for share in shares]
    assert [plan.slots for plan in plans] == [2, 2, 2, 1]
    assert sum(plan.spare for plan in plans) == whole.spare
    assert sum(plan.slot_bytes * (plan.slots + plan.spare) for plan in plans) <= 20_000_000_000
    assert [share.max_open_uploads for share in shares] == [3, 3, 2, 2]
    assert {share.max_received_bytes for share in shares} == {settings.max_batch_body_bytes}
    assert {share.max_queue for share in shares} == {settings.max_queue}


def test_every_front_end_decodes_something() -> None:
    """Where as many decoders were set as there are front-ends, each has one; with fewer the start says so."""
    enough = Settings(decode_threads=3, decode_memory_bytes=2_500_000_000)
    assert [share.decode_threads for share in divide(enough, 3)] == [1, 1, 1]
    with pytest.raises(SettingError, match="all together decode 3"):
        divide(enough, 4)


@pytest.mark.parametrize(
    ("cpus", "device", "workers"),
    [
        *((1, "cpu", 1), (2, "cpu", 1), (4, "cpu", 1), (8, "cpu", 2), (64, "cpu", 8)),
        *((2, "cuda", 1), (4, "cuda", 2), (16, "cuda", 8), (64, "cuda", 8)),
    ],
)
def test_the_default_goes_by_cores_and_device(cpus: int, device: str, workers: int) -> None:
    """One process on a small machine, more where there are cores, sooner beside a GPU; what is set is taken."""
    memory = 64_000_000_000
    assert count_workers(Settings(device=device, decode_memory_bytes=memory), cpus) == workers
    assert count_workers(Settings(device=device, http_workers=3), cpus) == 3


def test_the_default_is_no_more_than_memory_decodes_for() -> None:
    """Where memory holds two of the largest images, two front-ends are all that the default takes."""
    assert count_workers(Settings(device="cpu", decode_memory_bytes=1_700_000_000), 64) == 2


def test_restarts_wait_longer_each_time_and_give_up() -> None:
    """Deaths close together double the pause; the third within the window is the last, and old ones are forgotten."""
    now = [0.0]
    restarts = Restarts(3, 300.0, 0.5, clock=lambda: now[0])
    assert restarts.died() == 0.5
    now[0] = 299.0
    assert restarts.died() == 1.0
    now[0] = 301.0  # the first is out of the window
    assert restarts.died() == 1.0
    now[0] = 302.0
    assert restarts.died() is None
    patient = Restarts(None, 60.0, 0.1, clock=lambda: 0.0)
    delays = [patient.died() for _ in range(20)]
    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays[-1] == 10.0
