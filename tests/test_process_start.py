"""How a process starts and stops where something ordinary is missing: a handler, a home, a stream, a folder."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app import files, resources
from app.images.decode import DecodeLimits
from app.images.decoding_children import DecodingChildren
from app.interpreter import hold_stop_signals, take_stop_signals
from app.processes.limited import Limits, run_limited
from app.processes.start import use_this_package
from app.settings import Settings
from tests.conftest import REPOSITORY
from tests.photos import make_jpeg
from tests.programs import PROGRAM, put_program
from tests.running import START_SECONDS, clean_environment, running_server, service_process, wait_until
from tests.several_processes import several_processes
from tests.test_serve import address_in

COMMAND = [sys.executable, str(REPOSITORY / "resnet_serve.py")]
SERVE = ["serve", "--backend", "null", "--http-workers", "1"]
NOBODY = 54_321


def is_held(pid: int, number: int = signal.SIGTERM) -> bool:
    """Whether the process holds the signal back, as its main thread's mask says."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def children_of(pid: int) -> list[int]:
    return [int(word) for each in Path(f"/proc/{pid}/task").glob("*/children") for word in each.read_text().split()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- signals


@pytest.mark.parametrize("is_first", [False, True], ids=["a process", "the first process of a container"])
def test_a_stop_that_comes_before_its_handler_is_not_lost(tmp_path: Path, is_first: bool) -> None:
    """SIGTERM in the first moments of a start ends the service with status 0, also as PID 1, which has no default."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if is_first and (
        shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process here may have a PID namespace of its own")
    process = subprocess.Popen(
        [*(apart if is_first else []), *COMMAND, *SERVE, "--port", "0"],
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pid = process.pid
        if is_first:
            wait_until(lambda: children_of(process.pid))
            (pid,) = children_of(process.pid)
        # `unshare` holds signals back too, for a moment before it becomes the service.
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() != "unshare\n" and is_held(pid))
        os.kill(pid, signal.SIGTERM)
        _, said = process.communicate(timeout=START_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_other_commands_take_the_signals_back(tmp_path: Path) -> None:
    """A command that is no server holds nothing back while it runs: SIGTERM ends it."""
    # Nothing ever answers there: it accepts no connection.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        process = subprocess.Popen(
            [*COMMAND, "probe", "--port", port, "--timeout", "60"], cwd=tmp_path, env=clean_environment()
        )
        connection, _ = silent.accept()
        with connection:
            assert not is_held(process.pid)
            process.terminate()
            assert process.wait(START_SECONDS) == -signal.SIGTERM


def test_children_hold_no_signal_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is started while stop signals are held takes them all the same."""
    limits = DecodeLimits(1_000_000, 1_000_000, 1000, 64, 1000)
    workers = DecodingChildren(limits, "exact", 1 << 30, 1 << 20, 10.0)
    hold_stop_signals()
    try:
        worker = workers.start()
        assert not is_held(worker.id)
        # From here on a child runs the program and nothing else of this package.
        put_program(tmp_path, monkeypatch, "def main():\n    print(open('/proc/self/status').read())\n")
        status = run_limited(PROGRAM, (), lambda pipe: pipe.read(), Limits(1 << 30, 10, 60.0)).decode()
        (line,) = [line for line in status.splitlines() if line.startswith("SigBlk:")]
        assert int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1 == 0
    finally:
        take_stop_signals()
        workers.kill_all()
        workers.wait_for_all()


def test_this_package_stays_what_it_is() -> None:
    """Finding the package by its place changes nothing where it is imported already."""
    before = sys.modules["app"], sys.modules["app.settings"]
    use_this_package()
    assert (sys.modules["app"], sys.modules["app.settings"]) == before


# --- what may be missing


def test_closed_standard_streams_are_no_obstacle(tmp_path: Path) -> None:
    """A service that is started without stdin, stdout and stderr serves, and its sockets are not taken for those."""
    port = free_port()
    command = [*COMMAND, *SERVE, "--port", str(port)]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=tmp_path, env=clean_environment()
    )
    try:
        address = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            assert process.poll() is None
            try:
                return httpx.get(f"{address}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, START_SECONDS)
        assert httpx.post(f"{address}/predict", content=make_jpeg(1)).status_code == 200
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)} == {os.devnull}
        process.terminate()
        assert process.wait(START_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-"])
def test_commands_run_with_closed_streams(tmp_path: Path, closed: str) -> None:
    """Whichever streams are closed, a command ends in good order."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "--version"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_user_without_home_or_name_can_serve(tmp_path: Path) -> None:
    """A user whom the system does not know, without HOME (--user 54321 of a container), has a cache of its own."""
    as_nobody = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*as_nobody, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process here may have a user namespace of its own")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(make_jpeg(1))
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("RESNET_")}
    del environment["HOME"]
    done = subprocess.run(
        [*as_nobody, *COMMAND, "classify", "--backend", "null", str(photo)],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    cache = tmp_path / f"resnet-serve-{NOBODY}"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_not_known_means_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home the cache is a temporary folder that nobody else can write to, and none that somebody prepared."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RESNET_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"resnet-serve-{os.getuid()}"
    assert Settings().cache_dir == own
    assert Settings().cache_dir == own
    own.chmod(0o777)
    other = Settings().cache_dir
    assert other != own
    assert other.parent == tmp_path
    assert other.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_for_metrics_that_is_not_there_is_not_needed(tmp_path: Path, workers: str) -> None:
    """PROMETHEUS_MULTIPROC_DIR of the environment is not this service's, and need not exist."""
    given = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "none"), "RESNET_HTTP_WORKERS": workers}
    with service_process("--backend", "null", folder=tmp_path, environment=given) as service:
        address = address_in(service.wait_for("Ready:"))
        assert httpx.get(f"{address}/metrics").status_code == 200
        assert httpx.post(f"{address}/predict", content=make_jpeg(1)).status_code == 200
        assert service.stop() == 0
    assert "Traceback" not in "\n".join(service.lines)
    assert not (tmp_path / "none").exists()


# --- open files


def limits_of(pid: int) -> tuple[str, str]:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return soft, hard
    raise AssertionError("no limit of open files")


def test_every_process_may_open_as_many_files_as_the_hard_limit_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The soft limit is raised in the service's own process and in each of its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with several_processes(tmp_path) as service:
            for pid in (service.service.process.pid, *service.pids("front-end"), *service.pids("engine")):
                found_soft, found_hard = limits_of(pid)
                assert found_soft == found_hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_raising_says_what_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that holds is returned: the hard one, a bound where that is none, or the old one where it stays."""
    now = [1024, 4096]

    def set_limit(kind: int, limits: tuple[int, int]) -> None:
        now[:] = limits

    monkeypatch.setattr(resources.resource, "getrlimit", lambda kind: tuple(now))
    monkeypatch.setattr(resources.resource, "setrlimit", set_limit)
    assert resources.raise_open_file_limit() == 4096
    now[:] = [1024, resource.RLIM_INFINITY]
    assert resources.raise_open_file_limit() == now[0] == 1 << 20

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    now[:] = [1024, 4096]
    monkeypatch.setattr(resources.resource, "setrlimit", refuse)
    assert resources.raise_open_file_limit() == 1024


# --- probe


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("::", "::"),
        ("localhost", "localhost"),
    ],
)
def test_probe_asks_where_the_service_listens(tmp_path: Path, host: str, said: str) -> None:
    """`probe` reads RESNET_HOST and RESNET_PORT as the service does, and asks an address that it answers on."""
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with running_server(Settings(backend="null", host=host, port=0)) as server:
        given = {"RESNET_HOST": said, "RESNET_PORT": server.address.rpartition(":")[2]}
        done = subprocess.run(
            [*COMMAND, "probe", "--ready"],
            cwd=tmp_path,
            env=clean_environment() | given,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout[:3]) == (0, "200"), done.stderr
