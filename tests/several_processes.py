"""The service as several processes, with a device that the test holds: its batches begin and do not end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import httpx

from app.backends.null import NULL_CHECKPOINT
from app.checkpoints import Checkpoint
from tests.photos import make_jpeg, null_classes
from tests.raw_http import connect, post
from tests.running import ServiceProcess, service_process, wait_until

REPOSITORY = Path(__file__).parent.parent
# Python runs a file of this name at its start. Only the engine's process has the device.
DEVICE = """
import sys

if "engine" in sys.orig_argv:
    import fcntl
    from pathlib import Path
    from app.backends import null

    folder = Path(__file__).parent
    if (folder / "version").exists():
        from tests.several_processes import other_checkpoint
        null.NULL_CHECKPOINT = other_checkpoint((folder / "version").read_text())
    infer = null.NullBackend.infer

    def held(backend, batch, want):
        if batch.any():
            with (folder / "entered").open("a") as entered:
                entered.write(f"{len(batch)}\\n")
            with (folder / "gate").open() as gate:
                fcntl.flock(gate, fcntl.LOCK_SH)
        return infer(backend, batch, want)

    null.NullBackend.infer = held
"""


def other_checkpoint(sha256: str) -> Checkpoint:
    """As the null backend's, but for what a checkpoint decides: its version, its labels, its input."""
    preprocessing = replace(NULL_CHECKPOINT.preprocessing, resize_short_side=72, crop=(64, 64))
    labels = tuple(f"kind {number}" for number in range(20))
    return replace(NULL_CHECKPOINT, sha256=sha256, class_count=20, labels=labels, preprocessing=preprocessing)


def _open_files(pid: int) -> set[str]:
    """What a process's descriptors are open on."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(os.readlink(descriptor))
    return found


@dataclass
class Several:
    """A running service of several processes."""

    service: ServiceProcess
    folder: Path
    gate: IO[bytes]

    @property
    def address(self) -> str:
        return self.service.address

    def pids(self, role: str) -> list[int]:
        """Of its living children: "front-end" or "engine"."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdigit():
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == self.service.process.pid and role.encode() in command:
                        found.append(int(entry.name))
        return sorted(found)

    def hold(self) -> None:
        """From now on batches begin and do not end."""
        (self.folder / "entered").write_text("")
        fcntl.flock(self.gate, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self.gate, fcntl.LOCK_UN)

    @property
    def entered(self) -> list[int]:
        """The sizes of the batches that have begun since the last `hold`."""
        return [int(line) for line in (self.folder / "entered").read_text().split()]

    def connections_to_each(self, count: int) -> dict[int, list[socket.socket]]:
        """`count` connections to each front-end, by its process."""
        found: dict[int, list[socket.socket]] = {pid: [] for pid in self.pids("front-end")}
        while any(len(connections) < count for connections in found.values()):
            connection = connect(self.address)
            wait_until(lambda connection=connection: self._accepted_by(connection, found))
            mine = found[self._accepted_by(connection, found)]
            mine.append(connection) if len(mine) < count else connection.close()
        return found

    def _accepted_by(self, connection: socket.socket, front_ends: Iterable[int]) -> int:
        """The front-end that has a connection's other end; 0 while none has."""
        ports = [f"{end[1]:04X}" for end in (connection.getpeername(), connection.getsockname())]
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if [end[-4:] for end in row[1:3]] == ports}
        return next((pid for pid in front_ends if sockets & _open_files(pid)), 0)

    def client(self) -> httpx.Client:
        """One that comes with a new connection for each request: any front-end may answer."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.address, timeout=30, limits=limits)

    def metric(self, line: str) -> float:
        """The value of the sample that begins with `line`; 0 where there is none yet."""
        with self.client() as client:
            text = client.get("/metrics").text
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def readiness(self) -> tuple[int, str]:
        with self.client() as client:
            answer = client.get("/readyz")
        return answer.status_code, answer.json()["state"]

    def wait_until_ready(self) -> None:
        """All front-ends, also one that was just replaced."""
        wait_until(lambda: len(self.pids("front-end")) == 2 and self.metric("resnet_ready") == 1.0)

    def post(self, seed: int) -> httpx.Response | httpx.HTTPError:
        """The answer to an image, checked where it is one; or why there is none."""
        image = make_jpeg(seed)
        with self.client() as client:
            try:
                answer = client.post("/predict", content=image)
            except httpx.HTTPError as error:
                return error
        if answer.status_code == 200:
            best = [each["class_id"] for each in answer.json()["predictions"][:2]]
            assert tuple(best) == null_classes(image)
        return answer

    def raw_post(self, seed: int) -> socket.socket:
        """A connection on which an image was sent."""
        connection = connect(self.address)
        connection.sendall(post(make_jpeg(seed)))
        return connection


@contextlib.contextmanager
def several_processes(
    folder: Path,
    *flags: str,
    workers: int = 2,
    wait: bool = True,
    backend: tuple[str, ...] = ("--backend", "null"),
    at_start: str = "",
) -> Iterator[Several]:
    """The service as `workers` front-ends and an engine; with `wait`, begin once it is ready.

    Each of its processes runs the Python of `at_start` before all else; its temporary files lie in `folder`.
    """
    (folder / "sitecustomize.py").write_text(DEVICE + at_start)
    (folder / "gate").touch()
    environment = {"PYTHONPATH": f"{folder}:{REPOSITORY}", "TMPDIR": str(folder)}
    given = (*backend, "--http-workers", str(workers), *flags)
    with (
        service_process(*given, folder=folder, environment=environment) as service,
        (folder / "gate").open("rb") as gate,
    ):
        if wait:
            found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
            assert found
            service.address = found[0]
        yield Several(service, folder, gate)


@contextlib.contextmanager
def one_for_all(folders: Callable[[], Path], *flags: str, at_start: str = "") -> Iterator[Callable[[], Several]]:
    """What it yields gives the service that several tests share, started again where a test has ended it."""
    with contextlib.ExitStack() as services:
        running: list[Several] = []

        def service() -> Several:
            if not running or running[-1].service.process.poll() is not None:
                running.append(services.enter_context(several_processes(folders(), *flags, at_start=at_start)))
            return running[-1]

        yield service


def statuses(outcomes: list[Future[httpx.Response | httpx.HTTPError]]) -> list[int]:
    """Of requests that were asked at once; 0 where the connection broke."""
    results = [outcome.result() for outcome in outcomes]
    return [result.status_code if isinstance(result, httpx.Response) else 0 for result in results]


def ask_all(service: Several, pool: ThreadPoolExecutor, seeds: range) -> list[Future[httpx.Response | httpx.HTTPError]]:
    return [pool.submit(service.post, seed) for seed in seeds]
