"""`resnet-serve serve` as a process of its own: start, signals, exit status, and what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.onnx_graphs import Maker
from tests.pace import within
from tests.photos import make_jpeg, null_classes
from tests.running import service_process

NULL = ("--backend", "null")


def address_in(line: str) -> str:
    match = re.search(r"http://[0-9.]+:\d+", line)
    assert match, line
    return match[0]


def message(line: str) -> str:
    """What a log line says."""
    text = json.loads(line)["message"]
    assert isinstance(text, str)
    return text


def test_it_starts_answers_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    """The start ends with the address and a curl that works when pasted; Ctrl-C ends it with status 0, quietly."""
    with service_process(*NULL, folder=tmp_path) as service:
        line = service.wait_for("Ready:")
        command = message(service.wait_for("curl")).removeprefix("Try:").strip()
        assert address_in(line) == address_in(command)
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, check=True)
        assert '"predictions"' in answer.stdout
        assert service.stop(signal.SIGINT) == 0
    assert message(service.lines[-1]) == "Stopped."
    assert not any("Traceback" in line for line in service.lines)


def test_the_curl_names_the_file_in_a_clone(repository: Path, tmp_path: Path) -> None:
    """Started in a clone, the example sends the clone's own picture."""
    with service_process(*NULL, folder=repository) as service:
        service.wait_for("Ready:")
        command = message(service.wait_for("curl")).removeprefix("Try:").strip()
        assert "@app/data/example.jpg" in command
        run = subprocess.run(
            command, shell=True, cwd=repository, capture_output=True, text=True, timeout=30, check=True
        )
        assert '"predictions"' in run.stdout
        service.stop()


@pytest.mark.parametrize("weights", ["offline-demo", "graph.onnx"])
def test_nothing_is_reported_to_anybody(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps a device's id and what it has yet to report in the home folder: of the service, of an export
    and of the process that examines a file there is none."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "graph.onnx").write_bytes(Maker().build())
    # This process has switched it off for itself; and where it believes to be in CI it reports nothing in any case.
    for name in ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    environment = {"HOME": str(home), "RESNET_CACHE_DIR": str(tmp_path / "cache")}
    with service_process("--weights", weights, folder=tmp_path, environment=environment) as service:
        service.wait_for("Ready:")
        assert service.stop() == 0
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_stopped_while_it_loads(tmp_path: Path, number: int) -> None:
    """A signal during loading ends it with status 0 and no trace."""
    nothing_kept = {"RESNET_CACHE_DIR": str(tmp_path)}
    with service_process("--weights", "offline-demo", folder=tmp_path, environment=nothing_kept) as service:
        service.wait_for("Reading")
        assert service.stop(number) == 0
    assert not any("Traceback" in line for line in service.lines)


def test_it_can_be_stopped_while_it_warms_up(tmp_path: Path) -> None:
    """A signal during a warm-up that takes long is not kept waiting by it."""
    program = (
        "import sys, threading\n"
        "from app.backends.null import NullBackend\n"
        "NullBackend.warm_up = lambda backend, size: threading.Event().wait(60)\n"
        "from app.cli import main\n"
        "main()"
    )
    with service_process(*NULL, folder=tmp_path, program=program) as service:
        service.wait_for("Warming up")
        with within(20):
            assert service.stop() == 0


def test_sigterm_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    """Under load, SIGTERM turns readiness off first; every request that was taken is answered, and the status is 0."""
    image = make_jpeg(1)
    best = null_classes(image)[0]
    lost: list[BaseException] = []
    answered = [0] * 8
    under_way = threading.Barrier(9)

    def one_client(address: str, number: int) -> None:
        under_way.wait(30)
        with httpx.Client(base_url=address, timeout=30) as client:
            while True:
                try:
                    answer = client.post("/predict", content=image)
                except httpx.ConnectError:
                    return  # the door is closed: nothing was accepted
                except httpx.HTTPError as error:
                    lost.append(error)
                    return
                assert answer.json()["predictions"][0]["class_id"] == best
                answered[number] += 1

    with service_process(*NULL, "--shutdown-linger-seconds", "1", folder=tmp_path) as service:
        address = address_in(service.wait_for("Ready:"))
        with ThreadPoolExecutor(8) as clients:
            running = [clients.submit(one_client, address, number) for number in range(8)]
            under_way.wait(30)
            # In the linger readiness is off already and requests are still answered.
            service.process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=address, timeout=30) as client:
                while client.get("/readyz").status_code == 200:
                    pass
                draining = client.get("/readyz")
                assert draining.json()["code"] == "draining"
                assert draining.headers["Connection"] == "close"
                assert client.get("/healthz").status_code == 200
                assert client.post("/predict", content=image).status_code == 200
            for client_run in running:
                client_run.result()
        assert service.ended() == 0
    assert lost == []
    assert min(answered) > 0


def test_a_stuck_upload_does_not_keep_it_alive(tmp_path: Path) -> None:
    """An upload that never ends is given up at the end of the grace period; the status is 0 all the same."""
    flags = ("--shutdown-grace-seconds", "1", "--shutdown-linger-seconds", "0")
    with service_process(*NULL, *flags, folder=tmp_path) as service:
        host, port = address_in(service.wait_for("Ready:")).removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stuck:
            stuck.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            assert service.stop() == 0


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (("--port", "99999"), {}, ["RESNET_PORT (--port) cannot be '99999'", "65535"]),
        ((), {"RESNET_MAX_QUEUE": "0"}, ["RESNET_MAX_QUEUE (--max-queue) cannot be '0'", "greater than or equal to 1"]),
        ((), {"RESNET_MAX_BATCH_SIZE": "many"}, ["RESNET_MAX_BATCH_SIZE", "'auto'", "integer"]),
        ((), {"RESNET_BACKEND": "tensorrt"}, ["RESNET_BACKEND (--backend)", "'auto', 'torch', 'onnx' or 'null'"]),
        (("--device", "tpu"), {}, ["RESNET_DEVICE (--device) cannot be 'tpu'", "cuda:N"]),
        (("--backend", "null", "--weights", "x.pth"), {}, ["null needs no weights"]),
        (("--architecture", "resnet51", "--weights", "IMAGENET1K_V1"), {}, ["RESNET_ARCHITECTURE", "resnet50"]),
        (("--weights", "IMAGENET1K_V9"), {}, ["no weights IMAGENET1K_V9", "IMAGENET1K_V1, IMAGENET1K_V2"]),
        (NULL, {"RESNET_MAX_BATCH_SIZE": "65"}, ["RESNET_MAX_BATCH_SIZE", "null backend", "1 to 64"]),
        (("--weights", "nowhere.pth"), {}, ["nowhere.pth", "no such file"]),
    ],
)
def test_a_bad_setting_stops_the_start(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], expected: list[str]
) -> None:
    """A setting that cannot be is named, with what it may be, in one message; the status is not 0."""
    with service_process(*flags, folder=tmp_path, environment=environment) as service:
        assert service.ended() == 1
        service.wait_for("Error:")
    said = "\n".join(service.lines)
    assert all(part in said for part in expected), said
    assert "Traceback" not in said


def test_a_taken_port_is_told_at_once(tmp_path: Path) -> None:
    """A port that is in use ends the start before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with service_process(*NULL, "--port", port, folder=tmp_path) as service:
            assert service.ended() == 1
            assert "--port" in service.wait_for("Cannot listen")


def test_without_weights_and_network_it_says_both_ways_out(tmp_path: Path) -> None:
    """Where the download fails, one clear error names both ways on, and the status is not 0."""
    flags = ("--download-mirror", "http://127.0.0.1:9", "--cache-dir", str(tmp_path / "cache"))
    with service_process(*flags, folder=tmp_path) as service:
        assert service.ended() == 1
        service.wait_for("Error:")
    said = "\n".join(service.lines)
    assert "model_weights/" in said
    assert "RESNET_WEIGHTS=offline-demo" in said
    assert "Traceback" not in said


def test_the_fallback_names_what_it_serves(tmp_path: Path, example_jpeg: bytes) -> None:
    """The fallback warns in the log, in /healthz and in every answer's model name, whatever name was asked for."""
    flags = ("--download-mirror", "http://127.0.0.1:9", "--weights-fallback", "offline-demo", "--model-name", "mine")
    with service_process(*flags, folder=tmp_path, environment={"RESNET_CACHE_DIR": str(tmp_path)}) as service:
        address = address_in(service.wait_for("Ready:"))
        assert service.wait_for("WARNING")
        with httpx.Client(base_url=address, timeout=60) as client:
            answer = client.post("/predict", content=example_jpeg).json()
            assert answer["model"]["name"] == "tf_efficientnet_lite0"
            assert "clock" in answer["predictions"][0]["label"]
            assert "offline demo" in client.get("/healthz").json()["warnings"][0]
        assert service.stop() == 0


def test_an_unknown_variable_is_a_warning(tmp_path: Path) -> None:
    """A RESNET_ variable that is no setting is named with the nearest that is, and ignored."""
    with service_process(*NULL, folder=tmp_path, environment={"RESNET_MAX_BATCHSIZE": "4"}) as service:
        line = service.wait_for("RESNET_MAX_BATCHSIZE")
        assert "Did you mean RESNET_MAX_BATCH_SIZE?" in line
        service.wait_for("Ready:")
        service.stop()


def test_two_starts_share_nothing_but_the_cache(tmp_path: Path) -> None:
    """Nothing is written outside the cache folder: a start in a read-only folder serves."""
    folder = tmp_path / "empty"
    folder.mkdir()
    os.chmod(folder, 0o555)
    with service_process(*NULL, folder=folder) as service:
        service.wait_for("Ready:")
        service.stop()
    assert list(folder.iterdir()) == []
